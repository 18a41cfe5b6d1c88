"""Which image belongs to which shard, decided before any image is read.

The plan is a file of the store, `images.jsonl`: one row per image, shards in ascending order. It only grows: images
found later are planned into new shards. So a run that was killed, or shared among processes, makes the same shards.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.images import Photo
from pipeline.shard_writer import replacing

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
    plan = read_plan(folder)
    known = {photo.image_id for shard in plan for photo in shard.photos}
    new = [photo for photo in photos if photo.image_id not in known]
    first = plan[-1].number + 1 if plan else 0
    for index in range(0, len(new), shard_size):
        plan.append(PlannedShard(first + index // shard_size, tuple(new[index : index + shard_size])))
    if new:
        with replacing(folder / PLAN) as file:
            for shard in plan:
                for photo in shard.photos:
                    file.write(json.dumps({"shard": shard.number, **asdict(photo)}, sort_keys=True).encode() + b"\n")
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
