"""A scene as people annotate it: Visual Genome's objects and attributes, COCO's captions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pipeline.demo.captions import PER_IMAGE, describe
from pipeline.demo.scenes import Scene, stream
from pipeline.demo.words import (
    COLOR_NAMES,
    GROUNDS,
    NAMES,
    SHINY_NAMES,
    SIZE_NAMES,
    STUFF_ATTRIBUTES,
    STUFF_NAMES,
    plural,
)

VISUAL_GENOME_IDS = 1_000_000  # added to a COCO id, so that nobody takes one for the other
UNNAMED = ("thing", "toy")  # what is in no vocabulary


def visual_genome_image(scene: Scene) -> dict[str, Any]:
    """A scene's row of `image_data.json`."""
    return {
        "image_id": VISUAL_GENOME_IDS + scene.number,
        "coco_id": scene.number,
        "flickr_id": None,
        "width": scene.width,
        "height": scene.height,
        "url": visual_genome_file_name(scene.number),
    }


def visual_genome_objects(scene: Scene) -> tuple[dict[str, Any], dict[str, Any]]:
    """A scene's rows of `objects.json` and `attributes.json`: its things, then ground and backdrop.

    Boxes are full extents as drawn, behind other things too, clipped to the frame. Names and attributes are worded as people do:
    synonyms, capitals, plurals, some left out.
    """
    rng = stream(scene.seed, scene.number, 3)
    image_id = VISUAL_GENOME_IDS + scene.number
    objects, attributes = [], []
    for place, (name, said, (x0, y0, x1, y1)) in enumerate([*_things(scene, rng), *_stuff(scene, rng)]):
        row = {
            "object_id": image_id * 10 + place,
            "names": [name],
            "synsets": [f"{name.lower().split()[-1]}.n.01"],
            "x": x0,
            "y": y0,
            "w": x1 - x0,
            "h": y1 - y0,
        }
        objects.append({**row, "merged_object_ids": []})
        attributes.append({**row, "attributes": said} if said else row)
    return (
        {"image_id": image_id, "image_url": visual_genome_file_name(scene.number), "objects": objects},
        {"image_id": image_id, "attributes": attributes},
    )


def coco_captions(scenes: Sequence[Scene], split: str) -> dict[str, Any]:
    """The content of `captions_{split}2014.json`."""
    return {
        "info": {"description": "Drawn scenes of scan-pipeline's demo", "version": "1.0", "year": 2014},
        "licenses": [],
        "images": [
            {"id": s.number, "file_name": coco_file_name(split, s.number), "width": s.width, "height": s.height}
            for s in scenes
        ],
        "annotations": [
            {"id": scene.number * PER_IMAGE + place, "image_id": scene.number, "caption": caption}
            for scene in scenes
            for place, caption in enumerate(describe(scene))
        ],
    }


def coco_file_name(split: str, number: int) -> str:
    """ "COCO_train2014_000000000042.jpg"."""
    return f"COCO_{split}2014_{number:012}.jpg"


def visual_genome_file_name(number: int) -> str:
    """ "VG_100K/1000042.jpg", below the folder of the annotations."""
    return f"VG_100K/{VISUAL_GENOME_IDS + number}.jpg"


def object_vocabulary() -> list[str]:
    """One class a line, synonyms and plurals after commas: the things, then ground and backdrop."""
    return [
        *(_line([*names, *map(plural, names)]) for names in NAMES.values()),
        *(_line(names) for names in STUFF_NAMES.values()),
    ]


def attribute_vocabulary() -> list[str]:
    """As `object_vocabulary`: colours, sizes, finish, then what ground and backdrop are like."""
    return list(map(_line, (*COLOR_NAMES.values(), *SIZE_NAMES.values(), SHINY_NAMES))) + list(STUFF_ATTRIBUTES)


Said = tuple[str, list[str], tuple[int, int, int, int]]  # name, attributes, XYXY box


def _things(scene: Scene, rng: np.random.Generator) -> Iterable[Said]:
    for thing in scene.things:
        name = _one_of(rng, NAMES[thing.kind], 0.6)
        style = rng.random()
        if style < 0.04:
            name = plural(name)
        elif style < 0.08:
            name = name.capitalize()
        elif style < 0.09:
            name = UNNAMED[rng.integers(len(UNNAMED))]
        said = []
        if rng.random() < 0.97:
            said.append(_one_of(rng, COLOR_NAMES[thing.color], 0.7))
        if rng.random() < 0.85:
            said.append(_one_of(rng, SIZE_NAMES[thing.size], 0.5))
        if thing.shiny and rng.random() < 0.85:
            said.append(_one_of(rng, SHINY_NAMES, 0.7))
        yield name, said, thing.box


def _stuff(scene: Scene, rng: np.random.Generator) -> Iterable[Said]:
    place, edge, horizon = scene.place, round(scene.edge), round(scene.camera.horizon)
    width, height = scene.width, scene.height
    ground, like, _ = GROUNDS[place.ground]
    boxes = [(ground, like, (0, edge, width, height))]
    if not place.walled:
        boxes.append(("sky", "dark" if place.time == "night" else "", (0, 0, width, horizon)))
        if place.backdrop == "sea":
            boxes.append(("sea", "", (0, horizon, width, edge)))
    else:
        boxes.append(("wall", "brick" if place.backdrop == "brick" else "plain", (0, 0, width, edge)))
    for name, like, box in boxes:
        yield _one_of(rng, STUFF_NAMES[name], 0.7), [like] if like else [], box


def _one_of(rng: np.random.Generator, names: Sequence[str], first: float) -> str:
    """The first name that often, else any."""
    return names[0] if rng.random() < first else names[int(rng.integers(len(names)))]


def _line(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))
