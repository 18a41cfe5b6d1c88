"""Files that others published: from mirrors, from the Hugging Face hub, or from the caches of both.

    OWNER/NAME                      the newest
    OWNER/NAME@REVISION             a branch, tag or commit
    OWNER/NAME[@REVISION]/FILE      one file of it
    hub:OWNER/NAME…                 the same, whatever files and folders are here

`SCAN_PIPELINE_MIRROR` lists plain HTTP folders, separated by spaces, that are tried first and in order: FILE is at MIRROR/OWNER/NAME/FILE, or
MIRROR/OWNER/NAME@REVISION/FILE. So no single dead link stops anybody: a copy of a repository's folder on any server will do.
Credentials, offline mode and cache are the hub library's own (HF_TOKEN, HF_HUB_OFFLINE, HF_HOME). Nothing that is fetched is
executed or unpickled, and what `scan-pipeline push` published is compared with its SHA256SUMS.
"""

import hashlib
import logging
import os
import re
import shutil
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

from configs.errors import first_line
from configs.files import file_sha256
from detector.errors import DetectorError

MIRRORS = "SCAN_PIPELINE_MIRROR"
SUMS = "SHA256SUMS"
PREFIX = "hub:"
# Nothing else of a folder is fetched
SUFFIXES = (".safetensors", ".json", ".jsonl", ".yaml", ".tsv", ".csv", ".txt", ".token", ".md")
NOT_THERE = (403, 404, 410)  # S3 says 403 of what it does not list
ANSWER_TIMEOUT = 5.0  # seconds, for a connection and for its first answer
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([\w./-]+))?", re.ASCII)
_MIRRORED = re.compile(r"/scan-pipeline/mirrors/[0-9a-f]{16}/([\w.-]+/[\w.@-]+)")
_SNAPSHOT = re.compile(r"(?:model|dataset)s--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})(/.*)?")


class HubName(NamedTuple):
    """What a name asks for."""

    repository: str  # OWNER/NAME
    revision: str = ""  # "": the newest
    file: str = ""

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")


def hub_name(name: str) -> HubName | None:
    """What a name asks for; None where it is a file or a folder, or looks like one."""
    found = _NAME.fullmatch(name.removeprefix(PREFIX))
    if not found or ".." in name.split("/"):
        return None
    if not name.startswith(PREFIX) and (Path(name).exists() or Path(name).parent.is_dir()):
        return None
    return HubName(found[1], found[2] or "", found[3] or "")


def pinned(path: Path) -> str:
    """A file or folder of the hub's cache as OWNER/NAME@COMMIT, with /FILE; "" elsewhere."""
    found = _SNAPSHOT.search(os.path.abspath(path))
    return f"{found[1]}/{found[2]}@{found[3]}{found[4] or ''}" if found else ""


def fetched_name(path: Path) -> str:
    """`pinned`, or OWNER/NAME[@REVISION] of a folder that a mirror gave, whose commit nobody knows; "" elsewhere."""
    found = _MIRRORED.search(os.path.abspath(path))
    return pinned(path) or (found[1] if found else "")


def fetch_file(
    name: HubName, candidates: Sequence[str], origin: str, remedy: str, *, kind: str = "model", compared: bool = True
) -> Path:
    """The first of some files that a repository has.

    `origin`, the option that named it, and `remedy` are for errors; `kind` is "model" or "dataset". `compared` with a checksum where
    there is one: in the SHA256SUMS beside it, or that of the hub's cache.

    Raises:
        DetectorError: none, or nobody answers; with the reason of every place that was tried.
    """
    reasons: list[str] = []
    for mirror in os.environ.get(MIRRORS, "").split():
        for file in candidates:
            try:
                return _from_mirror(mirror.rstrip("/"), name, file, compared=compared)
            except OSError as error:
                reasons.append(f"{mirror}: {first_line(error)}")
    try:
        found = _from_hub(name, candidates, kind)
        if compared and (stored := _stored_sha256(found)) and file_sha256(found) != stored:
            raise OSError(f"{found}: damaged, its sha256 is not the hub's; delete {os.path.realpath(found)}")
        return found
    except OSError as error:
        reasons.append(first_line(error))
    raise DetectorError(
        f"{origin} {name}: could not be fetched from the hub ({'; '.join(dict.fromkeys(reasons))})", remedy
    )


def fetch_folder(name: HubName, origin: str, *, kind: str) -> Path:
    """A folder that `scan-pipeline push` published, complete and as it was.

    Raises:
        DetectorError: as `fetch_file`; or files that are not what was published.
    """
    remedy = "expected a repository made by scan-pipeline push, or a folder of this machine"
    sums = fetch_file(name, [SUMS], origin, remedy, kind=kind, compared=False)
    commit = pinned(sums).partition("@")[2].partition("/")[0]
    published = hashlib.sha256(sums.read_bytes()).hexdigest()
    listed = [line.partition("  ")[::2] for line in sums.read_text(encoding="utf-8", errors="replace").splitlines()]
    checked = cache_root() / "checked" / hashlib.sha256(os.fsencode(sums.parent)).hexdigest()
    now = [published, *(_state(sums.parent / file) for _, file in listed)]
    if checked.is_file() and checked.read_text() == repr(now):
        return sums.parent
    exact = name._replace(revision=commit or name.revision)  # what is published meanwhile is another revision
    states = []  # of what was compared, before it was
    for sha256, file in listed:
        if not re.fullmatch("[0-9a-f]{64}", sha256) or not is_fetched(file):
            raise DetectorError(f"{origin} {name}: {SUMS} lists {f'{sha256}  {file}'[:80]!r}", remedy)
        found = sums.parent / file
        states.append(_state(found))
        if file_sha256(found) != sha256:
            found.unlink(missing_ok=True)  # of a mirror before it changed, or a download that was cut off
            found = fetch_file(exact, [file], origin, remedy, kind=kind, compared=False)
            states[-1] = _state(found)
            if found != sums.parent / file or file_sha256(found) != sha256:
                raise DetectorError(
                    f"{origin} {name}: {file} is not what was published (its sha256 differs)", "fetch it again"
                )
    if not commit:  # a mirror's folder of now, where shards of a larger store may be left from before
        names = {sums.parent / file for _, file in listed} | {sums}
        for path in set(filter(Path.is_file, sums.parent.glob("[!.]*"))) - names:
            path.unlink(missing_ok=True)
    checked.parent.mkdir(parents=True, exist_ok=True)
    checked.write_text(repr([published, *states]))
    return sums.parent


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file; (): it is not there."""
    with suppress(OSError):
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino
    return ()


def is_fetched(file: str) -> bool:
    """Whether `fetch_folder` takes a file of this name; ".." would lead out of the repository."""
    return file.endswith(SUFFIXES) and _NAME.fullmatch(f"a/b/{file}") is not None and ".." not in file.split("/")


def cached(name: HubName, file: str) -> Path | None:
    """A file of the hub's cache. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, file, revision=name.revision or None)
    return Path(found) if isinstance(found, str) else None


def _from_mirror(mirror: str, name: HubName, file: str, *, compared: bool) -> Path:
    """A file of a mirror, `compared` with the SHA256SUMS there; not all repositories have some.

    Raises:
        OSError: not there, or another file than was published, which is not kept.
    """
    found, is_kept = _from_folder(mirror, name, file)
    if not compared:
        return found
    try:
        sums = _place(mirror, name, SUMS) if is_kept else _from_folder(mirror, name, SUMS, or_kept=False)[0]
        lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # the mirror does not answer, and had none before
        return found
    except HTTPError as error:
        if error.code in NOT_THERE:
            return found
        raise
    wanted = {listed: sha256 for sha256, _, listed in (line.partition("  ") for line in lines)}.get(file)
    if wanted and file_sha256(found) != wanted:
        found.unlink(missing_ok=True)  # of the mirror before it changed, or damaged here
        if is_kept or file_sha256(_from_folder(mirror, name, file)[0]) != wanted:
            found.unlink(missing_ok=True)
            raise OSError(f"{file} is not what was published (its sha256 differs)")
    return found


def _stored_sha256(path: Path) -> str:
    """The hash by which the hub's cache keeps a large file; "" of others."""
    kept = os.path.basename(os.path.realpath(path))
    return kept if re.fullmatch("[0-9a-f]{64}", kept) else ""


def _place(mirror: str, name: HubName, file: str) -> Path:
    """Where a file of a mirror is kept."""
    folder = hashlib.sha256(mirror.encode()).hexdigest()[:16]
    return cache_root() / "mirrors" / folder / str(name._replace(file="")) / file


def _from_folder(mirror: str, name: HubName, file: str, *, or_kept: bool = True) -> tuple[Path, bool]:
    """A file of a mirror's folder, and whether it is the one that was fetched before: `or_kept`, that is used where the mirror does not
    answer.
    """
    path = _place(mirror, name, file)
    if not mirror.startswith(("http://", "https://")):
        raise OSError("expected http:// or https://")
    try:
        if is_offline():
            raise OSError("offline mode")
        address = f"{mirror}/{name._replace(file='')}/{file}"
        with urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT) as answer:
            size, tag = int(answer.headers.get("Content-Length") or -1), path.with_name(f".{path.name}.tag")
            # Two trainings of one network give files of one size.
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            is_same = path.is_file() and path.stat().st_size == size
            if file != SUMS and version and is_same and tag.is_file() and tag.read_text() == version:
                return path, False
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                with partial.open("wb") as target:
                    shutil.copyfileobj(answer, target, 1 << 20)
                if size not in (-1, partial.stat().st_size):
                    raise OSError(f"{file}: the answer was cut off")
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            tag.write_text(version)
    except (OSError, HTTPException, ValueError) as error:  # of what speaks no HTTP, and of addresses that are none
        if or_kept and path.is_file():
            _say_kept(name, file, f"{mirror}: {first_line(error)}")
            return path, True
        if isinstance(error, OSError):
            raise
        raise OSError(first_line(error)) from error
    return path, False


@cache
def _say_kept(name: HubName, file: str, reason: str) -> None:
    """A copy from before is taken: one line, once, unless the user wants nothing fetched."""
    if not is_offline():
        kept = name._replace(file=file)
        logging.getLogger("scan-pipeline").warning(
            "note: %s: taking the copy that was fetched before (%s)", kept, reason
        )


def _from_hub(name: HubName, candidates: Sequence[str], kind: str) -> Path:
    """Fetch from the hub into its own cache, where a file is stored under the hash of its content."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    unreachable, reason = "offline mode" if is_offline() else _unreachable(constants.ENDPOINT), ""
    for file in candidates:
        try:
            found = hf_hub_download(
                name.repository, file, revision=name.revision or None, repo_type=kind,
                local_files_only=bool(unreachable), etag_timeout=ANSWER_TIMEOUT,
            )  # fmt: skip
            if unreachable:
                _say_kept(name, file, unreachable)
            return Path(found)
        except LocalEntryNotFoundError as error:
            reason = unreachable = unreachable or first_line(error)
        except EntryNotFoundError as error:
            reason = first_line(error)
        except Exception as error:  # gone, private, refused: the library has many errors for "not to be had"
            reason = first_line(error)
            break
    raise OSError(reason)


def is_offline() -> bool:
    """Whether the user wants nothing fetched."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _unreachable(endpoint: str) -> str:
    """Why the hub does not answer, through a proxy where one is set; "" where it does. Downloads would retry for a minute."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=ANSWER_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the library uses
        return f"the hub does not answer: {first_line(error)}"
    return ""


def cache_root() -> Path:
    """The user's cache of this project.

    Raises:
        DetectorError: a user without a home, such as an unknown uid in a container.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise DetectorError(
            "this user has no home folder for the weights cache", "set HOME or XDG_CACHE_HOME, or give --weights FILE"
        ) from error
    return Path(base) / "scan-pipeline"
