"""Files that are either the old or the new one, whenever the process is killed."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a hidden temporary name, and give it its own once it is on disk.

    The matcher has the same few lines: neither package may import the other.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
