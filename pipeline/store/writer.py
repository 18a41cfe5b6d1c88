"""Writing a store: every file under a temporary name first, then on disk, then in place. The commit mark comes last.

The same images give the same bytes: fixed order of tensors, sorted keys, no dates, no machine names. Any number of
processes may write to one store: what they share is replaced under a lock, and a shard that is there already stands.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np

from detector.regions import Regions
from pipeline.config import differences
from pipeline.errors import PipelineError
from pipeline.store.format import MARK_NAME, SEAL, SETTINGS, commit_marks, read_mark, seal, settings_sha256
from pipeline.store.reader import FORMAT, MANIFEST, VERSION, read_manifest, tensor_shapes

FAILURES = "failures.jsonl"
PLAN = "images.jsonl"
DAMAGED = "damaged"  # folder within a store, for what inspect --repair sets aside
OURS = {FAILURES, PLAN, DAMAGED, "captions.tsv"}  # beside manifest and shards
ABANDONED = 24 * 3600  # seconds; no file takes a day to write
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
    with _temporary(tensors) as file:
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
        _put(file.name, tensors)
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
    with _explained(folder):
        if not (folder / MANIFEST).is_file() and folder.is_dir():
            strangers = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name))
            if strangers and not (folder / MANIFEST).is_file():  # another process may be making it
                raise PipelineError(
                    f"{folder}: not empty and not a store (found {strangers[0]}); choose another with --output"
                )
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        sweep(folder)
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old or the new one, whole."""
    with replacing(path) as file:
        file.write(json.dumps(content, sort_keys=True).encode() + b"\n")


@contextmanager
def replacing(path: Path) -> Iterator[BufferedWriter]:
    """A file to write that takes its name only when it is whole and on disk.

    Raises:
        PipelineError: a disk that is full or takes no writing; then the old file stands.
    """
    with _temporary(path) as file:
        yield file
    _put(file.name, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a store to ourselves, against other processes. A process that dies lets go of it."""
    with _explained(folder):
        file = open(folder / ".lock", "wb")  # noqa: SIM115 (closed below, where what the holder raises is its own)
    with file:
        with suppress(OSError):  # a file system without locks: then one process at a time is the user's business
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _temporary(path: Path) -> Iterator[BufferedWriter]:
    """A hidden file beside `path`, on disk at the end, removed when something goes wrong."""
    name = path.with_name(f".{path.name}{_owner()}{os.getpid()}.tmp")
    try:
        with _explained(path), name.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # the first error counts
            name.unlink(missing_ok=True)
        raise


def _put(temporary: str | Path, path: Path) -> None:
    with _explained(path):
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the name, too, has to reach the disk
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What a file system says when it takes no writing, as one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to continue"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            remedy = "expected a folder that can be written to; choose another with --output"
        else:
            remedy = "see to the disk and run the same command again to continue"
        raise PipelineError(f"{path}: {error.strerror or error}; {remedy}") from error


def _owner() -> str:
    """Marks temporary files of this machine; their process id follows."""
    return f".{platform.node().replace('.', '-')}."


def temporary_files(folder: Path) -> list[Path]:
    """Files that processes are writing, or were writing when they were killed."""
    return sorted(folder.glob(".*.tmp"))


def sweep(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: dead ones on this machine, old ones on any."""
    for path in temporary_files(folder):
        with suppress(FileNotFoundError):  # another process sweeps as well
            if _is_abandoned(path):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    if time.time() - path.stat().st_mtime > ABANDONED:
        return True
    if _owner() not in path.name:
        return False
    try:
        os.kill(int(path.name.split(".")[-2]), 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return True
    except PermissionError:
        pass  # somebody else's, and alive
    return False


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
