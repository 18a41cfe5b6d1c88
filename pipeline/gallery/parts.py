"""Parts: the files of an index, each made from one shard of a store. README.md beside this file is the specification.

A part is a safetensors file that says what it was made from and the sha256 of its tensors. It takes its name when it is complete, so
the file is its own commit mark. Nothing in it depends on the machine or the time: the same shard and model give the same bytes.
"""

import ctypes
import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.store.tensors import map_safetensors

KEY = "scan-pipeline/index"  # one entry of metadata: safetensors writes several in no fixed order
VERSION = 1
LIBC = ctypes.CDLL(None)


def write_part(path: Path, arrays: Mapping[str, np.ndarray], source: Mapping[str, str]) -> None:
    """Write a part.

    Args:
        path: of the file; its folder is there.
        arrays: the tensors, by name.
        source: what they were made from, such as checksums of a shard and a model.

    Raises:
        PipelineError: a disk that is full or cannot be written to.
    """
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    about = json.dumps({"version": VERSION, "sha256": digest(ordered), **source}, sort_keys=True)
    with replacing(path) as file:
        file.write(save(ordered, {KEY: about}))


def read_part(path: Path, source: Mapping[str, str], *, verify: bool = False) -> dict[str, np.ndarray] | None:
    """The memory-mapped tensors of a part by name.

    Args:
        path: of the file.
        source: what the part must have been made from.
        verify: compare the bytes with their checksum as well, which reads all of them.

    Returns:
        None where there is no such part: no file, a truncated or damaged one, or one made from something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[KEY])
        sha256 = about.pop("sha256")
        arrays = map_safetensors(path)
        fits = about == {"version": VERSION, **source} and (not verify or digest(arrays) == sha256)
    except (OSError, SafetensorError, PipelineError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return arrays if fits else None


def read_ahead(addresses: np.ndarray, size: int) -> None:
    """Have the disk read some rows of memory-mapped arrays now, all together, and nothing else.

    Without it a row is read when it is touched, after the one before, and Linux reads megabytes around it.
    addresses, size: where each row begins (n,), and its bytes.
    """
    firsts = addresses // mmap.PAGESIZE * mmap.PAGESIZE
    for first, length in zip(firsts.tolist(), (addresses + size - firsts).tolist(), strict=True):
        LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_WILLNEED)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Checksum of arrays: their names, types, shapes and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha256.update(f"{name} {array.dtype} {array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).view(np.uint8).data)
    return sha256.hexdigest()
