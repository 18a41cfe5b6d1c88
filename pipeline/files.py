"""Files that are either the old or the new one, whenever a process is killed; and what a disk that fails says.

What the pipeline writes for others to read goes through `replacing`: under a hidden temporary name, to the disk, then in place.
Nothing here knows what the files hold.
"""

import errno
import fcntl
import json
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter
from pathlib import Path
from typing import Any

from configs.files import open_at_once, parse_json
from pipeline.errors import PipelineError

ABANDONED = 24 * 3600  # seconds; no file takes a day to write
MAX_JSON = 1 << 31  # bytes; Visual Genome's largest file has 0.8 GB


@contextmanager
def replacing(path: Path, *, sync: bool = True, folder: bool = False) -> Iterator[BufferedWriter]:
    """A file to write that takes its name when it is complete.

    Args:
        path: its name; a file of that name stands until then, and after an error.
        sync: wait until the disk has it, so that a power failure cannot take it.
        folder: make its folder where it is not there.

    Raises:
        PipelineError: a disk that is full or cannot be written to.
    """
    if folder:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path, sync=sync) as file:
        yield file
    rename(file.name, path, sync=sync)


@contextmanager
def temporary_file(path: Path, *, sync: bool = True) -> Iterator[BufferedWriter]:
    """A hidden file beside `path`, removed after an error; `rename` gives it its name."""
    # Renamed over it, a file would take the place of /dev/null
    if path.exists() and not path.is_file() and not path.is_dir():
        raise PipelineError(f"{path}: not a regular file; expected a name to write to")
    name = path.with_name(f".{path.name[:40]}{_owner()}{os.getpid()}.tmp")  # a name of 255 bytes has to fit as well
    try:
        with disk_errors(path), name.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # the first error counts
            name.unlink(missing_ok=True)
        raise


def rename(temporary: str | Path, path: Path, *, sync: bool = True) -> None:
    """Give a file its name, in place of the file that had it."""
    with disk_errors(path):
        os.replace(temporary, path)
        if sync:
            folder = os.open(path.parent, os.O_RDONLY)  # the name, too, has to reach the disk
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def locked(folder: Path, busy: PipelineError | None = None) -> Iterator[None]:
    """Keep other processes out of a folder. The lock of a process that dies is released.

    `busy` is raised where another process holds it; None: wait for that process.
    """
    with disk_errors(folder):
        file = open(folder / ".lock", "wb")  # noqa: SIM115 (closed below, where what the holder raises is its own)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            assert busy is not None
            raise busy from None
        except OSError:  # a file system without locks: the user has to run one process at a time
            pass
        yield


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write a JSON file with sorted keys, through `replacing`."""
    with replacing(path) as file:
        file.write(json.dumps(content, sort_keys=True, indent=indent).encode() + b"\n")


def read_json(path: Path, what: str, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file; `what` it is ("a store's manifest") and the remedy are for errors.

    Raises:
        PipelineError: missing, not a regular file, not JSON, or JSON of another type.
    """
    content = read_bytes(path, what, remedy, limit=MAX_JSON)
    try:
        found = parse_json(content)
        if not isinstance(found, dict):
            raise ValueError(f"found a {type(found).__name__}, expected an object")
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: not readable as {what} ({error})", remedy) from error
    return found


def read_bytes(path: Path, what: str, remedy: str = "", *, limit: int) -> bytes:
    """The bytes of a regular file: a pipe or a device may never end.

    Raises:
        PipelineError: missing, not a regular file, or of more than `limit` bytes.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PipelineError(f"{path}: not a regular file, expected {what}", remedy)
            content = file.read(min(limit, status.st_size) + 1)  # reserves as much as it is asked for
    except OSError as error:
        raise PipelineError(f"{path}: not readable as {what} ({error.strerror})", remedy) from error
    if len(content) > limit:
        raise PipelineError(f"{path}: more than {limit:,} bytes, expected {what}", remedy)
    return content


def as_unicode(content: bytes) -> str:
    """Text in UTF-8, or in the UTF-16 that its byte order mark tells; ValueError: neither."""
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if "\0" in text:
        raise ValueError("a NUL character")
    return text


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What a file system says when it cannot be written to, as one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space and run the same command again to continue"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            remedy = "expected a folder that can be written to; make it one, or name another"
        else:
            remedy = "check the disk and run the same command again to continue"
        raise PipelineError(f"{path}: {error.strerror or error}", remedy) from error


def temporary_files(folder: Path) -> list[Path]:
    """Files that processes are writing, or were writing when they were killed."""
    return sorted(folder.glob(".*.tmp"))


def remove_abandoned(folder: Path) -> int:
    """Remove the temporary files of killed processes, and count them: dead ones on this machine, old ones on any."""
    removed = 0
    for path in temporary_files(folder):
        with suppress(FileNotFoundError):  # another process removes them as well
            if _is_abandoned(path):
                path.unlink()
                removed += 1
    return removed


def _owner() -> str:
    """Names the machine in a temporary file's name; the process id follows."""
    return f".{platform.node().replace('.', '-')}."


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
        pass  # another user's, and running
    return False
