"""Writing a store: every file under a temporary name first, then on disk, then in place. The commit mark comes last.

The same images give the same bytes: fixed order of tensors, sorted keys, no dates, no machine names. Any number of
processes may write to one store: what they share is replaced under a lock, and a shard that is there already stands.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from detector.regions import Regions
from pipeline.config import differences
from pipeline.errors import PipelineError
from pipeline.files import disk_errors, locked, remove_abandoned, rename, replacing, temporary_file, write_json
from pipeline.store.format import MARK_NAME, SEAL, SETTINGS, commit_marks, read_mark, seal, settings_sha256
from pipeline.store.reader import FORMAT, MANIFEST, VERSION, read_manifest, tensor_shapes

FAILURES = "failures.jsonl"
PLAN = "images.jsonl"
DAMAGED = "damaged"  # folder within a store, for what inspect --repair sets aside
OURS = {FAILURES, PLAN, DAMAGED, "captions.tsv"}  # beside manifest and shards
SAFETENSORS_NAMES = {"float16": "F16", "float32": "F32", "int32": "I32"}


@dataclass
class ShardRows:
    """The rows of one shard while it is being made."""

    image_ids: list[str] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)  # below their root
    roots: list[int] = field(default_factory=list)  # index into the manifest's image_roots
    regions: list[Regions] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)  # image_id, path, reason


def shard_name(number: int) -> str:
    """ "shard-00042"."""
    return f"shard-{number:05d}"


def commit_mark(folder: Path, number: int) -> Path:
    """The file whose presence says that a shard is whole."""
    return folder / f"{shard_name(number)}.json"


def commit_shard(folder: Path, number: int, rows: ShardRows, *, num_regions: int, feature_dim: int, dtype: str) -> None:
    """Write a shard's tensors, then its commit mark. Until the mark is there the shard does not exist.

    Args:
        folder: of the store.
        number: of the shard.
        rows: its images; each with exactly K regions of D features.
        num_regions, feature_dim: K, D.
        dtype: "float16" or "float32", of the features.

    Raises:
        PipelineError: regions of another shape, features that are not finite in that type, a disk that takes no more, or
            a store whose manifest is gone or no longer of such features.
    """
    if len(set(rows.image_ids)) < len(rows.image_ids):
        image_id = next(name for name in rows.image_ids if rows.image_ids.count(name) > 1)
        raise PipelineError(f"{folder}: image {image_id} is there twice in what shard {number} is made of")
    arrays = _stack(rows, num_regions, feature_dim, np.dtype(dtype))
    tensors, mark = folder / f"{shard_name(number)}.safetensors", commit_mark(folder, number)
    with temporary_file(tensors) as file:
        sha256 = write_safetensors(file, arrays)
    content = {
        "image_ids": rows.image_ids,
        "paths": rows.paths,
        "roots": rows.roots,
        "failures": rows.failures,
        "sha256": sha256,
    }
    with locked(folder):
        manifest = read_manifest(folder)
        found = (manifest["num_regions"], manifest["feature_dim"], manifest["dtype"])
        if mark.is_file() or found != (num_regions, feature_dim, dtype):
            os.unlink(file.name)
            if mark.is_file():  # another process was faster: to replace its tensors would belie its checksum
                return
            raise PipelineError(f"{folder}: has become a store of other features; choose another with --output")
        content["settings_sha256"] = settings_sha256(manifest)
        rename(file.name, tensors)
        write_json(mark, {**content, SEAL: seal(mark.name, content)})


def write_safetensors(file: BufferedWriter, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays in the order given; returns the sha256 of all bytes written."""
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        kind = SAFETENSORS_NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)  # so that the tensors start aligned
    digest = hashlib.sha256()
    for chunk in (struct.pack("<Q", len(encoded)), encoded, *(array.tobytes() for array in arrays.values())):
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()


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
    complete = {"format": FORMAT, "format_version": VERSION, **manifest}
    with disk_errors(folder):
        if not (folder / MANIFEST).is_file() and folder.is_dir():
            strangers = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
            if strangers and not (folder / MANIFEST).is_file():  # another process may be making it
                raise PipelineError(
                    f"{folder}: not empty and not a store (found {strangers[0]}); choose another with --output"
                )
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        remove_abandoned(folder)
        if (folder / MANIFEST).is_file():
            changed = differences(_identity(read_manifest(folder)), _identity(complete))
            if changed:
                raise PipelineError(
                    f"{folder}: holds features made with other settings ({'; '.join(changed[:4])}); "
                    "choose another folder with --output, or delete this one"
                )
        else:
            _refuse_foreign_shards(folder, complete)
            write_json(folder / MANIFEST, {**complete, "complete": False, "counts": counts(0, 0, 0)})
    return complete


def _refuse_foreign_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    """A store that lost its manifest gets it again from the run that made its shards, and from no other."""
    wanted = settings_sha256(manifest)
    for mark in commit_marks(folder):
        if read_mark(mark).settings_sha256 != wanted:
            raise PipelineError(
                f"{folder}: lost its {MANIFEST}, and {mark.name} was made with other settings or before marks told; run "
                "the command that made it, or choose another folder with --output"
            )


def write_summary(folder: Path, manifest: Mapping[str, Any], planned_shards: int) -> None:
    """Bring what is derived from the commit marks up to date: `failures.jsonl`, and counts and completeness in the manifest.

    Args:
        folder: of the store.
        manifest: what `claim_store` returned.
        planned_shards: number of shards the store has once it is complete.
    """
    with locked(folder):
        if (folder / MANIFEST).is_file():
            changed = differences(_identity(read_manifest(folder)), _identity(manifest))
            if changed:
                raise PipelineError(f"{folder}: has become another store meanwhile ({changed[0]})")
        marks, images, failures = 0, 0, []
        for mark in map(read_mark, commit_marks(folder)):
            marks += 1
            images += len(mark.image_ids)
            failures += mark.failures
        with replacing(folder / FAILURES) as file:
            for failure in failures:
                file.write(failure_line(failure))
        summary = {"complete": marks >= planned_shards, "counts": counts(images, len(failures), marks)}
        write_json(folder / MANIFEST, {**manifest, **summary})


def failure_line(failure: Mapping[str, str]) -> bytes:
    """A row of `failures.jsonl`."""
    return json.dumps(failure, sort_keys=True).encode() + b"\n"


def _is_ours(name: str) -> bool:
    """Whether a file may lie in a store that lost its manifest."""
    return name.startswith(".") or name in OURS or bool(MARK_NAME.fullmatch(f"{Path(name).stem}.json"))


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay the same when a store grows. Photos may have moved, but not to a folder of another name."""
    roots = [os.path.basename(root) for root in manifest["image_roots"]]
    return {**{key: manifest.get(key) for key in SETTINGS}, "images": roots}


def counts(images: int, failures: int, shards: int) -> dict[str, int]:
    """What the manifest counts."""
    return {"images": images, "failures": failures, "shards": shards}


def _stack(rows: ShardRows, num_regions: int, feature_dim: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The arrays of a shard, each (n, …)."""
    arrays = {}
    for name, (shape, fixed) in tensor_shapes(num_regions, feature_dim).items():
        array = np.empty((len(rows.regions), *shape), fixed or dtype)
        for row, one in enumerate(rows.regions):
            value = one.image_size if name == "image_sizes" else getattr(one, name)
            if np.shape(value) != shape:
                raise PipelineError(f"{rows.image_ids[row]}: {name} of shape {np.shape(value)}, expected {shape}")
            with np.errstate(over="ignore"):
                array[row] = value
            if not np.isfinite(array[row]).all():
                raise PipelineError(f"{rows.image_ids[row]}: {name} that are not finite numbers as {array.dtype}")
        arrays[name] = array
    return arrays
