"""Which image belongs to which shard, decided before any image is read.

The plan is a file of the store, `images.jsonl`: one row per image, shards in ascending order. It only grows: images
found later are planned into new shards. So a run that was killed, or shared among processes, makes the same shards.
Commit marks must agree with it: a plan that was lost or changed would leave images out, or do them twice.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import locked, replacing
from pipeline.store.format import Mark, commit_marks, read_mark, repair_hint, stays_inside
from pipeline.store.reader import read_manifest
from pipeline.store.writer import PLAN


@dataclass(frozen=True)
class Photo:
    """An image file: where it is, and the id that names it everywhere."""

    image_id: str  # path below its root; below the root's name where there are several roots
    path: str  # POSIX path below its root
    root: int  # index of the root


@dataclass(frozen=True)
class PlannedShard:
    """A shard's number and the images that it is made of, in row order."""

    number: int
    photos: tuple[Photo, ...]


def make_plan(folder: Path, photos: Sequence[Photo], shard_size: int) -> list[PlannedShard]:
    """The store's plan, extended by the images that it does not hold yet, and written down.

    Raises:
        PipelineError: a plan that is damaged, or shards that are not of it.
    """
    with locked(folder):
        plan = read_plan(folder)
        check_roots(folder, plan, len(read_manifest(folder)["image_roots"]))
        planned = {shard.number: shard for shard in plan}
        for mark in map(read_mark, commit_marks(folder)):
            if not planned_alike(mark, planned.get(mark.number)):
                raise PipelineError(
                    f"{folder / PLAN}: does not plan the images of shard {mark.number}", repair_hint(folder)
                )
        known = {photo.image_id for shard in plan for photo in shard.photos}
        new = [photo for photo in photos if photo.image_id not in known]
        if not new:
            return plan
        numbers = (number for number in count() if number not in planned)  # gaps come from a plan that was rebuilt
        for start in range(0, len(new), shard_size):
            plan.append(PlannedShard(next(numbers), tuple(new[start : start + shard_size])))
        plan.sort(key=lambda shard: shard.number)
        write_plan(folder, plan)
        return plan


def read_plan(folder: Path) -> list[PlannedShard]:
    """The plan of a store; empty where there is none yet.

    Raises:
        PipelineError: a plan that is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return []
    shards: dict[int, list[Photo]] = {}
    images = set()
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                number, photo = _row(line)
                shards.setdefault(number, []).append(photo)
                if photo.image_id in images:
                    raise ValueError(f"{photo.image_id!r} is there twice")
                images.add(photo.image_id)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PipelineError(f"{path}: damaged ({error})", repair_hint(folder)) from error
    return [PlannedShard(number, tuple(shards[number])) for number in sorted(shards)]


def write_plan(folder: Path, plan: Sequence[PlannedShard]) -> None:
    """Replace the plan of a store, which must be locked."""
    with replacing(folder / PLAN) as file:
        for shard in plan:
            for photo in shard.photos:
                row = {"image_id": photo.image_id, "path": photo.path, "root": photo.root, "shard": shard.number}
                file.write(json.dumps(row).encode() + b"\n")


def check_roots(folder: Path, plan: Sequence[PlannedShard], roots: int) -> None:
    """Refuse a plan with photos in folders that the store does not have."""
    if any(photo.root >= roots for shard in plan for photo in shard.photos):
        raise PipelineError(
            f"{folder / PLAN}: photos of more folders than the {roots} of its store", repair_hint(folder)
        )


def planned_alike(mark: Mark, shard: PlannedShard | None) -> bool:
    """Whether a mark holds the images that were planned, each from where it was planned to come."""
    if shard is None or len(shard.photos) != len(mark.image_ids) + len(mark.failures):
        return False
    place = {photo.image_id: (photo.path, photo.root) for photo in shard.photos}
    rows = zip(mark.image_ids, mark.paths, mark.roots, strict=True)
    return mark.all_ids == place.keys() and all(place[image_id] == (path, root) for image_id, path, root in rows)


def rebuilt_plan(marks: Sequence[Mark], roots: Sequence[str]) -> list[PlannedShard]:
    """The plan that some shards were made by. Images of shards that are not there are for the next extraction to plan.

    Args:
        marks: of the shards, without images that are in two of them.
        roots: the manifest's image_roots, which tell where a photo that failed was.
    """
    plan = []
    for mark in marks:
        rows = zip(mark.image_ids, mark.paths, mark.roots, strict=True)
        photos = [Photo(image_id, path, root) for image_id, path, root in rows if path is not None]
        for failure in mark.failures:
            image_id, path = failure["image_id"], failure["path"]
            photos.append(Photo(image_id, path, _root_of(image_id, path, roots)))
        plan.append(PlannedShard(mark.number, tuple(sorted(photos, key=lambda photo: photo.image_id))))
    return plan


def _root_of(image_id: str, path: str, roots: Sequence[str]) -> int:
    """The image folder that an id was made of: its name is the id's beginning where there are several."""
    name = image_id.removesuffix(path).removesuffix("/")
    named = [index for index, root in enumerate(roots) if os.path.basename(root) == name]
    there = [index for index in named if Path(roots[index], path).exists()]
    return (there or named or [0])[0]


def _row(line: str) -> tuple[int, Photo]:
    row = json.loads(line)
    number, photo = row["shard"], Photo(row["image_id"], row["path"], row["root"])
    if not (type(number) is int and type(photo.root) is int and number >= 0 <= photo.root):
        raise TypeError(f"shard {number!r}, root {photo.root!r}")
    if not isinstance(photo.image_id, str) or not isinstance(photo.path, str) or not stays_inside(photo.path):
        raise ValueError(f"path {photo.path!r}")
    return number, photo
