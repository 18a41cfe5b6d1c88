"""Which image belongs to which shard, decided before any image is read.

The plan is a file of the store, `images.jsonl`: one row per image, shards in ascending order. Images found later are planned
into new shards, so a run that was killed, or shared among processes, makes the same shards. Images that changed are
extracted again where they are; those that vanished are dropped. Commit marks must agree with the plan: one that was lost or
changed would leave images out, or extract them twice.
"""

import json
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.store.format import PLAN, repair_hint, stays_inside
from pipeline.store.marks import Mark


@dataclass(frozen=True)
class Photo:
    """An image file: where it is, the id that names it everywhere, and what tells whether it changed."""

    image_id: str  # path below its root; below the root's name where there are several roots
    path: str  # POSIX path below its root
    root: int  # index of the root
    size: int = 0  # bytes; 0, with a time of 0, where it is not known or there is no file
    mtime_ns: int = 0  # of its last modification, since 1970


@dataclass(frozen=True)
class PlannedShard:
    """A shard's number and the images that it is made of, in row order."""

    number: int
    photos: tuple[Photo, ...]


def extended(plan: Sequence[PlannedShard], new: Sequence[Photo], shard_size: int) -> list[PlannedShard]:
    """The plan with more images, in new shards."""
    taken = {shard.number for shard in plan}
    numbers = (number for number in count() if number not in taken)  # gaps: a plan that was rebuilt, or dropped images
    shards = list(plan)
    for start in range(0, len(new), shard_size):
        shards.append(PlannedShard(next(numbers), tuple(new[start : start + shard_size])))
    return sorted(shards, key=lambda shard: shard.number)


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
                    raise ValueError(f"duplicate image id {photo.image_id!r}")
                images.add(photo.image_id)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PipelineError(f"{path}: damaged ({error})", repair_hint(folder)) from error
    return [PlannedShard(number, tuple(shards[number])) for number in sorted(shards)]


def planned_photos(folder: Path) -> Iterator[Photo]:
    """The photos of the plan of a store, one after another; none where there is no plan, or after a damaged row."""
    with (
        suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        (folder / PLAN).open(encoding="utf-8") as file,
    ):
        for line in file:
            yield _row(line)[1]


def write_plan(folder: Path, plan: Sequence[PlannedShard]) -> None:
    """Replace the plan of a store, which must be locked."""
    with replacing(folder / PLAN) as file:
        for shard in plan:
            for photo in shard.photos:
                file.write(json.dumps({**asdict(photo), "shard": shard.number}).encode() + b"\n")


def is_still_planned(folder: Path, shard: PlannedShard) -> bool:
    """Whether the plan of a store, which must be locked, still has a shard as it was read.

    Another process may have found meanwhile that one of its photos changed: what was read before is not to be kept.
    """
    try:
        status = (folder / PLAN).stat()
    except FileNotFoundError:
        return True  # a lost plan is for `update_plan` and `inspect` to tell
    return shard in _shards(folder, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1)
def _shards(folder: Path, version: tuple[int, ...]) -> frozenset[PlannedShard]:
    return frozenset(read_plan(folder))


def check_roots(folder: Path, plan: Sequence[PlannedShard], roots: int) -> None:
    """Refuse a plan with photos in folders that the store does not have."""
    if any(photo.root >= roots for shard in plan for photo in shard.photos):
        raise PipelineError(
            f"{folder / PLAN}: photos of more folders than the {roots} of its store", repair_hint(folder)
        )


def is_as_planned(mark: Mark, shard: PlannedShard | None, among: Container[str] | None = None) -> bool:
    """Whether the images of a mark were planned for its shard, each from where it came; `shard` None: it is not planned.

    Some of the plan may be missing from the mark: those that vanished, when an update was killed. `among` limits the
    comparison to these image ids.
    """
    if shard is None:
        return False
    place = {photo.image_id: (photo.path, photo.root) for photo in shard.photos}
    rows = zip(mark.image_ids, mark.paths, mark.roots, strict=True)
    came_from = {image_id: (path, root) for image_id, path, root in rows}
    compared = [image_id for image_id in mark.all_ids if among is None or image_id in among]
    return all(
        image_id in place and came_from.get(image_id, place[image_id]) == place[image_id] for image_id in compared
    )


def rebuilt_plan(marks: Sequence[Mark], roots: Sequence[str]) -> list[PlannedShard]:
    """The plan that some shards were made by. The next extraction plans the images of shards that are missing.

    No image is in two of the marks. `roots` are the manifest's image_roots, which tell where a photo that failed was.
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
    number = row.pop("shard")
    photo = Photo(**row)
    integers = (number, photo.root, photo.size, photo.mtime_ns)
    if not all(type(value) is int for value in integers) or min(integers[:3]) < 0:
        raise TypeError(f"shard, root, size and time {integers}")
    if not isinstance(photo.image_id, str) or not isinstance(photo.path, str) or not stays_inside(photo.path):
        raise ValueError(f"path {photo.path!r}")
    return number, photo
