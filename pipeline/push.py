"""`scan-pipeline push`: publish a store, a run or a detector on the hub, or in a folder that a plain HTTP server mirrors.

What is published is a list of files, their SHA256SUMS, and a card that says what made them. `detector/hub.py` fetches them by name.
Folders of this machine are not published: of image roots, stores, captions and other files only the last name is.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from configs.errors import first_line
from configs.files import file_sha256
from detector.hub import MIRRORS, SUMS, hub_name, is_fetched
from matcher.calibration import FILE as CALIBRATION
from matcher.fit import BEST
from pipeline.config import to_dict, to_yaml
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, argument, option
from pipeline.files import read_json, replacing
from pipeline.runs import CONFIG, DATA, LEARNED, SPLITS, load_run
from pipeline.store.format import FAILURES, MANIFEST, commit_marks
from pipeline.store.manifest import PUBLISHED
from pipeline.store.reader import open_store
from pipeline.store.roots import is_remote, titled

WEIGHTS = "model.safetensors"  # what `find_weights` looks for in a repository
CARD = "README.md"
QUERY = "two dogs play in the snow"


@dataclass(frozen=True)
class PushConfig(CommandConfig):
    """What `scan-pipeline push` does."""

    source: str = argument()
    repository: str = argument()
    license: str = option("", "Of what is published, as the hub spells it, such as cc-by-4.0.", metavar="NAME")
    detector: str = option(
        "",
        "Of a run: the detector of its features, so that who fetches it can search new photos.",
        metavar="OWNER/NAME",
    )
    private: bool = option(False, "Make a new repository private.")
    mirror: str = option("", "Write it below this folder instead, for a plain HTTP server; asks no hub.", metavar="DIR")


@dataclass(frozen=True)
class Package:
    """What is published."""

    kind: str  # of the repository: "model" or "dataset"
    use: tuple[str, ...]  # the command that uses it, without its name
    files: dict[str, Path | bytes]
    made_of: dict[str, Any] = field(default_factory=dict)  # what the card tells

    def command(self, name: str) -> tuple[str, ...]:
        """What uses it under its name."""
        return (*self.use, name)


def run(config: PushConfig, *, report: Callable[[str], Any] = print) -> tuple[str, ...]:
    """Publish, and return the command that uses it.

    Raises:
        PipelineError: nothing that can be published, a store that is not complete, or a hub that refuses.
    """
    if os.path.exists(config.repository) or (name := hub_name(config.repository)) is None or name.file or name.revision:
        raise PipelineError(f"{config.repository}: expected the name of a repository, OWNER/NAME")
    if config.private and config.mirror:
        raise PipelineError("--private: of a repository on the hub", "leave it out, or leave out --mirror")
    package = _package(Path(config.source), config.detector, report)
    if config.detector and "data" not in package.made_of:
        raise PipelineError(f"--detector: of a run, and {config.source} is none", "leave it out")
    if others := [file for file in package.files if not is_fetched(file)]:
        report(f"note: not published, as no file of such a name is fetched: {', '.join(sorted(others))}")
    published = {file: content for file, content in sorted(package.files.items()) if file not in others}
    if kept := [path for path in package.made_of.get("data", {}).get("stores", ()) if not _is_of_hub(path)]:
        report(f"note: the run learned from {', '.join(kept)}, which is not published with it: push it as well")
    sums = "".join(f"{_sha256(content)}  {file}\n" for file, content in published.items())
    card = _card(config, package)
    files = {**published, SUMS: sums.encode(), CARD: card.encode()}
    if config.mirror:
        for file, content in files.items():
            path = Path(config.mirror, name.repository, file)
            with replacing(path, folder=True) as target:
                target.write(content if isinstance(content, bytes) else content.read_bytes())
        report(f"published: {config.mirror}; serve it over HTTP, and set {MIRRORS} to its address")
        return package.command(name.repository)
    revision = _upload(name.repository, package.kind, files, private=config.private)
    report(f"published: {name.repository}@{revision}")
    return package.command(f"{name.repository}@{revision}")


def _package(source: Path, detector: str, report: Callable[[str], Any]) -> Package:
    """The files of a store, a run or a detector."""
    if (source / MANIFEST).is_file():
        return _store(source)
    if (source / BEST).is_file() and (source / DATA).is_file():
        return _run(source, detector, report)
    weights = source / "detector.safetensors" if source.is_dir() else source
    if not weights.is_file() or weights.suffix != ".safetensors":
        raise PipelineError(f"{source}: expected a store, a run, or a detector's .safetensors")
    return Package("model", ("extract", "--images", "DIR", "--weights"), {WEIGHTS: weights}, {"file": weights.name})


def _store(folder: Path) -> Package:
    store = open_store(folder)
    manifest: dict[str, Any] = dict(store.manifest)
    if not manifest["complete"]:
        raise PipelineError(f"{folder}: not complete", "run its extraction again, it continues")
    store.refuse_changed()  # who fetches it compares with checksums that are made now
    manifest["image_roots"] = [
        root if is_remote(root) else os.path.basename(titled(root)) for root in manifest["image_roots"]
    ]
    manifest["relative_roots"] = manifest["image_roots"]
    manifest[PUBLISHED] = True  # without a plan
    marks = commit_marks(folder)
    paths = [
        *marks,
        *(mark.with_suffix(".safetensors") for mark in marks),
        folder / FAILURES,
        *folder.glob("captions*"),
    ]
    files: dict[str, Path | bytes] = {path.name: path for path in paths if path.is_file()}
    files[MANIFEST] = json.dumps(manifest, sort_keys=True).encode()
    keys = ("extraction", "num_regions", "feature_dim", "dtype", "counts", "image_roots", "weights")
    return Package(
        "dataset", ("retrieve", "--query", QUERY, "--features"), files, {key: manifest.get(key) for key in keys}
    )


def _run(folder: Path, detector: str, report: Callable[[str], Any]) -> Package:
    run = load_run(folder, torch.device("cpu"))  # a damaged one is not published
    content = read_json(folder / DATA, "a run's identity")
    data: dict[str, Any] = {**content["data"], "folder": ""}
    for key in ("stores", "captions"):
        data[key] = _names(data[key])
    if detector:
        data["weights"] = detector
    evaluations = [path for path in sorted(folder.glob("evaluation/*.json")) if not path.stem.endswith("_rankings")]
    recalls = {}
    found = [folder / name for name in (BEST, SPLITS, LEARNED, CALIBRATION, "metrics.jsonl")]
    files: dict[str, Path | bytes] = {path.name: path for path in found if path.is_file()}
    for path in evaluations:
        evaluation = read_json(path, "an evaluation")
        if [run.sha256] != evaluation.get("model_sha256", [])[:1]:  # trained on since, or of an older scan-pipeline
            report(f"note: not published: {path}, whose recalls are not known to be this model's; evaluate again")
            continue
        recalls[path.stem] = {
            key: evaluation.get(key)
            for key in ("images", "images_trained_on", "images_named_as_trained_on", "protocols")
        }
        evaluation |= {key: _names(evaluation[key]) for key in ("runs", "made_of") if key in evaluation}
        if "judgements" in evaluation:
            evaluation["judgements"] |= {"file": os.path.basename(evaluation["judgements"]["file"])}
        files[f"evaluation/{path.name}"] = json.dumps(evaluation, indent=1).encode()
    paths = {key: _names(getattr(run.config, key)) for key in ("features", "captions")}
    settings = {**to_dict(run.config), **paths, "run": folder.resolve().name}
    for config in (settings, content.get("config") or {}):
        if vectors := config.get("training", {}).get("word_vectors"):
            config["training"]["word_vectors"] = os.path.basename(vectors)
    if os.path.isdir(encoder := run.config.model.text_encoder):
        needed = ", without which the model cannot be loaded" if run.config.model.text_encoder_frozen else ""
        report(f"note: the model names its text encoder as it is called here: {encoder}{needed}")
    files[CONFIG] = to_yaml(settings).encode()
    files[DATA] = json.dumps({**content, "data": data}, sort_keys=True, indent=1).encode()
    made_of = {"recalls": recalls, "data": data, "settings": content.get("config")}
    return Package("model", ("retrieve", "--query", QUERY, "--run"), files, made_of)


def _names(paths: Sequence[str]) -> list[str]:
    """Paths without the folders of this machine; names of the hub as they are."""
    return [path if _is_of_hub(path) else os.path.basename(os.path.normpath(path)) for path in paths]


def _is_of_hub(path: str) -> bool:
    """Whether a path is a name of the hub with its revision, as runs record them, and no folder whose name has an @."""
    return "@" in path and hub_name(path) is not None


def _card(config: PushConfig, package: Package) -> str:
    """The model or dataset card."""
    license = f"license: {config.license}\n" if config.license else ""
    sections = [
        f"## {key.replace('_', ' ').capitalize()}\n\n```json\n{json.dumps(value, indent=1, sort_keys=True)}\n```\n"
        for key, value in package.made_of.items()
        if value
    ]
    command = shlex.join(package.command(config.repository))
    return (
        f"---\n{license}library_name: scan-pipeline\ntags: [image-text-retrieval, scan]\n---\n\n# {config.repository}\n\n"
        f"Made with scan-pipeline. To use it:\n\n    scan-pipeline {command}\n\n"
        + ("" if license else "No licence was given: ask its owner before you use it.\n\n")
        + "\n".join(sections)
    )


def _upload(repository: str, kind: str, files: Mapping[str, Path | bytes], *, private: bool) -> str:
    """Commit the files to the hub: the commit's id."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
        operations = [CommitOperationAdd(file, content) for file, content in files.items()]
        message = "Published by scan-pipeline push"
        return str(api.create_commit(repository, operations, commit_message=message, repo_type=kind).oid)
    except Exception as error:  # of the library and of its HTTP client: not logged in, refused, unreachable
        raise PipelineError(
            f"{repository}: could not be published on {constants.ENDPOINT} ({first_line(error)})",
            "log in with: hf auth login (or set HF_TOKEN), and run the same command again",
        ) from error


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if not (found := file_sha256(content)):
        raise PipelineError(f"{content}: cannot be read", "check its permissions")
    return found
