"""A folder as a new user has it: coco/train2014 with captions, and the command line to type into."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.photos import write_photos

THINGS = ["dog", "tree", "ball", "boat", "house"]
SMALL_TRAINING = [
    "--epochs", "2", "--batch-size", "8", "model.embed_dim=16", "model.word_dim=8", "training.min_word_count=1",
]  # fmt: skip


def scan(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def lay_out_coco(folder: Path, count: int = 20) -> None:
    """coco/train2014 and its captions as COCO lays them out."""
    write_photos(folder / "coco/train2014", count, names="COCO_train2014_{:012}.jpg")
    images = [{"id": index, "file_name": f"COCO_train2014_{index:012}.jpg"} for index in range(count)]
    rows = [
        {
            "id": 700 + 2 * index + number,
            "image_id": index,
            "caption": f"A {THINGS[index % 5]} by a {THINGS[index % 3]}.",
        }
        for index in range(count)
        for number in range(2)
    ]
    path = folder / "coco/annotations/captions_train2014.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "annotations": rows}))
