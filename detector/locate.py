"""Where weights come from: a named file or hub repository, the environment, the user's cache, the hub."""

import os
from collections.abc import Iterator
from pathlib import Path

from detector.errors import DetectorError
from detector.hub import HubName, cache_root, cached, fetch_file, hub_name, pinned

ENVIRONMENT = "SCAN_PIPELINE_WEIGHTS"
DEFAULT_HUB = "unc-nlp/frcnn-vg-finetuned"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def cache_folder() -> Path:
    """The user's cache of detector weights."""
    return cache_root() / "weights"


def find_weights(path_or_name: str | None = None) -> Path:
    """The weights file to use: the named one, $SCAN_PIPELINE_WEIGHTS, the newest in the user's cache, the hub's.

    A name is a file, or one of the hub: "OWNER/NAME[@REVISION][/FILE]".

    Raises:
        DetectorError: none there; the message lists every way to get some.
    """
    for name, origin in ((path_or_name, "--weights"), (os.environ.get(ENVIRONMENT), ENVIRONMENT)):
        if name:
            return resolve(name, origin, ways())
    return _newest_cached() or _download(HubName(DEFAULT_HUB), "the default", ways())


def has_weights() -> bool:
    """Whether there are detector weights without asking the hub: named in the environment, or in a cache."""
    return bool(os.environ.get(ENVIRONMENT)) or any(path for _, path in places())


def places() -> Iterator[tuple[str, Path | None]]:
    """Where `find_weights` looks when none are named, in its order: what the place is, and the file that is there.

    Nothing is fetched, and nothing says that the file is any good.
    """
    named = os.environ.get(ENVIRONMENT)
    yield f"${ENVIRONMENT}", Path(named) if named and not hub_name(named) else None
    yield str(cache_folder()), _newest_cached()
    hub = (hub_name(named) if named else None) or HubName(DEFAULT_HUB)
    found = [cached(hub, file) for file in ([hub.file] if hub.file else HUB_FILES)]
    yield f"the hub's cache of {hub}", next(filter(None, found), None)


def _newest_cached() -> Path | None:
    cached = sorted(cache_folder().glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    return cached[-1] if cached else None


def resolve(name: str, origin: str, remedy: str) -> Path:
    """The file of that name, or that of a hub repository, "OWNER/NAME[@REVISION][/FILE]".

    Raises:
        DetectorError: neither; it names `origin`, the option that asked, and the remedy.
    """
    if Path(name).is_file():
        return Path(name)
    if asked := hub_name(name):
        return _download(asked, origin, remedy)
    raise DetectorError(f"{origin} {name}: no such file, nor a hub name (owner/repository)", remedy)


def pinned_weights(name: str) -> str:
    """Published weights as OWNER/NAME@COMMIT/FILE, by the name that `find_weights` took (which it is where they came from a
    mirror); "" of a file of one's own."""
    asked = hub_name(name)
    if asked is None:
        return ""
    found = (path for file in ([asked.file] if asked.file else HUB_FILES) if (path := cached(asked, file)))
    return next(map(pinned, found), name)


def _download(name: HubName, origin: str, remedy: str) -> Path:
    return fetch_file(name._replace(file=""), [name.file] if name.file else HUB_FILES, origin, remedy)


def ways() -> str:
    """Every way to get weights, for the error when there are none."""
    return (
        "to get detector weights: (1) --weights FILE, a file in LXMERT, airsplay, MILVLG or this project's layout; "
        f"(2) --weights {DEFAULT_HUB}, or another OWNER/REPOSITORY on the Hugging Face hub; (3) {ENVIRONMENT}=FILE in the environment; "
        f"(4) a .safetensors file in {cache_folder()}, made by scan-pipeline convert-weights SOURCE TARGET; "
        "(5) a detector of your own, made by scan-pipeline train-detector"
    )
