"""Which image belongs to which shard, decided before any image is read.

The plan is a file of the store, `images.jsonl`: one row per image, shards in ascending order. It only grows: images
found later are planned into new shards. So a run that was killed, or shared among processes, makes the same shards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.images import Photo
from pipeline.shard_writer import locked, replacing

PLAN = "images.jsonl"


@dataclass(frozen=True)
class PlannedShard:
    """A shard's number and the images that it is made of, in row order."""

    number: int
    photos: tuple[Photo, ...]


def make_plan(folder: Path, photos: Sequence[Photo], shard_size: int) -> list[PlannedShard]:
    """The store's plan, extended by the images that it does not hold yet, and written down.

    Raises:
        PipelineError: a plan file that is damaged.
    """
    with locked(folder):
        plan = read_plan(folder)
        known = {photo.image_id for shard in plan for photo in shard.photos}
        new = [photo for photo in photos if photo.image_id not in known]
        if not new:
            return plan
        first = plan[-1].number + 1 if plan else 0
        for index in range(0, len(new), shard_size):
            plan.append(PlannedShard(first + index // shard_size, tuple(new[index : index + shard_size])))
        with replacing(folder / PLAN) as file:
            for shard in plan:
                for photo in shard.photos:
                    row = {"image_id": photo.image_id, "path": photo.path, "root": photo.root, "shard": shard.number}
                    file.write(json.dumps(row).encode() + b"\n")
        return plan


def read_plan(folder: Path) -> list[PlannedShard]:
    """The plan of a store; empty where there is none yet."""
    path = folder / PLAN
    if not path.is_file():
        return []
    shards: dict[int, list[Photo]] = {}
    try:
        with path.open() as file:
            for line in file:
                row = json.loads(line)
                shards.setdefault(row["shard"], []).append(Photo(row["image_id"], row["path"], row["root"]))
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{path}: damaged ({error}); delete the store and extract again") from error
    return [PlannedShard(number, tuple(shards[number])) for number in sorted(shards)]
