"""A world of coloured rectangles in Visual Genome's layout, and the command that trains a small detector on it."""

import json
from pathlib import Path

import cv2
import numpy as np

from tests.world import scan

COLOURS = {"red box": (30, 30, 220), "green box": (40, 200, 40), "blue box": (220, 60, 30)}  # BGR
SIZE = (64, 88)  # of a photo: height, width
TINY = [
    "network.depth=18", "network.width=16", "network.rpn_channels=16", "network.anchor_sizes=[12.0,24.0,48.0]", "network.pooled_size=4",
    "network.min_size=64", "network.max_size=96", "network.rpn_pre_nms=300", "network.rpn_post_nms=50",
    "training.rpn_pre_nms=300", "training.rpn_post_nms=60", "training.roi_batch_size=32", "training.optimizer=adamw",
    "training.learning_rate=1e-3", "training.warmup_steps=2", "--device", "cpu", "--workers", "0",
]  # fmt: skip
SCRATCH = ["--init", "none", "training.norm=BN", "training.frozen_stages=0"]
SHORT = ["--steps", "6", "--batch-size", "2", "training.checkpoint_every=2", "training.evaluate_every=3"]


def draw_world(folder: Path, count: int, *, seed: int = 0) -> None:
    """vg/: Visual Genome's layout with `count` photos, of which every fourth is also in COCO and held out."""
    generator = np.random.default_rng(seed)
    photos = folder / "vg/VG_100K"
    photos.mkdir(parents=True)
    rows: dict[str, list[dict]] = {"image_data": [], "objects": [], "attributes": []}
    for image_id in range(1, count + 1):
        image = generator.integers(90, 160, (*SIZE, 3), dtype=np.uint8)
        objects = []
        for half in range(2):
            kind = int(generator.integers(3))
            w, h = (int(side) for side in generator.integers(16, 36, 2))
            x, y = half * 44 + int(generator.integers(0, 44 - w)), int(generator.integers(0, 64 - h))
            image[y : y + h, x : x + w] = tuple(COLOURS.values())[kind]
            names = [list(COLOURS)[kind].replace("box", "boxes" if half else "box")]
            objects.append({"object_id": 2 * image_id + half, "names": names, "x": x, "y": y, "w": w, "h": h})
        cv2.imwrite(str(photos / f"{image_id}.png"), image)
        coco_id = 1000 + image_id if image_id % 4 == 0 else None
        rows["image_data"].append({"image_id": image_id, "height": SIZE[0], "width": SIZE[1], "coco_id": coco_id})
        rows["objects"].append({"image_id": image_id, "objects": objects})
        attributes = [one | {"attributes": ["large" if one["w"] * one["h"] > 600 else "little"]} for one in objects]
        rows["attributes"].append({"image_id": image_id, "attributes": attributes})
    for name, content in rows.items():
        (folder / f"vg/{name}.json").write_text(json.dumps(content))
    (folder / "objects.txt").write_text("".join(f"{name},{name}es\n" for name in COLOURS))
    (folder / "attributes.txt").write_text("large,big\nsmall,little\n")
    (folder / "held_out.txt").write_text("\n".join(str(1000 + index) for index in range(4, count + 1, 4)))


def command(*more: str) -> list[str]:
    """`more` takes the place of what is usual: the program takes nothing twice."""
    data = ["--visual-genome", "vg", "--held-out", "held_out.txt", "--objects", "objects.txt", "--attributes", "attributes.txt"]  # fmt: skip
    given: dict[str, list[str]] = {}
    for word in [*data, *TINY, *more]:
        if word.startswith("--") or "=" in word:
            given[word.partition("=")[0]] = value = [word]
        else:
            value.append(word)
    return ["train-detector", *(word for words in given.values() for word in words)]


def metrics(run: Path) -> list[dict]:
    """The lines of a run of `train-detector`."""
    return [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]


def refused(*arguments: str) -> str:
    """The one line that a mistake ends in."""
    said = scan(*arguments)
    assert said.exit_code == 2, said.output
    lines = [line for line in said.stderr.splitlines() if line and "step/s" not in line]  # but for a bar
    assert len(lines) == 1, said.stderr
    assert lines[0].startswith("error: ")
    return lines[0]
