"""Run folders of the matcher: what is in them, finding and loading one.

runs/t2i_mean/
  config.yaml         the resolved configuration; `--config runs/t2i_mean/config.yaml` repeats the run
  data.json           stores, captions files (relative to this folder) and the kind of features, to find them and to check others
  splits.json         image ids of every split
  learned.json        checksum -> image id of every photo trained on, which may come back under another id
  best.safetensors    the model with the best recalls on dev, with its configuration and vocabulary inside
  calibration.json    what unrelated and right pairs score on dev, to tell weak matches
  last/               everything to resume from
  metrics.jsonl, events.out.tfevents…
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.fields import knob
from configs.files import json_sha256
from detector.hub import PREFIX, HubName, cache_root, fetch_file, fetch_folder, fetched_name, hub_name, pinned
from matcher.calibration import FILE as CALIBRATION
from matcher.calibration import Calibration
from matcher.checkpoint import load_model, model_sha256, save_model
from matcher.collection import collection_similarity
from matcher.config import FitConfig, ModelConfig
from matcher.errors import MatcherError
from matcher.fit import BEST
from matcher.matcher import Matcher
from matcher.original import OriginalCheckpoint, load_original, read_vocabulary
from pipeline.config import config_diff, load_config, save_config, to_dict
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option, section
from pipeline.files import read_json, write_json
from pipeline.inputs.finding import find_stores
from pipeline.inputs.splits import Dataset
from pipeline.store.format import FEATURES, MANIFEST
from pipeline.store.reader import Store, StoreCollection, open_store, open_stores

RUNS = Path("runs")
STARTER = "starter"  # the name of the run that is shipped
SHIPPED = Path(__file__).parent / "starter"
CONFIG = "config.yaml"
DATA = "data.json"
SPLITS = "splits.json"
LEARNED = "learned.json"
CHECKPOINTS = ("model_best.pth", "model_best.pth.tar")  # as the code of VSE∞, CHAN and SCAN names them
BERT = "bert-base-uncased"  # the only one that public checkpoints have
REMEDY = "expected a run folder made by scan-pipeline train"


@dataclass(frozen=True)
class TrainConfig(CommandConfig):
    """What `scan-pipeline train` does. The matcher's own fields are documented in `matcher/config.py`."""

    features: tuple[str, ...] = option((), "Store.", metavar="DIR", unset="every store under features/")
    captions: tuple[str, ...] = option((), "Captions file.", metavar="FILE", unset="looked for beside the photos")
    run: str = option(
        "", "Run folder.", metavar="DIR", unset="runs/<preset>, or runs/<attention>_<pooling>, runs/<matcher>"
    )
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    dev_images: int = knob(1000, "Size of the split that selects the model, as published.", min=1)
    model: ModelConfig = section(ModelConfig, options=("text_encoder",))
    training: FitConfig = section(FitConfig, options=("epochs", "batch_size"))
    expected: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Published recalls, for evaluate --verify."}
    )
    preset: str = knob("", "Name of the preset; the run folder's name, where none is given.")


@dataclass(frozen=True)
class TrainedRun:
    """A trained model and where its data was."""

    folder: Path
    model: Matcher
    config: TrainConfig
    data: dict[str, Any]
    splits: dict[str, list[str]]  # image ids in the stores; none of an imported run
    sha256: str  # of the model
    calibration: Calibration | None = None  # None: an imported run, or too few dev photos

    @property
    def is_shipped(self) -> bool:
        """Whether it is part of the installed package, where nothing is written."""
        return self.folder.resolve() == SHIPPED.resolve()

    @property
    def is_own(self) -> bool:
        """Whether files may be added to its folder: it is neither in the package nor in a cache of published runs."""
        return not self.is_shipped and not self.published

    def share(self, score: float) -> float:
        """Share of unrelated pairs of photo and sentence that score as high; 0 without calibration."""
        return self.calibration.share(score) if self.calibration else 0.0

    def is_weak(self, score: float, searched: int) -> bool:
        """Whether a match among so many photos, or captions, is no better than chance; never, without calibration."""
        return self.calibration is not None and self.calibration.is_weak(score, searched)

    @property
    def name(self) -> str:
        """As `--run` takes it: "starter" of the shipped run, the name of a published one, else its folder."""
        return STARTER if self.is_shipped else self.published or str(self.folder)

    @property
    def published(self) -> str:
        """OWNER/NAME of a run that was fetched, with @COMMIT from the hub and /FOLDER of a checkpoint; "" of any other."""
        return fetched_name(self.folder) or str(hub_name(f"{PREFIX}{self.data.get('hub', '')}") or "")

    def incompatibility(self, store: Store) -> str:
        """Why this model cannot read the features of a store, or ""."""
        if store.feature_dim != self.model.config.feature_dim:
            return f"features of {store.feature_dim} numbers, the run was trained on {self.model.config.feature_dim}"
        if not self.data["extraction"]:  # an imported checkpoint does not record the kind of its features
            return ""
        changed = config_diff(store.extraction, self.data["extraction"], ("store", "run"))
        return "; ".join(changed[:3])

    @property
    def weights(self) -> str:
        """The published detector of its features, by name; "" where none is known."""
        return str(self.data.get("weights") or "")

    def stores(self) -> list[Path]:
        """The stores it was trained on."""
        return self._recorded("stores", "--features")

    def captions(self) -> list[Path]:
        """The captions files it was trained on."""
        return self._recorded("captions", "--captions")

    def left_behind(self) -> list[tuple[Path, Path]]:
        """Of a run that was copied: each store and captions file that is taken, and the one of its old place that is not."""
        recorded = [*self.data["stores"], *self.data["captions"]]
        old = [Path(os.path.normpath(Path(self.data["folder"], path))) for path in recorded]
        pairs = zip(map(self._locate, recorded), old, strict=True)
        return [(taken, before) for taken, before in pairs if before.exists() and not before.samefile(taken)]

    def _recorded(self, key: str, option: str) -> list[Path]:
        paths = [self._locate(path) for path in self.data[key]]
        if not paths:
            raise PipelineError(f"{self.name}: the run records no {key}", f"name them with {option}")
        for path, recorded in zip(paths, self.data[key], strict=True):
            if not path.exists() and not self.data["folder"]:
                raise PipelineError(
                    f"{self.name}: was trained on {recorded}, which was not published with it", f"name it with {option}"
                )
            if not path.exists():
                raise PipelineError(
                    f"{path}: does not exist any more; {self.folder} was trained on it",
                    f"name its new place with {option}",
                )
        return paths

    def _locate(self, recorded: str) -> Path:
        """Where a recorded path is: seen from the run, so that a project moves as one, else where it was."""
        if "@" in recorded and (name := hub_name(recorded)):
            return fetch_folder(name._replace(file=""), str(self.folder), kind="dataset") / name.file
        near, before = (
            Path(os.path.normpath(Path(root, recorded))) for root in (self.folder.resolve(), self.data["folder"])
        )
        return near if near.exists() or not before.exists() else before


def find_run(folder: str | None) -> Path:
    """The given run folder ("starter" is the shipped one; fetched where it is a name of the hub), or the one under `runs/` whose model is newest.

    Raises:
        PipelineError: no run there, or none at all.
    """
    if folder == STARTER and not (Path(folder) / BEST).is_file():
        return SHIPPED
    if folder and (name := hub_name(folder)):
        return _published_checkpoint(name) if name.file else fetch_folder(name, "--run", kind="model")
    if folder:
        if folder.startswith(PREFIX):
            raise PipelineError(f"--run {folder}: expected {PREFIX}OWNER/NAME[@REVISION][/FOLDER]")
        if not (Path(folder) / BEST).is_file():
            raise PipelineError(f"{folder}: has no {BEST}; expected a run folder made by scan-pipeline train")
        return Path(folder)
    if not (found := newest_runs()):
        raise no_run()
    return found[0]


def notes_on_twins(runs: Sequence[TrainedRun]) -> Iterator[str]:
    """Of an ensemble: which runs are one model, as a run and its copy."""
    first: dict[str, TrainedRun] = {}
    for run in runs:
        if (other := first.setdefault(run.sha256, run)) is not run:
            yield f"{run.name} is the same model as {other.name}: it counts twice in their mean"


def no_run() -> PipelineError:
    """Why nothing under `runs/` can be taken."""
    return PipelineError(
        f"{RUNS.resolve()}: no trained run found (looked for {RUNS}/*/{BEST})",
        "make one with: scan-pipeline train, or name it with --run",
    )


def newest_runs() -> list[Path]:
    """The run folders under `runs/`, the one whose model is newest first."""
    return [path.parent for path in sorted(RUNS.glob(f"*/{BEST}"), key=lambda path: -path.stat().st_mtime)]


def import_original(source: Path, vocabulary: str, folder: Path, imported: str, hub: str = "") -> OriginalCheckpoint:
    """Write a run folder from a checkpoint of the original code of a method.

    Args:
        source: the checkpoint.
        vocabulary: file of its words, or the name of its BERT.
        folder: to write; the model comes last.
        imported: where it came from, for the record.
        hub: its name there, where it is kept in the cache.

    Raises:
        MatcherError: files that cannot be read, or that do not belong together.
    """
    checkpoint = load_original(source, read_vocabulary(vocabulary), vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    # its training data was elsewhere
    data = {"folder": str(folder.resolve()), "stores": [], "captions": [], "extraction": {}, "hub": hub}
    write_json(folder / DATA, {"data": data, "imported": imported}, indent=1)  # first: it says what began
    save_config(TrainConfig(model=checkpoint.model.config, run=str(folder)), folder / CONFIG)
    save_model(folder / BEST, checkpoint.model)
    return checkpoint


def _published_checkpoint(name: HubName) -> Path:
    """The run of a checkpoint with BERT that the authors of a method published in a folder of a repository; imported once."""
    remedy = f"expected {' or '.join(CHECKPOINTS)} in a folder {name.file} of that repository"
    source = fetch_file(name._replace(file=""), [f"{name.file}/{file}" for file in CHECKPOINTS], "--run", remedy)
    version = source.resolve().stat()
    key = f"{source.resolve()} {version.st_size} {version.st_mtime_ns}"
    folder = cache_root() / "imported" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not (folder / BEST).is_file():
        exact = pinned(source.parent) or str(name)
        try:
            import_original(source, BERT, folder, exact, hub=exact)
        except MatcherError as error:
            remedy = "scan-pipeline import-checkpoint takes another vocabulary, and makes a run folder"
            raise PipelineError(str(error), remedy) from error
    return folder


def load_run(folder: Path, device: torch.device) -> TrainedRun:
    """Load the best model of a run.

    Raises:
        PipelineError: files missing or damaged.
    """
    data = read_json(folder / DATA, "a run's identity", REMEDY).get("data")
    kinds = {"stores": list, "captions": list, "extraction": dict, "folder": str}
    if not isinstance(data, dict) or not all(isinstance(data.get(key), kind) for key, kind in kinds.items()):
        raise PipelineError(f"{folder / DATA}: its section data has other fields than {', '.join(kinds)}", REMEDY)
    if not all(isinstance(path, str) for path in [*data["stores"], *data["captions"]]):
        raise PipelineError(f"{folder / DATA}: stores and captions are not lists of paths", REMEDY)
    splits = read_json(folder / SPLITS, "a run's splits", REMEDY) if (folder / SPLITS).exists() else {}
    if not all(isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in splits.values()):
        raise PipelineError(f"{folder / SPLITS}: not lists of image ids", REMEDY)
    if "splits_sha256" in data and data["splits_sha256"] != json_sha256(splits):
        raise PipelineError(f"{folder / SPLITS}: not the splits that the run was trained with", "copy the run again")
    config = load_config(TrainConfig, group="train", config=str(folder / CONFIG))
    sha256 = ""
    while sha256 != model_sha256(folder / BEST):  # else embeddings of one model are stored as those of another
        sha256, model = model_sha256(folder / BEST), load_model(folder / BEST, device)
    state = read_json(folder / CALIBRATION, "a run's calibration") if (folder / CALIBRATION).is_file() else {}
    if changed := config_diff(to_dict(config.model), to_dict(model.config), (CONFIG, BEST)):
        raise PipelineError(
            f"{folder / CONFIG}: not the configuration of its model ({'; '.join(changed[:3])})", "copy the run again"
        )
    calibration = Calibration.of_file(state, sha256, folder / CALIBRATION)
    return TrainedRun(folder, model, config, data, splits, sha256, calibration)


def newest_that_fits(
    features: Sequence[str], device: torch.device, report: Callable[[str], Any]
) -> tuple[TrainedRun, StoreCollection]:
    """The newest run under runs/ that fits stores, or the shipped one, and these stores; `report` takes why a newer one does not.

    Raises:
        PipelineError: none fits; it says why neither the newest does nor the shipped one.
    """
    runs = newest_runs()
    failed = [] if runs else [no_run()]
    if not runs:
        find_stores(features)  # without photos no run helps: this says how to get there
    for folder in [*runs, SHIPPED]:
        notes: list[str] = []
        try:
            trained = load_run(folder, device)
            collection = fitting_stores(trained, features, notes.append)
        except PipelineError as error:
            failed.append(error)
            continue
        used = "the starter's run" if trained.is_shipped else trained.name
        for line in [*notes, *(f"note: {error.message}; {used} is used" for error in failed[:1])]:
            report(line)
        return trained, collection
    first, last = failed[0], failed[-1]
    if first.message == last.message:
        raise first
    remedies = " or: ".join(filter(None, (first.remedy, last.remedy)))
    raise PipelineError(f"{first.message}; with the starter's run: {last.message}", remedies)


def fitting_stores(run: TrainedRun, features: Sequence[str], report: Callable[[str], Any]) -> StoreCollection:
    """Stores the run can read: the named ones must fit; of those under features/, or else of its own, the others are skipped."""
    there = features or not run.data["stores"] or any(FEATURES.glob(f"*/{MANIFEST}"))
    fitting, reasons = [], []
    for path in find_stores(features) if there else run.stores():
        store = open_store(path)
        reason = run.incompatibility(store) or ("" if len(store) else "no photo extracted yet")
        if not reason or (features and not len(store)):  # a named one is refused by `open_stores`
            fitting.append(path)
            continue
        reasons.append(f"{path}: {reason}")
        if features:
            raise PipelineError(f"{path}: {run.folder} cannot read it ({reason})", "extract it with the run's detector")
        report(f"note: skipping {path} ({reason})")
    if not fitting:
        raise PipelineError(
            f"no store fits {run.folder}: {' | '.join(reasons)}", "name stores with --features, or a --run"
        )
    collection = open_stores(fitting, tell_apart=True)
    for store in collection.stores:
        if not store.complete:
            report(f"note: {store.path} is not complete: searching the {len(store):,} photos that it holds so far")
    for one, other, photos in collection.overlaps():
        report(
            f"note: {photos:,} photos are in {one.path} and in {other.path}, and are found twice; name one with --features"
        )
    return collection


def data_sums(dataset: Dataset) -> dict[str, str | list[str]]:
    """Checksums of what a run learns from and is selected on, as data.json has them; earlier versions left out whose all is."""
    return {
        **captions_sums(dataset),
        "features_sha256": features_sha256(dataset.stores),
        "features_of_stores": list(map(store_sha256, dataset.stores.stores)),  # and whose each row is
    }


def captions_sums(dataset: Dataset) -> dict[str, str]:
    """Those of the captions alone."""
    learned = [dataset.splits.get(name) for name in ("train", "dev")]
    owners = [[split.store_ids[i] for i in split.images.image_of_caption] if split else [] for split in learned]
    return {
        "captions_sha256": json_sha256([split.images.captions if split else [] for split in learned]),
        "captions_images_sha256": json_sha256(owners),  # whose each caption is
    }


def store_sha256(store: Store) -> str:
    """Checksum of the features of a store and of the ids of their images, wherever it lies."""
    return json_sha256([[shard.sha256 for shard in store.shards], store.image_ids])


def features_sha256(stores: StoreCollection) -> str:
    """Checksum of the features of stores, wherever they lie and whatever their images are called."""
    return json_sha256([[shard.sha256 for shard in stores.shards]])


def mean_similarity(
    runs: Sequence[TrainedRun], stores: StoreCollection, rows: np.ndarray, captions: Sequence[str]
) -> np.ndarray:
    """(N, M) float32, averaged over the runs of an ensemble."""
    similarity = np.zeros((len(rows), len(captions)), dtype=np.float32)
    for run in runs:
        found = collection_similarity(run.model, stores, rows, captions, progress=True)
        similarity += found / np.float32(len(runs))
    return similarity


def relative_to_run(folder: Path, path: Path) -> str:
    """A path as a run records it: what came from the hub by its name there."""
    return pinned(path) or os.path.relpath(path.resolve(), folder.resolve())
