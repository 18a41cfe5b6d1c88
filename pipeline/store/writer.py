"""Writing a store. The commit mark of a shard comes last: until it is there the shard does not exist.

The same images give the same bytes: fixed order of tensors, sorted keys, no dates, no machine names. Any number of
processes may write to one store: what they share is replaced under a lock, and a shard that is committed stands.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from detector.regions import Regions
from pipeline.config import config_diff
from pipeline.errors import PipelineError
from pipeline.files import disk_errors, locked, remove_abandoned, rename, replacing, temporary_file, write_json
from pipeline.store.format import (
    CAPTIONS,
    DAMAGED,
    FAILURES,
    FORMAT,
    MANIFEST,
    MARK_NAME,
    PLAN,
    VERSION,
    commit_mark,
    commit_marks,
    tensor_shapes,
)
from pipeline.store.manifest import counts, identity, names_sha256, read_manifest, settings_sha256
from pipeline.store.marks import SEAL, Mark, read_mark, seal
from pipeline.store.plan import PlannedShard, is_still_planned
from pipeline.store.roots import relative as relative_root
from pipeline.store.tensors import map_safetensors

OTHER_FILES = {FAILURES, PLAN, DAMAGED, CAPTIONS}  # beside manifest and shards
# Of systems and people; no store writes or removes these, but for its lock
TOLERATED = {".DS_Store", ".gitignore", ".gitkeep", ".lock", "Thumbs.db", "captions.tsv", "desktop.ini", "lost+found"}


@dataclass
class ShardRows:
    """The rows of one shard while it is being made."""

    image_ids: list[str] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)  # below their root
    roots: list[int] = field(default_factory=list)  # index into the manifest's image_roots
    regions: list[Regions] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)  # image_id, path, reason
    photo_sha256: dict[str, str] = field(default_factory=dict)  # image_id -> of the file as it was read


def claim_store(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a new store's manifest, or refuse a folder that holds other features.

    Args:
        folder: of the store; made where it does not exist.
        manifest: num_regions, feature_dim, dtype, extraction, image_roots, object_names, attribute_names, has_boxes;
            optionally source, the file that is being imported.

    Returns:
        The manifest now in force.

    Raises:
        PipelineError: another kind of store, naming what differs; or a folder of something else.
    """
    relative = [relative_root(root, os.path.abspath(folder)) for root in manifest["image_roots"]]
    complete = {"format": FORMAT, "format_version": VERSION, "relative_roots": relative, **manifest}
    complete["names_sha256"] = names_sha256(manifest)
    with disk_errors(folder):
        if not (folder / MANIFEST).is_file() and folder.is_dir():
            stranger = _stranger(folder)
            if stranger and not (folder / MANIFEST).is_file():  # another process may be making it
                raise PipelineError(
                    f"{folder}: not empty and not a store (found {stranger})", "choose another with --output"
                )
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        remove_abandoned(folder)
        if (folder / MANIFEST).is_file():
            changed = config_diff(identity(read_manifest(folder)), identity(complete), ("store", "asked"))
            if changed:
                raise PipelineError(
                    f"{folder}: holds features made with other settings ({'; '.join(changed[:4])})",
                    "choose another folder with --output, or delete this one",
                )
        else:
            _refuse_foreign_shards(folder, complete)
            write_json(folder / MANIFEST, {**complete, "complete": False, "counts": counts(0, 0, 0)})
    return complete


def commit_shard(
    folder: Path, number: int, rows: ShardRows, manifest: Mapping[str, Any], *, planned: PlannedShard | None = None
) -> None:
    """Write a shard's tensors, then its commit mark; nothing where it is committed already, or no longer planned so.

    `planned` is what the rows were made of; None: there is no plan, as for an import.

    Raises:
        PipelineError: regions of another shape than the manifest's, features that are not finite in its type, a disk that
            takes no more, or a store whose manifest is gone or no longer of such features.
    """
    if len(set(rows.image_ids)) < len(rows.image_ids):
        image_id = next(name for name in rows.image_ids if rows.image_ids.count(name) > 1)
        raise PipelineError(f"{folder}: duplicate image id {image_id!r} in shard {number}")
    mark = commit_mark(folder, number)
    temporary, sha256 = _write_tensors(mark, _stack(rows, manifest))
    with locked(folder):
        now = read_manifest(folder)
        if mark.is_file() or any(now[key] != manifest[key] for key in ("num_regions", "feature_dim", "dtype")):
            os.unlink(temporary)
            if mark.is_file():  # another process was faster, and its mark has the checksum of its tensors
                return
            raise PipelineError(f"{folder}: has become a store of other features", "choose another with --output")
        if planned is not None and not is_still_planned(folder, planned):
            os.unlink(temporary)
            return
        rename(temporary, mark.with_suffix(".safetensors"))
        failed, photos, settings = rows.failures, rows.photo_sha256, settings_sha256(now)
        _write_mark(mark, Mark(number, rows.image_ids, rows.paths, rows.roots, failed, photos, sha256, settings))


def is_committed(folder: Path, number: int, rows: ShardRows, manifest: Mapping[str, Any]) -> bool:
    """Whether a shard is committed, with the content of these rows. Photos that came or went are brought up to date; of a photo
    that is another one by now, the checksum that is known stays, in `rows` too.

    Raises:
        PipelineError: it has other content.
    """
    path = commit_mark(folder, number)
    if not path.is_file():
        return False
    if not path.with_suffix(".safetensors").is_file():
        path.unlink()
        return False
    mark = read_mark(path)
    if mark.image_ids != rows.image_ids or mark.sha256 != _sha256(save(_stack(rows, manifest))):
        raise PipelineError(
            f"{path}: holds other images or features than what is imported",
            f"choose another folder with --output, or delete {folder}",
        )
    rows.photo_sha256 |= mark.photo_sha256
    if (mark.paths, mark.photo_sha256) != (rows.paths, rows.photo_sha256):
        _write_mark(path, replace(mark, paths=rows.paths, photo_sha256=rows.photo_sha256))
    return True


def drop_images(folder: Path, mark: Mark, image_ids: Set[str]) -> None:
    """Write a shard again without some of its images; without any left, remove it. The store must be locked.

    Killed meanwhile, it leaves a shard without a mark, which the next extraction makes again with the same bytes.
    """
    path = commit_mark(folder, mark.number)
    tensors = path.with_suffix(".safetensors")
    rows = [row for row, image_id in enumerate(mark.image_ids) if image_id not in image_ids]
    failures = [failure for failure in mark.failures if failure["image_id"] not in image_ids]
    with disk_errors(path):
        if not rows and not failures:
            path.unlink()
            tensors.unlink(missing_ok=True)
            return
        arrays = {name: np.ascontiguousarray(array[rows]) for name, array in map_safetensors(tensors).items()}
        path.unlink()
    temporary, sha256 = _write_tensors(path, arrays)
    rename(temporary, tensors)
    columns: dict[str, Any] = {
        name: [getattr(mark, name)[row] for row in rows] for name in ("image_ids", "paths", "roots")
    }
    photos = {name: value for name, value in mark.photo_sha256.items() if name not in image_ids}
    _write_mark(path, replace(mark, **columns, failures=failures, photo_sha256=photos, sha256=sha256))


def write_summary(folder: Path, manifest: Mapping[str, Any], planned_shards: int, *, begun: bool = False) -> None:
    """Bring what is derived from the commit marks up to date: `failures.jsonl`, and counts and completeness in the manifest.

    Args:
        folder: of the store.
        manifest: what `claim_store` returned.
        planned_shards: number of shards the store has once it is complete.
        begun: whether this process wrote it before, so that photos of another place are another process's.

    Raises:
        PipelineError: another process made another store of it.
    """
    with locked(folder):
        if (folder / MANIFEST).is_file():
            now = read_manifest(folder)
            changed = config_diff(identity(now), identity(manifest), ("store", "asked"))
            if begun and now["image_roots"] != manifest["image_roots"]:
                changed.append(f"of the photos in {', '.join(now['image_roots'])}")
            if changed:
                raise PipelineError(f"{folder}: has become another store meanwhile ({changed[0]})")
        shards, images, failures = 0, 0, []
        for mark in map(read_mark, commit_marks(folder)):
            shards += 1
            images += len(mark.image_ids)
            failures += mark.failures
        with replacing(folder / FAILURES) as file:
            for failure in failures:
                file.write(failure_line(failure))
        summary = {"complete": shards >= planned_shards, "counts": counts(images, len(failures), shards)}
        write_json(folder / MANIFEST, {**manifest, **summary})


def failure_line(failure: Mapping[str, str]) -> bytes:
    """A row of `failures.jsonl`."""
    return json.dumps(failure, sort_keys=True).encode() + b"\n"


def _write_tensors(mark: Path, arrays: dict[str, np.ndarray]) -> tuple[str, str]:
    """Write the tensors of a shard under a temporary name: that name, and the sha256 of the file."""
    content = save(arrays)
    with temporary_file(mark.with_suffix(".safetensors")) as file:
        file.write(content)
    return file.name, _sha256(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_mark(path: Path, mark: Mark) -> None:
    content = asdict(mark)
    del content["number"]  # it is the file's name
    write_json(path, {**content, SEAL: seal(path.name, content)})


def _stranger(folder: Path) -> str:
    """The first file of a folder without a manifest that no store has; "" where there is none."""
    names = sorted(path.name for path in folder.iterdir())
    is_store = DAMAGED in names or any(map(MARK_NAME.fullmatch, names))  # else a plan or captions are somebody's data
    known = TOLERATED | OTHER_FILES if is_store else TOLERATED
    return next(
        (
            name
            for name in names
            if name not in known
            and not MARK_NAME.fullmatch(name.replace(".safetensors", ".json"))
            and not (name.startswith(".") and name.endswith(".tmp"))  # of a process that was killed
        ),
        "",
    )


def _refuse_foreign_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A store that lost its manifest gets it again from the run that made its shards, and from no other."""
    wanted = settings_sha256(manifest)
    for mark in commit_marks(folder):
        if read_mark(mark).settings_sha256 != wanted:
            raise PipelineError(
                f"{folder}: lost its {MANIFEST}, and {mark.name} was made with other settings",
                "run the command that made it, or choose another folder with --output",
            )


def _stack(rows: ShardRows, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a shard, each (n, …)."""
    arrays = {}
    for name, (shape, dtype) in tensor_shapes(manifest).items():
        array = np.empty((len(rows.regions), *shape), dtype)
        for row, regions in enumerate(rows.regions):
            value = regions.image_size if name == "image_sizes" else getattr(regions, name)
            if np.shape(value) != shape:
                raise PipelineError(f"{rows.image_ids[row]}: {name} of shape {np.shape(value)}, expected {shape}")
            with np.errstate(over="ignore"):
                array[row] = value
            if not np.isfinite(array[row]).all():
                raise PipelineError(f"{rows.image_ids[row]}: {name} that are not finite numbers as {array.dtype}")
            if np.any(value) and not np.any(array[row]):
                raise PipelineError(
                    f"{rows.image_ids[row]}: {name} too small for {array.dtype}: all become 0", "use --dtype float32"
                )
        arrays[name] = array
    return arrays
