"""Bringing a store up to date with its photos: what is new, what changed, what vanished.

README.md beside this file says when a photo counts as changed, what becomes of its shard, and what is refused.
"""

import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from configs.files import file_sha256
from pipeline.errors import PipelineError
from pipeline.files import disk_errors, locked
from pipeline.store.format import PLAN, commit_mark, commit_marks, repair_hint
from pipeline.store.manifest import read_manifest
from pipeline.store.marks import Mark, read_mark
from pipeline.store.plan import Photo, PlannedShard, check_roots, extended, is_as_planned, read_plan, write_plan
from pipeline.store.roots import INSIDE, absolute, is_remote, place_of
from pipeline.store.tensors import map_safetensors
from pipeline.store.writer import drop_images

MANY = 100  # images; to drop most of so many is work lost, and more likely a disk that is not mounted
State = Literal["same", "changed", "vanished"]


@dataclass(frozen=True)
class UpdatedPlan:
    """The plan of a store, and what became of it."""

    shards: list[PlannedShard]
    new: int = 0  # photos
    changed: int = 0
    vanished: int = 0
    lost_shards: int = 0  # whose tensors were missing or damaged

    def __str__(self) -> str:
        """ "3 changed, 1 vanished, 5 new photos"; empty where nothing but new photos was found."""
        counted = {"changed": self.changed, "vanished": self.vanished, "new": self.new}
        parts = [f"{number:,} {name}" for name, number in counted.items() if number]
        noun = "photo" if self.new + self.changed + self.vanished == 1 else "photos"
        lines = [f"{', '.join(parts)} {noun}"] if self.changed or self.vanished else []
        if self.lost_shards:
            lines.append(f"shards with lost or damaged tensors, made again: {self.lost_shards:,}")
        return "; ".join(lines)


def update_plan(
    folder: Path,
    photos: Sequence[Photo],
    shard_size: int,
    *,
    roots: Sequence[str | Path] | None = None,
    limit: int = 0,
    checksum: Callable[[str, str], str] = lambda root, path: file_sha256(Path(place_of(root, path))),
) -> UpdatedPlan:
    """The store's plan, brought up to date with its photos and written down.

    Args:
        folder: of the store, which has its manifest.
        photos: every photo there is, sorted by id; a new shard gets at most `shard_size` of them.
        roots: image folders, by `Photo.root`; None: those of the manifest.
        limit: plan only those of the first so many photos that are new; 0: all.
        checksum: SHA-256 of a photo, of its root and path; "" where it cannot be read.

    Raises:
        PipelineError: a plan that is damaged, shards that are not of it, other photos than those of the store, or a store
            that most photos vanished from.
    """
    with locked(folder):
        manifest = read_manifest(folder)
        folders = [absolute(str(root)) for root in (manifest["image_roots"] if roots is None else roots)]
        plan = read_plan(folder)
        check_roots(folder, plan, len(manifest["image_roots"]))
        listed = {photo.image_id: photo for photo in photos}
        marks = {mark.number: mark for mark in map(read_mark, commit_marks(folder))}
        planned = {shard.number: shard for shard in plan}
        for number, mark in marks.items():  # images that vanished may be dropped from it already, or from the plan
            if not is_as_planned(mark, planned.get(number), among=listed):
                raise PipelineError(f"{folder / PLAN}: does not plan the images of shard {number}", repair_hint(folder))
        moved = not _same_folders(folder, manifest, folders)
        local = [root for root, name in enumerate(folders) if not is_remote(name)]
        states = dict(
            _states(plan, marks, listed, moved, local, lambda photo: checksum(folders[photo.root], photo.path))
        )
        _refuse_other_photos(
            folder, manifest, folders, moved, [s for s, is_extracted in states.values() if is_extracted]
        )
        lost = _drop_outdated(folder, plan, marks, states)
        kept = [  # each with its photos as they are now
            replace(shard, photos=tuple(listed[p.image_id] for p in shard.photos if p.image_id in listed))
            for shard in plan
        ]
        known = {photo.image_id for shard in kept for photo in shard.photos}
        new = [photo for photo in photos[: limit or None] if photo.image_id not in known]
        shards = extended([shard for shard in kept if shard.photos], new, shard_size)
        if shards != plan:
            write_plan(folder, shards)
        found = [state for state, _ in states.values()]
        return UpdatedPlan(shards, len(new), found.count("changed"), found.count("vanished"), lost)


def _same_folders(folder: Path, manifest: Mapping[str, Any], folders: Sequence[str]) -> bool:
    """Whether these are the store's image folders, also when they were moved together with the store."""
    base = os.path.abspath(folder)
    relative = [
        os.path.normpath(os.path.join(base, root)) for root in manifest["relative_roots"] if not is_remote(root)
    ]
    if list(folders) in (manifest["image_roots"], relative):
        return True
    pairs = zip(folders, manifest["image_roots"], strict=True)
    return all(os.path.exists(old) and os.path.samefile(new, old) for new, old in pairs)


def _states(
    plan: Sequence[PlannedShard],
    marks: Mapping[int, Mark],
    listed: Mapping[str, Photo],
    moved: bool,
    local: Container[int],
    checksum: Callable[[Photo], str],
) -> Iterable[tuple[str, tuple[State, bool]]]:
    """Of every planned image: its id, what became of it, and whether it was extracted before.

    Size and time tell that a photo is the same, unless another file has both as well: an archive of frames, unpacked and renumbered.
    `local` are the roots whose files can be compared at little cost.
    """
    files = [photo for shard in plan for photo in shard.photos if photo.root in local and INSIDE not in photo.path]
    counted = Counter((photo.size, photo.mtime_ns) for photo in files)
    alike = {photo.image_id for photo in files if counted[photo.size, photo.mtime_ns] > 1}
    for shard in plan:
        mark = marks.get(shard.number)
        extracted = mark.all_ids if mark else set()
        for planned in shard.photos:
            found = listed.get(planned.image_id)
            if found is None:
                state: State = "vanished"
            elif mark is None:
                state = "same"
            elif planned.image_id not in extracted or (found.path, found.root) != (planned.path, planned.root):
                state = "changed"
            elif found == planned and not moved and planned.image_id not in alike:
                state = "same"
            else:
                state = "same" if checksum(found) == mark.photo_sha256.get(found.image_id, "") else "changed"
            yield planned.image_id, (state, mark is not None)


def _refuse_other_photos(
    folder: Path, manifest: Mapping[str, Any], folders: Sequence[str], moved: bool, states: Sequence[State]
) -> None:
    """Refuse a folder of the same name as the store's that holds other photos, and one that most photos vanished from."""
    same, vanished = states.count("same"), states.count("vanished")
    if moved:
        pairs = zip(manifest["image_roots"], folders, strict=True)
        is_copy = any(old != new and os.path.isdir(old) for old, new in pairs)
        if same < len(states) if is_copy else 2 * same <= len(states) > 0:
            raise PipelineError(
                f"{folder}: holds the photos of {', '.join(manifest['image_roots'])}; of its {len(states):,} photos "
                f"{same:,} are in {', '.join(folders)}",
                "choose another folder with --output",
            )
    elif vanished >= MANY and 2 * vanished > len(states):
        raise PipelineError(
            f"{folder}: {vanished:,} of its {len(states):,} photos are gone from {', '.join(folders)}",
            f"put them back, choose another folder with --output, or delete {folder} and extract again",
        )


def _drop_outdated(
    folder: Path, plan: Sequence[PlannedShard], marks: Mapping[int, Mark], states: Mapping[str, tuple[State, bool]]
) -> int:
    """Remove the marks of shards that are to be made again, and vanished images from the others; counts lost tensors."""
    lost = 0
    for shard in plan:
        mark = marks.get(shard.number)
        if mark is None:
            continue
        path = commit_mark(folder, shard.number)
        tensors = path.with_suffix(".safetensors")
        vanished = mark.all_ids - {p.image_id for p in shard.photos if states[p.image_id][0] != "vanished"}
        # A shard that is written again gets a new checksum, which would hide that its bytes had changed.
        is_lost = _is_lost(tensors) or bool(vanished and file_sha256(tensors) != mark.sha256)
        lost += is_lost
        if is_lost or any(states[photo.image_id][0] == "changed" for photo in shard.photos):
            with disk_errors(path):
                path.unlink()
        elif vanished:
            drop_images(folder, mark, vanished)
    return lost


def _is_lost(tensors: Path) -> bool:
    """Whether a file is missing or truncated. Its bytes are for `inspect` to verify."""
    try:
        map_safetensors(tensors)
    except PipelineError:
        return True
    return False
