"""Files on disk and behind URLs: their size and time, parts of them, and the files that a pattern names.

URLs are fsspec's: credentials, endpoints and proxies are what its libraries take from the environment and their own files. A
server that does not answer is asked again after growing pauses; then the run stops with one line, and the same command continues.
"""

import functools
import glob
import hashlib
import io
import itertools
import os
import re
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, TypeVar

from configs.errors import first_line
from pipeline.errors import PipelineError
from pipeline.store.roots import PATTERN, is_remote

T = TypeVar("T")

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"),
}
SHADOWS = {  # folders in which disks of the network, Windows and Macs keep thumbnails, deleted files and notes of photos
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", "$RECYCLE.BIN", "__MACOSX"),
}
LIBRARIES = (".photoslibrary", ".photolibrary")  # of Macs, with thumbnails and edited copies beside the photos in
ORIGINALS = {"originals", "masters"}
AGAIN = "run the same command again to continue"
PROTOCOLS = ("s3", "gs", "http", "https", "hf")  # fsspec knows more, some of which read this machine
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before what did not answer is asked again
BLOCK = 8 << 20  # bytes that are fetched at once
# What changes when a file does, in the words of S3, Google, HTTP and the hub
MARKS = (
    "ETag",
    "etag",
    "generation",
    "LastModified",
    "Last-Modified",
    "Content-MD5",
    "blob_id",
    "oid",
    "mtime",
    "updated",
)


def shadow(above: str, name: str) -> str:
    """What to call a folder in a folder where its files are no photos to extract; "" where they are."""
    if above.lower().endswith(LIBRARIES) and name.lower() not in ORIGINALS:
        return f"{above}/{name}"
    return name if name in SHADOWS else ""


def shadow_of(path: str) -> str:
    """`shadow` of the first folder of a path that is one."""
    folders = ["", *path.split("/")[:-1]]
    return next(filter(None, map(shadow, folders, folders[1:])), "")


class Gone(PipelineError):
    """A file that is missing or forbidden: to ask again would not help."""


class Status(NamedTuple):
    """What tells whether a file changed."""

    size: int  # bytes
    mtime_ns: int  # of its last modification, since 1970; of a URL, a number made of its ETag or date


def status(place: str) -> Status:
    """Size and time of a file.

    Raises:
        Gone: not there.
        PipelineError: no answer.
    """
    if is_remote(place):
        return _remote_status(place)
    try:
        found = os.stat(place)
    except OSError as error:
        raise Gone(f"{place}: {error.strerror}", f"put it back, and {AGAIN}") from error
    return Status(found.st_size, found.st_mtime_ns)


def open_file(place: str) -> BinaryIO:
    """A file to read and to seek in.

    Raises:
        Gone: not there.
        PipelineError: no answer, also later, when it is read.
    """
    if is_remote(place):
        return io.BufferedReader(_RemoteFile(place), BLOCK)
    try:
        return open(place, "rb")
    except OSError as error:
        raise Gone(f"{place}: {error.strerror}", f"put it back, and {AGAIN}") from error


def read_range(place: str, start: int, size: int, *, ahead: int = 0) -> bytes:
    """Some bytes of a file; fewer where it ends. `ahead` bytes are fetched with them from a URL, for the next call."""
    if is_remote(place):
        first, held = _ahead.get(place, (0, b""))
        if not first <= start <= start + size <= first + len(held):
            first, held = start, _fetch(place, start, start + max(size, ahead))
            if ahead:
                _ahead.clear()  # one reader goes through one container at a time
                _ahead[place] = first, held
        return held[start - first : start - first + size]
    with open_file(place) as file:
        file.seek(start)
        return file.read(size)


def read_all(place: str) -> bytes:
    """The bytes behind a URL.

    Raises:
        Gone: not there.
        PipelineError: no answer.
    """
    system, path = _system(place)
    return _answered(place, lambda: system.cat_file(path))


def forget() -> None:
    """Forget what is known of URLs, which may have changed since."""
    _remote_status.cache_clear()
    _ahead.clear()


def matching(pattern: str) -> list[str]:
    """The files that a pattern names: each name of its braces, and what matches its wildcards.

    Raises:
        PipelineError: wildcards that match nothing.
    """
    names: list[str] = []
    for name in _expanded(pattern):
        if not PATTERN & set(name):
            names.append(name)
        elif found := _remote_glob(name) if is_remote(name) else sorted(glob.glob(name)):
            names += found
        else:
            raise PipelineError(f"--images {name}: matches no file")
    return names


def files_below(folder: str) -> dict[str, Status]:
    """The files below a folder by path, sorted; hidden ones are left out. Time and size are those that a listing tells."""
    if is_remote(folder):
        system, path = _system(folder)
        listed = _answered(folder, lambda: system.find(path, detail=True))
        start = len(path.rstrip("/")) + 1
        seen = {name[start:]: info for name, info in sorted(listed.items()) if "/." not in name[start - 1 :]}
        return {file: _status_of(info) for file, info in seen.items()}
    found = glob.glob(f"{glob.escape(folder)}/**", recursive=True)
    files = sorted(os.path.relpath(path, folder) for path in found if os.path.isfile(path))
    return {file: status(os.path.join(folder, file)) for file in files}


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


# Container that is read in order -> start of the bytes fetched ahead, and the bytes
_ahead: dict[str, tuple[int, bytes]] = {}


class _RemoteFile(io.RawIOBase):
    """A file behind a URL."""

    def __init__(self, place: str):
        self.place, self.size, self.position = place, status(place).size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        content = _fetch(self.place, self.position, min(self.position + len(buffer), self.size))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _fetch(place: str, start: int, end: int) -> bytes:
    """Bytes of a file behind a URL; fewer where it ends."""
    end = min(end, status(place).size)
    if start >= end:
        return b""
    system, path = _system(place)
    content = _answered(place, lambda: system.cat_file(path, start=start, end=end))
    if len(content) > end - start:
        raise PipelineError(f"{place}: its server sends complete files where a part is asked for", "download it first")
    return content


@functools.lru_cache(maxsize=1 << 16)
def _remote_status(place: str) -> Status:
    system, path = _system(place)
    found = _status_of(_answered(place, lambda: system.info(path)))
    if found.size < 0:
        raise PipelineError(f"{place}: its server does not say its size", "download it first")
    return found


def _status_of(info: dict[str, Any]) -> Status:
    """Size and time from what fsspec knows of a file."""
    marks = [str(info[key]) for key in MARKS if info.get(key)]
    digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()
    size = info.get("size")
    return Status(-1 if size is None else int(size), int(digest[:15], 16) if marks else 0)


def _remote_glob(pattern: str) -> list[str]:
    system, path = _system(pattern)
    return sorted(map(system.unstrip_protocol, _answered(pattern, lambda: system.glob(path))))


def _system(place: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    if place.split("://")[0] not in PROTOCOLS:
        raise PipelineError(f"{place}: expected {', '.join(f'{name}://' for name in PROTOCOLS)}, or a folder")
    import fsspec

    try:
        return fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise PipelineError(f"{place}: {error}", "pip install 'scan-pipeline[remote]'") from error


def _answered(place: str, call: Callable[[], T]) -> T:
    """The answer of a server, which is asked again while it gives none."""
    for pause in (*PAUSES, None):
        try:
            return call()
        except Exception as error:  # of whichever client is behind it
            cause = error.__cause__ or error  # fsspec's own says the URL alone
            reason = first_line(cause)
            if _is_final(error):
                raise Gone(
                    f"{place}: missing or forbidden ({reason})", "check the address and your credentials"
                ) from error
            if pause is None:
                raise PipelineError(f"{place}: does not answer ({reason})", AGAIN) from error
            time.sleep(pause)
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Whether an answer is a refusal. fsspec reports every failure of HTTP as a file that is not found."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and type(cause).__module__.startswith("aiohttp"):
        return getattr(cause, "status", 0) in (401, 403, 404, 410)
    return isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)
