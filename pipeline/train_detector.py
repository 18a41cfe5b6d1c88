"""Optional first step: train the region detector, on Visual Genome or on COCO's instances.

detectors/vg_r101_8gpu/
  detector.safetensors   the weights, with network, object and attribute names inside
  evaluation.json        AP on the images held out
  config.yaml, data.json what it is and what it was trained on
  learned.json           the images that it, or the weights that it started from, were trained on
  checkpoints/, metrics.json, events.out.tfevents…
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.fields import knob
from detector.config import DetectorConfig, DetectorFitConfig
from detector.errors import DetectorError
from detector.layouts import BOX
from detector.locate import resolve
from detector.training.fit import EVALUATION, WEIGHTS, DetectorFitResult, evaluate_weights, fit_detector
from detector.training.imagenet import convert_imagenet, is_imagenet
from detector.weights import load_weights, read_tensors
from matcher.checkpoint import digest
from pipeline.annotations.coco import read_coco
from pipeline.annotations.records import DetectionRecords, check_photos, read_class_vocabulary
from pipeline.annotations.visual_genome import read_held_out, read_visual_genome
from pipeline.claim import choose_folder, claim_run
from pipeline.config import to_dict
from pipeline.device import join_processes, pick_device
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option, section
from pipeline.files import read_json, write_json
from pipeline.runs import DATA, LEARNED, REMEDY

DETECTORS = Path("detectors")
WORK = ("checkpoints", WEIGHTS)  # what a training has made
WAYS = (
    "to start from a trained network: --init FILE, a ResNet of torchvision or timm, or any detector weights; "
    "--init OWNER/REPOSITORY on the Hugging Face hub; from scratch: --init none training.norm=BN training.frozen_stages=0"
)
NOTHING_HELD_OUT = (
    "note: no photo of {} is kept from training for the matcher's sake; if it is to be evaluated on COCO's val or test, "
    "name Karpathy's file with --held-out dataset_coco.json, or the detector will have seen those photos"
)
CLASS_LAYERS = {  # layers with a row for every class
    "objects": tuple(f"{BOX}.{layer}." for layer in ("cls_score", "bbox_pred", "cls_embedding")),
    "attributes": (f"{BOX}.attr_score.",),
}


@dataclass(frozen=True)
class TrainDetectorConfig(CommandConfig):
    """What `scan-pipeline train-detector` does. Network and recipe are documented in `detector/config.py`."""

    visual_genome: str = option("", "Visual Genome's JSON files, and its photos in VG_100K*.", metavar="DIR")
    coco: str = option("", "Instead: COCO, with annotations/instances_train*.json and its photos.", metavar="DIR")
    images: tuple[str, ...] = option((), "Folder of Visual Genome's photos, if they are elsewhere.", metavar="DIR")
    held_out: tuple[str, ...] = option(
        (), "COCO images not to train on: dataset_coco.json, captions, or ids.", metavar="FILE"
    )
    objects: str = option(
        "", "Classes, one a line, synonyms after commas.", metavar="FILE", unset="Visual Genome's 1600; COCO: its own"
    )
    attributes: str = option("", "As --objects.", metavar="FILE|none", unset="Visual Genome's 400; COCO: none")
    init: str = option("imagenet", "Network to start from; imagenet: a ResNet from the hub.", metavar="FILE|NAME|none")
    run: str = option("", "Run folder.", metavar="DIR", unset="detectors/<preset>")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    workers: int = option(2, "Processes that read images, for every process that trains.", min=0, max=1000)
    evaluate_only: bool = option(False, "Evaluate the run, or --init, on the held-out images, and stop.")
    evaluation_images: int = knob(5000, "At most so many of those held out.", min=1)
    network: DetectorConfig = section(DetectorConfig)  # num_objects and num_attributes: the vocabularies'
    training: DetectorFitConfig = section(DetectorFitConfig, options=("steps", "batch_size"))
    preset: str = knob("", "Name of the preset; the run folder's name, where none is given.")


@dataclass(frozen=True)
class TrainedDetector:
    """A finished training."""

    run: Path
    result: DetectorFitResult
    is_main: bool  # whether this is the process that prints, of several

    @property
    def weights(self) -> Path:
        """What `extract --weights` takes."""
        return self.result.weights


def run(
    config: TrainDetectorConfig, *, report: Callable[[str], None] = print, progress: bool = True
) -> TrainedDetector:
    """Train a detector, or continue where an earlier call with the same configuration was stopped.

    Raises:
        PipelineError: no annotations, or a run folder that holds another run.
        DetectorError: no network to start from, or a recipe that this machine does not allow.
    """
    group = join_processes(config.device)
    report = report if group.is_main else lambda _: None
    records = read_records(config, report)
    annotations = "coco" if config.coco else "vg"
    folder = choose_folder(config.run, DETECTORS, config.preset, f"{annotations}_r{config.network.depth}")
    config = replace(config, run=str(folder))
    common: dict[str, Any] = {"device": pick_device(config.device), "workers": config.workers, "progress": progress}
    if config.evaluate_only:
        weights = _evaluated_weights(config, folder)
        _refuse_other_data(folder, records)
        seen = _trained_on(weights, records, report)
        if seen is None:
            report(f"note: which images {weights} was trained on is not known")
        result = evaluate_weights(weights, config.training, records, folder, **common)
        if group.is_main:
            _write_trained_on(folder, seen)
        return TrainedDetector(folder, result, group.is_main)
    network, start = starting_point(config, records)
    for line in _overruled(config, network):
        report(line)
    recipe = config.training
    data = {**_data(records), "start_sha256": digest(dict(sorted(start.items())))}
    identity = {"config": _identity(config), "network": to_dict(network), "data": data}
    epochs = recipe.steps * recipe.batch_size / len(records.train)
    report(
        f"ResNet-{network.depth} C4 of width {network.width}, {network.num_objects:,} objects, "
        f"{network.num_attributes:,} attributes, features of {network.feature_dim:,} numbers; {recipe.steps:,} steps of "
        f"{recipe.batch_size} images ({epochs:.1f} epochs)"
    )
    with ExitStack() as stack:

        def claim() -> None:
            """Only when everything else is known to work: a start that fails leaves the folder free."""
            if group.is_main:
                stack.enter_context(claim_run(folder, config, identity, WORK))
                _write_learned(folder, records, config.init)
            group.wait()

        seen = 0 if config.init in ("none", "imagenet") else _trained_on(Path(config.init), records, report)
        result = fit_detector(network, recipe, records, folder, start=start, before_writing=claim, **common)
        if group.is_main:
            _write_trained_on(folder, seen)
    return TrainedDetector(folder, result, group.is_main)


def _evaluated_weights(config: TrainDetectorConfig, folder: Path) -> Path:
    """The weights file that --evaluate-only is about: the one named with --init, else the run's own."""
    own = folder / WEIGHTS
    if config.init == TrainDetectorConfig.init:
        if not own.is_file():
            raise PipelineError(
                f"{own}: no detector there to evaluate",
                "train first, name a run with --run, or weights with --init",
            )
        return own
    path = resolve(config.init, "--init", WAYS)
    if own.is_file() and not own.samefile(path):
        raise PipelineError(f"{folder}: holds another detector than {path}, and its evaluation", "choose another --run")
    return path


def _learned(weights: Path) -> tuple[set[tuple[str, int]], bool]:
    """What some weights were trained on: names and sizes of the photos, by the run that they are in; and whether that is all."""
    file = weights.parent / LEARNED
    content = read_json(file, "the photos of a training", REMEDY) if weights.is_file() and file.is_file() else {}
    photos = content.get("photos")
    pairs = photos.items() if isinstance(photos, dict) else ()
    found = {
        (name, size) for name, sizes in pairs if isinstance(sizes, list) for size in sizes if isinstance(size, int)
    }
    return found, content.get("is_all") is True


def _photos(records: Sequence[Any]) -> list[tuple[str, int]]:
    """Name and size of the photo of each record: ids begin anew in another file of annotations."""
    paths = (Path(record["file_name"]) for record in records)
    return [(path.name, path.stat().st_size if path.is_file() else -1) for path in paths]


def _trained_on(weights: Path, records: DetectionRecords, report: Callable[[str], None]) -> int | None:
    """How many of the photos held out some weights were trained on, with a note if any; None: not known."""
    learned, is_all = _learned(weights)
    held_out = _photos(records.evaluation)
    if seen := sum(photo in learned for photo in held_out):
        report(
            f"note: {weights} was trained on {seen:,} of the {len(held_out):,} images held out: AP on them says little"
        )
    return seen if seen or is_all else None


def _write_learned(folder: Path, records: DetectionRecords, init: str) -> None:
    learned, is_all = _learned(Path(init))
    sizes: dict[str, set[int]] = defaultdict(set)
    for name, size in learned.union(_photos(records.train)):
        sizes[name].add(size)
    photos = {name: sorted(sizes[name]) for name in sorted(sizes)}
    write_json(folder / LEARNED, {"photos": photos, "is_all": is_all or init in ("none", "imagenet")})


def _write_trained_on(folder: Path, seen: int | None) -> None:
    if (folder / EVALUATION).is_file():
        write_json(
            folder / EVALUATION, {**read_json(folder / EVALUATION, "recalls"), "images_trained_on": seen}, indent=1
        )


def _refuse_other_data(folder: Path, records: DetectionRecords) -> None:
    """The evaluation in a run's folder is that of the photos that were held out from it."""
    if not (folder / DATA).is_file():
        return
    before, now = read_json(folder / DATA, "a run's identity").get("data"), _data(records)
    before = before if isinstance(before, dict) else {}
    is_known = all(before.get(key) == now[key] for key in ("objects", "attribute_names"))
    if is_known and before.get("annotations_sha256") != now["annotations_sha256"]:  # other classes are told apart later
        remedy = f"evaluate on others with --init {folder / WEIGHTS} and another --run"
        raise PipelineError(f"{folder}: holds the evaluation on other photos or annotations than these", remedy)


def read_records(config: TrainDetectorConfig, report: Callable[[str], None]) -> DetectionRecords:
    """The annotations that a configuration asks for, with a report of what was left out."""
    if bool(config.visual_genome) == bool(config.coco):
        found = "both" if config.coco else "neither"
        raise PipelineError(f"{found} of --visual-genome DIR and --coco DIR given; expected one of them")
    held_out = read_held_out(map(Path, config.held_out))
    if config.coco:
        for option in ("objects", "attributes", "images"):
            if getattr(config, option):
                raise PipelineError(f"--{option}: does not go with --coco, whose categories and folders are its own")
        records = read_coco(Path(config.coco), held_out=held_out, evaluation_images=config.evaluation_images)
    else:
        records = read_visual_genome(
            Path(config.visual_genome),
            read_class_vocabulary(config.objects, "objects"),
            read_class_vocabulary(config.attributes, "attributes"),
            images=[Path(folder) for folder in config.images],
            held_out=held_out,
            evaluation_images=config.evaluation_images,
        )
    if not held_out:
        report(
            NOTHING_HELD_OUT.format("COCO" if config.coco else "Visual Genome, which shares 51,000 photos with COCO,")
        )
    check_photos(records)
    report(str(records.report))
    return records


def starting_point(config: TrainDetectorConfig, records: DetectionRecords) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """The network and the tensors that it starts from: a detector's file brings its own network, ImageNet's its input.

    What a detector's file knows of classes is kept where its classes are ours.

    Raises:
        DetectorError: no such file, or one that does not fit.
    """
    names = {"objects": records.object_names, "attributes": records.attribute_names}
    sizes: dict[str, Any] = {f"num_{kind}": len(own) for kind, own in names.items()}
    network = replace(config.network, **sizes)
    if config.init == "none":
        return network, {}
    name = f"timm/resnet{network.depth}.tv_in1k" if config.init == "imagenet" else config.init
    path = resolve(name, "--init", WAYS)
    tensors = read_tensors(path)
    if is_imagenet(tensors):
        return convert_imagenet(tensors, network, str(path))
    try:
        weights = load_weights(path)
    except DetectorError as error:
        expected = f"{error.message}, or an ImageNet classifier: a plain ResNet of torchvision or timm"
        raise DetectorError(expected, error.remedy) from error
    dropped: tuple[str, ...] = ()
    for kind, theirs in (("objects", weights.object_names), ("attributes", weights.attribute_names)):
        dropped += () if list(theirs) == names[kind] else CLASS_LAYERS[kind]
    kept = {key: tensor for key, tensor in weights.tensors.items() if not key.startswith(dropped)}
    return replace(weights.config, **sizes), kept


def _overruled(config: TrainDetectorConfig, network: DetectorConfig) -> Iterator[str]:
    """Settings of the network in whose place those of the weights stand that it starts from."""
    for name, default in vars(DetectorConfig()).items():
        asked, taken = getattr(config.network, name), getattr(network, name)
        if asked not in (default, taken) and name not in ("num_objects", "num_attributes"):
            yield f"note: network.{name}={asked} does nothing: --init {config.init} has {taken}"


def _identity(config: TrainDetectorConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation: not the device."""
    fields = to_dict(config)
    elsewhere = ("visual_genome", "coco", "images", "held_out", "objects", "attributes", "init")  # `_data` has these
    for key in ("run", "preset", "device", "workers", "evaluate_only", *elsewhere):
        del fields[key]
    for key in ("checkpoint_every", "evaluate_every"):
        del fields["training"][key]
    return fields


def _data(records: DetectionRecords) -> dict[str, Any]:
    annotations = [
        [record["image_id"], Path(record["file_name"]).name]
        + [record[key].tobytes() for key in ("boxes", "classes", "attributes")]
        for split in (records.train, records.evaluation)
        for record in split
    ]
    return {
        "train_images": len(records.train),
        "evaluation_images": len(records.evaluation),
        "images": dict(records.report.images),
        "boxes": dict(records.report.boxes),
        "attributes": records.report.attributes,
        "objects": records.object_names,
        "attribute_names": records.attribute_names,
        "annotations_sha256": digest(annotations),
    }
