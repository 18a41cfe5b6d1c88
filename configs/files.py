"""Files that are either the old or the new one, whenever the process is killed; their checksums, and JSON without loss."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a hidden temporary name, and give it its own once it is on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Checksum of a regular file; "" where there is none that can be read."""
    try:
        with open(path, "rb", opener=open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except (OSError, ValueError):  # ValueError: a path that no file system has, with a NUL or a lone surrogate
        return ""


def parse_json(text: str | bytes) -> Any:
    """What JSON says. ValueError: not JSON, or an object with a key twice, of whose values one would be lost."""
    return json.loads(text, object_pairs_hook=each_once)


def each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Keys with their values. ValueError: a key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r:.80}")
    return found


def json_sha256(content: Any) -> str:
    """Checksum of what JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_at_once(path: str, flags: int) -> int:
    """An opener that does not wait for a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)
