"""Writing a store: every file under a temporary name first, then on disk, then in place. The commit mark comes last.

The same images give the same bytes: fixed order of tensors, sorted keys, no dates, no machine names.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from detector.regions import Regions
from pipeline.config import differences
from pipeline.errors import PipelineError
from pipeline.shards import FORMAT, MANIFEST, TENSORS, VERSION, commit_marks, read_json, read_manifest

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


def commit_shard(folder: Path, number: int, rows: ShardRows, *, num_regions: int, feature_dim: int, dtype: str) -> None:
    """Write a shard's tensors, then its commit mark. Until the mark is there the shard does not exist.

    Args:
        folder: of the store.
        number: of the shard.
        rows: its images; each with exactly K regions of D features.
        num_regions, feature_dim: K, D.
        dtype: "float16" or "float32", of the features.
    """
    arrays = _stack(rows.regions, num_regions, feature_dim, np.dtype(dtype))
    name = shard_name(number)
    with replacing(folder / f"{name}.safetensors") as file:
        sha256 = write_safetensors(file, arrays)
    mark = {
        "image_ids": rows.image_ids,
        "paths": rows.paths,
        "roots": rows.roots,
        "failures": rows.failures,
        "sha256": sha256,
    }
    write_json(folder / f"{name}.json", mark)


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
    for chunk in (struct.pack("<Q", len(encoded)), encoded, *(np.ascontiguousarray(a).data for a in arrays.values())):
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with counts taken from the commit marks, and `failures.jsonl` derived from them."""
    images, failures = 0, []
    marks = commit_marks(folder)
    for mark in marks:
        content = read_json(mark, "a shard's commit mark")
        images += len(content["image_ids"])
        failures += content["failures"]
    with replacing(folder / "failures.jsonl") as file:
        for failure in failures:
            file.write(json.dumps(failure, sort_keys=True).encode() + b"\n")
    counts = {"images": images, "failures": len(failures), "shards": len(marks)}
    write_json(folder / MANIFEST, {**manifest, "counts": counts})


def claim_store(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write a new store's manifest, or refuse a folder that holds other features.

    Args:
        folder: of the store; made where it does not exist.
        manifest: num_regions, feature_dim, dtype, extraction, image_roots, object_names, attribute_names, has_boxes.

    Returns:
        The manifest now in force, image roots of earlier runs included.

    Raises:
        PipelineError: another kind of store, naming what differs; or a folder of something else.
    """
    complete = {"format": FORMAT, "format_version": VERSION, **manifest, "complete": False}
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
        changed = differences(_identity(found), _identity(complete))
        if changed:
            raise PipelineError(
                f"{folder}: holds features made with other settings ({'; '.join(changed[:4])}); "
                "choose another folder with --output, or delete this one"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        first = min(path.name for path in folder.iterdir())
        if not first.startswith((MANIFEST, ".")):
            raise PipelineError(f"{folder}: not empty and not a store (found {first}); choose another with --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, complete)
    return complete


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay the same when a store grows. Photos may have moved, but not to a folder of another name."""
    keys = ("num_regions", "feature_dim", "dtype", "shard_size", "has_boxes", "extraction")
    roots = [Path(root).name for root in manifest["image_roots"]]
    return {**{key: manifest.get(key) for key in keys}, "images": roots}


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old or the new one, whole."""
    with replacing(path) as file:
        file.write(json.dumps(content, sort_keys=True).encode() + b"\n")


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """A file to write that takes its name only when it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stack(regions: Sequence[Regions], num_regions: int, feature_dim: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    shapes = {"features": (num_regions, feature_dim), "boxes": (num_regions, 4), "image_sizes": (2,)}
    types = {"features": dtype, "object_ids": np.dtype(np.int32), "attribute_ids": np.dtype(np.int32)}
    types["image_sizes"] = np.dtype(np.int32)
    arrays = {}
    for name in TENSORS:
        array = np.empty((len(regions), *shapes.get(name, (num_regions,))), types.get(name, np.dtype(np.float32)))
        for row, one in enumerate(regions):
            array[row] = one.image_size if name == "image_sizes" else getattr(one, name)
        arrays[name] = array
    return arrays
