"""The shard format: names of files, tensors and their shapes. README.md beside this file is the specification.

Letters: n images of a shard, K regions per image, D feature dimensions.
"""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import PipelineError

FORMAT = "scan-pipeline/shards"
VERSION = 1
FEATURES = Path("features")  # of the workspace: where stores are looked for, and made unless --output says otherwise
MANIFEST = "manifest.json"
PLAN = "images.jsonl"
FAILURES = "failures.jsonl"
CAPTIONS = "captions_of_photos.json"  # that came with the photos, in Karpathy's layout
DAMAGED = "damaged"  # folder within a store, for what inspect --repair sets aside
MARK_NAME = re.compile(r"shard-(\d+)\.json", re.ASCII)


def tensor_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """The tensors of a store's shards: shape of a row, and type."""
    regions, number, index = manifest["num_regions"], np.dtype(np.float32), np.dtype(np.int32)
    return {
        "features": ((regions, manifest["feature_dim"]), np.dtype(manifest["dtype"])),
        "boxes": ((regions, 4), number),
        "object_ids": ((regions,), index),
        "object_scores": ((regions,), number),
        "attribute_ids": ((regions,), index),
        "attribute_scores": ((regions,), number),
        "image_sizes": ((2,), index),  # height, width
    }


def commit_mark(folder: Path, number: int) -> Path:
    """The file whose presence says that a shard is complete; its tensors are beside it, in .safetensors."""
    return folder / f"shard-{number:05d}.json"


def commit_marks(folder: Path) -> list[Path]:
    """The commit marks of a store, in order.

    Raises:
        PipelineError: a file of the store that this user may not read; nothing is damaged then.
    """
    marks = sorted((path for path in folder.glob("shard-*.json") if MARK_NAME.fullmatch(path.name)), key=shard_number)
    tensors = (mark.with_suffix(".safetensors") for mark in marks)
    for path in (folder / MANIFEST, folder / PLAN, *marks, *tensors):
        if not os.access(path, os.R_OK) and path.exists():
            raise PipelineError(
                f"{path}: no permission to read it", f"run as its owner, or: chmod a+r {shlex.quote(str(path))}"
            )
    return marks


def shard_number(mark: Path) -> int:
    """42 of shard-00042.json. ValueError for a file of another name."""
    match = MARK_NAME.fullmatch(mark.name)
    if not match:
        raise ValueError(f"file name {mark.name}")
    return int(match[1])


def stays_inside(path: str) -> bool:
    """Whether a POSIX path below a folder cannot lead out of it."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def repair_hint(folder: Path) -> str:
    """The remedy for a damaged file of a store."""
    return f"repair it with: scan-pipeline inspect {shlex.quote(str(folder))} --repair"
