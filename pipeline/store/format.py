"""The commit mark of a shard: the JSON file beside its tensors that says which images they are of.

A mark carries two checksums beside that of its tensors: of the settings that the shard was made with, so that a lost
manifest can be written again and a shard of another store is noticed, and of itself, so that a flipped bit is.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json

SETTINGS = ("num_regions", "feature_dim", "dtype", "has_boxes", "extraction", "source")  # of a manifest
SEAL = "mark_sha256"
MARK_NAME = re.compile(r"shard-(\d+)\.json", re.ASCII)


@dataclass(frozen=True)
class Mark:
    """What a commit mark says."""

    number: int  # of the shard
    image_ids: list[str]  # (n,) in row order
    paths: list[str | None]  # (n,) of the photos, POSIX, below their root
    roots: list[int]  # (n,) index into the manifest's image_roots
    failures: list[dict[str, str]]  # image_id, path, reason
    sha256: str  # of the tensors file
    settings_sha256: str | None  # None: written before marks had it
    sealed: bool | None  # whether its own checksum is right; None: written before marks had it

    @property
    def all_ids(self) -> set[str]:
        """Images that the shard was made of, failed ones included."""
        return {*self.image_ids, *(failure["image_id"] for failure in self.failures)}


def read_mark(path: Path) -> Mark:
    """Read a commit mark.

    Raises:
        PipelineError: not readable, or not a commit mark.
    """
    content = read_json(path, "a shard's commit mark", repair_hint(path.parent))
    try:
        mark = Mark(
            _number(path),
            _list_of(str, content["image_ids"]),
            _list_of((str, type(None)), content["paths"]),
            _list_of(int, content["roots"]),
            _list_of(dict, content["failures"]),
            _list_of(str, [content["sha256"]])[0],
            content.get("settings_sha256"),
            content[SEAL] == seal(path.name, content) if SEAL in content else None,
        )
        if not len(mark.image_ids) == len(mark.paths) == len(mark.roots):
            raise ValueError(f"{len(mark.image_ids)} ids, {len(mark.paths)} paths, {len(mark.roots)} roots")
        for failure in mark.failures:
            _list_of(str, [failure["image_id"], failure["path"], failure["reason"]])
        if len(mark.all_ids) < len(mark.image_ids) + len(mark.failures):
            raise ValueError("an image is there twice")
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{path}: not a shard's commit mark ({error!r})", repair_hint(path.parent)) from error
    return mark


def commit_marks(folder: Path) -> list[Path]:
    """The commit marks of a store's shards, in order."""
    return sorted((path for path in folder.glob("shard-*.json") if MARK_NAME.fullmatch(path.name)), key=_number)


def seal(name: str, content: Mapping[str, Any]) -> str:
    """Checksum of a mark under its file name: a mark that was copied to another number is noticed as well."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return _sha256(f"{name}\n{json.dumps(rest, sort_keys=True)}")


def settings_sha256(manifest: Mapping[str, Any]) -> str:
    """Checksum of everything in a manifest that decides what its features are."""
    return _sha256(json.dumps({key: manifest.get(key) for key in SETTINGS}, sort_keys=True))


def stays_inside(path: str) -> bool:
    """Whether a POSIX path below a folder cannot lead out of it."""
    return not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def repair_hint(folder: Path) -> str:
    """The remedy for a damaged file of a store."""
    return f"repair it with: scan-pipeline inspect {folder} --repair"


def _number(path: Path) -> int:
    match = MARK_NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"named {path.name}")
    return int(match[1])


def _list_of(kind: Any, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"found a {type(values).__name__} for a list")
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"found a {type(value).__name__} in a list")
    return values


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
