"""The commit mark of a shard: the JSON file beside its tensors that says which images they are of.

README.md beside this file specifies it. The checksum of the settings that the shard was made with tells a shard of another
store, and lets a lost manifest be written again; those of the photos as they were read tell one that changed since.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.store.format import repair_hint, shard_number

SEAL = "mark_sha256"


@dataclass(frozen=True)
class Mark:
    """What a commit mark says."""

    number: int  # of the shard
    image_ids: list[str]  # (n,) in row order
    paths: list[str | None]  # (n,) of the photos, POSIX, below their root; None: no photo known
    roots: list[int]  # (n,) index into the manifest's image_roots
    failures: list[dict[str, str]]  # image_id, path, reason
    photo_sha256: dict[str, str]  # image_id -> of the file as it was read; not of files that could not be read
    sha256: str  # of the tensors file
    settings_sha256: str  # of the manifest's settings

    @property
    def all_ids(self) -> set[str]:
        """Images that the shard was made of, failed ones included."""
        return {*self.image_ids, *(failure["image_id"] for failure in self.failures)}


def read_mark(path: Path) -> Mark:
    """Read a commit mark.

    Raises:
        PipelineError: not readable, not a commit mark, or one that changed since it was written.
    """
    content = read_json(path, "a shard's commit mark", repair_hint(path.parent))
    if content.get(SEAL) != seal(path.name, content):
        raise PipelineError(
            f"{path}: changed since it was written (its own checksum differs)", repair_hint(path.parent)
        )
    try:
        return _parse(path, content)
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{path}: not a shard's commit mark ({error!r})", repair_hint(path.parent)) from error


def seal(name: str, content: Mapping[str, Any]) -> str:
    """Checksum of a mark under its file name: a mark that was copied to another number is noticed as well."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(f"{name}\n{json.dumps(rest, sort_keys=True)}".encode()).hexdigest()


def _parse(path: Path, content: Mapping[str, Any]) -> Mark:
    mark = Mark(
        shard_number(path),
        _list_of(str, content["image_ids"]),
        _list_of((str, type(None)), content["paths"]),
        _list_of(int, content["roots"]),
        _list_of(dict, content["failures"]),
        content["photo_sha256"],
        content["sha256"],
        content["settings_sha256"],
    )
    if not isinstance(mark.photo_sha256, dict):
        raise TypeError(f"photo_sha256 of type {type(mark.photo_sha256).__name__}")
    _list_of(str, [mark.sha256, mark.settings_sha256, *mark.photo_sha256.values()])
    if any(len(bytes.fromhex(sha256)) != 32 for sha256 in mark.photo_sha256.values()):
        raise ValueError("photo_sha256 holds what is not a SHA-256")
    for failure in mark.failures:
        _list_of(str, [failure["image_id"], failure["path"], failure["reason"]])
    if not len(mark.image_ids) == len(mark.paths) == len(mark.roots):
        raise ValueError(f"{len(mark.image_ids)} ids, {len(mark.paths)} paths, {len(mark.roots)} roots")
    if len(mark.all_ids) < len(mark.image_ids) + len(mark.failures):
        raise ValueError("duplicate image id")
    return mark


def _list_of(kind: Any, values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"found a {type(values).__name__}, expected a list")
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"found a {type(value).__name__} in a list")
    return values
