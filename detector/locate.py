"""Where weights come from: a named file or hub repository, the environment, the user's cache, the hub."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from detector.errors import DetectorError

ENVIRONMENT = "SCAN_PIPELINE_WEIGHTS"
DEFAULT_HUB = "unc-nlp/frcnn-vg-finetuned"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
ANSWER_TIMEOUT = 5.0  # seconds, for a connection and for its first answer
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+)?")


def cache_folder() -> Path:
    """The user's cache of detector weights.

    Raises:
        DetectorError: a user without a home, such as an unknown uid in a container.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise DetectorError(
            "this user has no home folder for the weights cache", "set HOME or XDG_CACHE_HOME, or give --weights FILE"
        ) from error
    return Path(base) / "scan-pipeline" / "weights"


def find_weights(path_or_name: str | None = None) -> Path:
    """The weights file to use: the named one, $SCAN_PIPELINE_WEIGHTS, the newest in the user's cache, the hub's.

    Args:
        path_or_name: a file, or a hub name: "owner/repository" or "owner/repository/file".

    Raises:
        DetectorError: none there; the message lists every way to get some.
    """
    for name, origin in ((path_or_name, "--weights"), (os.environ.get(ENVIRONMENT), ENVIRONMENT)):
        if name:
            return resolve(name, origin, ways())
    return _newest_cached() or _download(DEFAULT_HUB, "the default", ways())


def has_weights() -> bool:
    """Whether there are detector weights without asking the hub: named in the environment, or in a cache."""
    return bool(os.environ.get(ENVIRONMENT)) or any(path for _, path in places())


def places() -> Iterator[tuple[str, Path | None]]:
    """Where `find_weights` looks when none are named, in its order: what the place is, and the file that is there.

    Nothing is fetched, and nothing says that the file is any good.
    """
    named = os.environ.get(ENVIRONMENT)
    yield f"${ENVIRONMENT}", Path(named) if named and not _is_hub_name(named) else None
    yield str(cache_folder()), _newest_cached()
    from huggingface_hub import try_to_load_from_cache

    hub = named if named and _is_hub_name(named) else DEFAULT_HUB
    owner, repository, *file = hub.split("/", 2)
    found = [try_to_load_from_cache(f"{owner}/{repository}", name) for name in file or HUB_FILES]
    yield f"the hub's cache of {hub}", next((Path(path) for path in found if isinstance(path, str)), None)


def _newest_cached() -> Path | None:
    cached = sorted(cache_folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    return cached[-1] if cached else None


def _is_hub_name(name: str) -> bool:
    return not Path(name).is_file() and bool(_HUB_NAME.fullmatch(name)) and not Path(name).parent.is_dir()


def resolve(name: str, origin: str, remedy: str) -> Path:
    """The file of that name, or that of a hub repository.

    Args:
        name: a file, "owner/repository" or "owner/repository/file".
        origin: the option that named it, for errors.
        remedy: what to do when there is none, for errors.

    Raises:
        DetectorError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    if _is_hub_name(name):
        return _download(name, origin, remedy)
    raise DetectorError(f"{origin} {name}: no such file, nor a hub name (owner/repository)", remedy)


def _download(name: str, origin: str, remedy: str) -> Path:
    """Fetch from the hub into its own cache, where a file is stored under the hash of its content."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    owner, repository, *file = name.split("/", 2)
    unreachable, reason = _hub_unreachable(), ""
    for candidate in file or HUB_FILES:
        try:
            offline = bool(unreachable)
            found = hf_hub_download(
                f"{owner}/{repository}", candidate, local_files_only=offline, etag_timeout=ANSWER_TIMEOUT
            )
            return Path(found)
        except LocalEntryNotFoundError as error:
            reason = unreachable = unreachable or _first_line(error)
        except EntryNotFoundError as error:
            reason = _first_line(error)
        except Exception as error:  # gone, private, refused: the library has many errors for "not to be had"
            reason = _first_line(error)
            break
    raise DetectorError(f"{origin} {name}: could not be fetched from the hub ({reason})", remedy)


def _hub_unreachable() -> str:
    """Why the hub does not answer, through a proxy where one is set; "" where it does. Downloads would retry for a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the library uses
        return f"the hub does not answer: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


def ways() -> str:
    """Every way to get weights, for the error when there are none."""
    return (
        "to get detector weights: (1) --weights FILE, a file in LXMERT, airsplay, MILVLG or this project's layout; "
        f"(2) --weights {DEFAULT_HUB}, or another OWNER/REPOSITORY on the Hugging Face hub; (3) {ENVIRONMENT}=FILE in the environment; "
        f"(4) a .safetensors file in {cache_folder()}, made by scan-pipeline convert-weights SOURCE TARGET; "
        "(5) a detector of your own, made by scan-pipeline train-detector"
    )
