"""The shard format: names of files, tensors and their shapes. README.md beside this file is the specification.

Letters: n images of a shard, K regions per image, D feature dimensions.
"""

import re
from pathlib import Path

import numpy as np

FORMAT = "scan-pipeline/shards"
VERSION = 1
FEATURES = Path("features")  # of the workspace: where stores are looked for, and made unless --output says otherwise
MANIFEST = "manifest.json"
PLAN = "images.jsonl"
FAILURES = "failures.jsonl"
CAPTIONS = "captions_of_photos.json"  # that came with the photos, in Karpathy's layout
DAMAGED = "damaged"  # folder within a store, for what inspect --repair sets aside
MARK_NAME = re.compile(r"shard-(\d+)\.json", re.ASCII)


def tensor_shapes(num_regions: int, feature_dim: int) -> dict[str, tuple[tuple[int, ...], type | None]]:
    """The tensors of a shard: shape of a row, and type; None is the type of the store's features."""
    return {
        "features": ((num_regions, feature_dim), None),
        "boxes": ((num_regions, 4), np.float32),
        "object_ids": ((num_regions,), np.int32),
        "object_scores": ((num_regions,), np.float32),
        "attribute_ids": ((num_regions,), np.int32),
        "attribute_scores": ((num_regions,), np.float32),
        "image_sizes": ((2,), np.int32),  # height, width
    }


def commit_mark(folder: Path, number: int) -> Path:
    """The file whose presence says that a shard is complete; its tensors are beside it, in .safetensors."""
    return folder / f"shard-{number:05d}.json"


def commit_marks(folder: Path) -> list[Path]:
    """The commit marks of a store, in order."""
    return sorted((path for path in folder.glob("shard-*.json") if MARK_NAME.fullmatch(path.name)), key=shard_number)


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
    return f"repair it with: scan-pipeline inspect {folder} --repair"
