"""Files on disk: what they are, parts of them, and the names that a pattern means."""

import glob
import itertools
import os
import re
from typing import BinaryIO, NamedTuple

from pipeline.errors import PipelineError
from pipeline.store.roots import PATTERN

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"),
}
AGAIN = "run the same command again to continue"


class Status(NamedTuple):
    """What tells whether a file changed."""

    size: int  # bytes
    mtime_ns: int  # of its last modification, since 1970


def status(place: str) -> Status:
    """Size and time of a file.

    Raises:
        PipelineError: not there.
    """
    try:
        found = os.stat(place)
    except OSError as error:
        raise PipelineError(f"{place}: {error.strerror}", f"put it back, and {AGAIN}") from error
    return Status(found.st_size, found.st_mtime_ns)


def open_file(place: str) -> BinaryIO:
    """A file to read and to seek in.

    Raises:
        PipelineError: gone.
    """
    try:
        return open(place, "rb")
    except OSError as error:
        raise PipelineError(f"{place}: {error.strerror}", f"put it back, and {AGAIN}") from error


def read_range(place: str, start: int, size: int, *, ahead: int = 0) -> bytes:
    """Some bytes of a file; fewer where it ends.

    Args:
        place: of the file.
        start, size: which bytes.
        ahead: bytes that are worth fetching with them, as they will be asked for next.
    """
    with open_file(place) as file:
        file.seek(start)
        return file.read(size)


def matching(pattern: str) -> list[str]:
    """The files that a pattern means: each name of its braces, and what is there for its wildcards.

    Raises:
        PipelineError: wildcards that fit nothing.
    """
    names: list[str] = []
    for name in _expanded(pattern):
        found = sorted(glob.glob(name)) if PATTERN & set(name) else [name]
        if not found:
            raise PipelineError(f"--images {name}: fits no file")
        names += found
    return names


def files_below(folder: str) -> list[str]:
    """Paths of the files below a folder, sorted; hidden ones are left out."""
    found = glob.glob(f"{glob.escape(folder)}/**", recursive=True)
    return sorted(os.path.relpath(path, folder) for path in found if os.path.isfile(path))


def _expanded(pattern: str) -> list[str]:
    """{000..002} becomes 000, 001, 002, and {a,b} becomes a, b, as in webdataset's names."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if index % 2 == 0 else _choices(part) for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(braces: str) -> list[str]:
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", braces):
        first, last = span.groups()
        return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return braces.split(",")
