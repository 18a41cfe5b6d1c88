"""A run's recalls for both tasks: printed, and written with the dataset's ids beside the model.

Letters: N images, M captions. Several runs are an ensemble: their similarity matrices are averaged, as published.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import json_sha256
from matcher.metrics import RetrievalMetrics, best_columns, chance, confidence_intervals, fold_average, ranks, recalls
from pipeline.device import pick_device
from pipeline.eccv import check_eccv, eccv_caption, eccv_text
from pipeline.errors import PipelineError
from pipeline.evaluated_data import changed_stores, choose_split
from pipeline.fields import PAGE, CommandConfig, option
from pipeline.files import read_json, write_json
from pipeline.inputs.splits import LONGEST_SHOWN, Split, describe, example
from pipeline.judgements import agreement, locate, read_judgements
from pipeline.recall_table import Chances, Intervals, latex_row, table
from pipeline.runs import TrainedRun, find_run, load_run, mean_similarity, notes_on_twins, relative_to_run
from pipeline.trained_photos import Trained, trained_among

RANKED = 10  # captions or images kept per query in the rankings file
FOLD_SIZE = 1000  # images; COCO's 1K protocol
FEWEST_SAMPLES = 40  # whose lowest is the 2.5 % quantile
FEW = 100  # images; below that a recall says little
MOST_STRANGE = 0.05  # of the captions


@dataclass(frozen=True)
class EvaluateConfig(CommandConfig):
    """What `scan-pipeline evaluate` does."""

    runs: tuple[str, ...] = option(
        (),
        "Run folder, starter or hub:OWNER/NAME[/FOLDER]; several are averaged as an ensemble.",
        flag="--run",
        metavar="DIR",
        unset="newest",
    )
    features: tuple[str, ...] = option((), "Store.", metavar="DIR", unset="those of the run")
    captions: tuple[str, ...] = option((), "Captions file.", metavar="FILE", unset="those of the run")
    split: str = option("", "train, dev, test or all.", metavar="NAME", unset="test where there is one, else dev")
    folds: int = option(
        0, "Also average over N folds of consecutive images; 0: 5 for COCO's 5,000.", min=0, max=100_000
    )
    bootstrap: int = option(
        0, "Also 95% intervals of the recalls from N bootstrap samples of the images.", min=0, max=100_000
    )
    eccv: bool = option(False, "Also ECCV Caption and CxC (COCO 5K; needs eccv_caption).")
    judgements: str = option(
        "", "Also the rank correlation with people's grades: image, caption, grades.", metavar="FILE"
    )
    html: str = option(
        "", "Also a page: recalls, ranks, training curves, the worst mistakes.", metavar="FILE", writes=PAGE
    )
    latex: bool = option(False, "Also a LaTeX row for each protocol.")
    verify: bool = option(False, "Exit code 1 where rsum falls short of the preset's expected value.")
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.bootstrap < FEWEST_SAMPLES:
            raise PipelineError(f"--bootstrap {self.bootstrap}: expected at least {FEWEST_SAMPLES}, such as 1000")


@dataclass(frozen=True)
class Evaluation:
    """Recalls under each protocol."""

    split: Split
    protocols: dict[str, RetrievalMetrics]  # by name: "1,000 images", "5 folds of 1,000 images"
    path: Path  # the JSON file
    chances: Chances = field(default_factory=dict)
    intervals: Intervals = field(default_factory=dict)  # of the first protocol
    extras: tuple[str, ...] = ()  # intervals, ECCV Caption, LaTeX: what was asked for
    verdict: str = ""  # what --verify found
    verified: bool = True

    def __str__(self) -> str:
        lines = [
            f"{describe([self.split])}; {example(self.split)}",
            table(self.protocols, self.chances, self.intervals),
            *self.extras,
        ]
        return "\n".join(filter(None, [*lines, f"written to {self.path}", self.verdict]))


def run(config: EvaluateConfig, *, report: Callable[[str], Any] = print) -> Evaluation:
    """Evaluate a run, or an ensemble of runs, on one split.

    Raises:
        PipelineError: no run, no such split, or features that the run cannot read, or that changed since they were written.
    """
    device = pick_device(config.device)
    runs = [load_run(folder, device) for folder in map(find_run, config.runs or [None])]
    report(f"run: {', '.join(member.name for member in runs)}")
    split, origins, notes = choose_split(runs[0], config.split, config.features, config.captions)
    folds = _check_folds(len(split.store_ids), config.folds)
    expected = _expectation(runs, split.name, folds) if config.verify else None
    if expected and origins:
        notes.append("--verify: the preset's recalls are of the run's own data, and these are of other data")
    if config.eccv:
        check_eccv(split.image_ids, split.caption_ids)
    judged = read_judgements(Path(config.judgements), notes) if config.judgements else []
    locate(judged, split, runs, notes)
    for member in runs:
        _refuse_incompatible(member, split)
    seen = [trained_among(run, split) for run in runs]
    notes += _notes(runs, seen, split)
    for note in notes:
        report(f"note: {note}")
    split.stores.refuse_changed(split.images.rows)
    similarity = mean_similarity(runs, split.stores, split.images.rows, split.images.captions)
    owner = split.images.image_of_caption
    protocols = _protocols(similarity, owner, folds)
    chances = {key: chance(owner, len(similarity), folds=folds if "folds" in key else 1) for key in protocols}
    more: dict[str, Any] = {
        "images_trained_on": [known.count for known in seen],
        "images_named_as_trained_on": [known.named for known in seen],
        "chance": chances,
    }
    extras: list[str] = []
    if config.bootstrap:
        more["confidence_95"] = confidence_intervals(ranks(similarity, owner), owner, samples=config.bootstrap)
    if config.eccv:
        more["eccv_caption"] = eccv_caption(similarity, split.image_ids, split.caption_ids)
        extras.append(eccv_text(more["eccv_caption"]))
    if judged:
        agreed = agreement(runs, judged, split)
        more["judgements"] = {"file": config.judgements, **asdict(agreed)}
        extras.append(str(agreed))
    if config.latex:
        names = " + ".join(run.folder.name for run in runs)
        extras += [f"{latex_row(names, metrics)} % {protocol}" for protocol, metrics in protocols.items()]
    path = _write(runs, split, origins, protocols, similarity, more)
    intervals = more.get("confidence_95", {})
    if config.html:
        from pipeline.pages.evaluation import write_evaluation

        write_evaluation(Path(config.html), runs, split, protocols, similarity, chances, intervals, notes)
        report(f"page: {config.html}")
    verified, verdict = _verify(expected, protocols) if expected else (True, "")
    return Evaluation(split, protocols, path, chances, intervals, tuple(extras), verdict, verified)


def _notes(runs: Sequence[TrainedRun], seen: Sequence[Trained], split: Split) -> list[str]:
    """What a reader of the recalls has to know: photos that were trained on, and too few photos."""
    notes, count = list(notes_on_twins(runs)), len(split.store_ids)
    for run, known in zip(runs, seen, strict=True):
        notes += known.notes(run, count)
        if run is not runs[0] and changed_stores(run, split.stores, False, False):
            notes.append(f"features are others than {run.folder} was trained with")
        if cut := sum(map(run.model.vocabulary.is_cut, split.images.captions)):
            notes.append(f"{cut:,} captions are longer than {run.name} reads: their ends are left out")
        strange = [caption for caption in split.images.captions if _is_strange(run, caption)]
        if len(strange) > MOST_STRANGE * len(split.images.captions):  # as of another language
            notes.append(
                f"of {len(strange):,} of {len(split.images.captions):,} captions {run.name} knows half of the words or "
                f"fewer, such as {strange[0][:LONGEST_SHOWN]!r}: recalls say little"
            )
    if count < FEW:
        notes.append(f"{count} photos are few: compare with the recalls by chance, and do not cite these")
    return notes


def _is_strange(run: TrainedRun, caption: str) -> bool:
    """Whether a run knows half of the words of a caption or fewer."""
    vocabulary = run.model.vocabulary
    words = [word for word, _ in vocabulary.word_positions(caption) if any(map(str.isalnum, word))]
    return bool(words) and 2 * len(vocabulary.known(caption)) <= len(words)


def _refuse_incompatible(run: TrainedRun, split: Split) -> None:
    for store in split.stores.stores:
        if reason := run.incompatibility(store):
            raise PipelineError(f"{store.path}: {run.folder} cannot read it ({reason})", "name other --features")


def _check_folds(count: int, folds: int) -> int:
    """The number of folds: as asked, else five for COCO's 5,000 images."""
    folds = folds or (count // FOLD_SIZE if count == 5 * FOLD_SIZE else 1)
    if count % folds:
        raise PipelineError(f"--folds {folds}: {count:,} images do not divide into {folds} equal folds")
    return folds


def _expectation(runs: Sequence[TrainedRun], split: str, folds: int) -> tuple[int, float, float]:
    """What the preset of a run promises of a split, for --verify: of how many folds, rsum, and tolerance."""
    file, expected = runs[0].folder / "config.yaml", runs[0].config.expected
    if "rsum" not in expected:
        raise PipelineError(f"{file}: has no expected recalls, which --verify needs", "choose a run of a preset")
    try:
        wanted = int(expected.get("folds", 1))
        rsum, tolerance = float(expected["rsum"]), float(expected.get("tolerance", 0.0))
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{file}: its expected recalls are not numbers ({error})") from error
    if len(runs) > 1:
        raise PipelineError("--verify: a preset's recalls are of one run, not of an ensemble", "name one --run")
    if (named := expected.get("split", "test")) != split:
        raise PipelineError(
            f"--verify: the preset's recalls are of the split {named}, not of {split}", f"{file} names it"
        )
    if wanted > 1 and wanted != folds:
        remedy = f"evaluate with --folds {wanted}"
        raise PipelineError(f"--verify: the preset expects the mean of {wanted} folds, not of {folds}", remedy)
    return wanted, rsum, tolerance


def _protocols(similarity: np.ndarray, image_of_caption: np.ndarray, folds: int) -> dict[str, RetrievalMetrics]:
    count = len(similarity)
    protocols = {f"{count:,} images": recalls(ranks(similarity, image_of_caption))}
    if folds > 1:
        name = f"{folds} folds of {count // folds:,} images"
        protocols[name] = fold_average(similarity, image_of_caption, folds=folds)
    return protocols


def _write(
    runs: Sequence[TrainedRun],
    split: Split,
    origins: Sequence[Path],
    protocols: dict[str, RetrievalMetrics],
    similarity: np.ndarray,
    more: dict[str, Any],
) -> Path:
    folder = runs[0].folder / "evaluation" if runs[0].is_own else Path("evaluation", runs[0].name)
    folder.mkdir(parents=True, exist_ok=True)
    others = [run.folder for run in runs[1:]]
    # Data of another origin, or that changed, never takes a split's own name; the second of a name gets a number
    parts = [path.name if path.is_dir() else path.stem for path in origins] + [split.name]
    parts += ["with", *(run.name for run in others)] if others else []
    shards = {split.stores.locate(row)[0].sha256 for row in split.images.rows}
    judged = [sorted(shards), split.store_ids, split.images.image_of_caption.tolist(), split.images.captions]
    identity = {
        "made_of": [relative_to_run(folder, path) for path in [*origins, *others]],
        "judged_sha256": json_sha256(judged),
    }
    names = ("_".join(parts + ([str(number)] if number > 1 else [])) for number in count(1))
    name = next(name for name in names if _is_free(folder / f"{name}.json", identity))
    content = {
        **identity,
        "runs": [str(run.folder) for run in runs],
        "model_sha256": [run.sha256 for run in runs],
        "split": split.name,
        "images": len(split.store_ids),
        "captions": len(split.caption_ids),
        "protocols": {name: metrics.to_dict() for name, metrics in protocols.items()},
        **more,
    }
    path = folder / f"{name}.json"
    write_json(path, content, indent=1)
    write_json(folder / f"{name}_rankings.json", _rankings(similarity, split), indent=0)
    return path


def _is_free(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file of recalls is not there, is damaged, or is of the same stores, captions and runs, as far as it says."""
    with suppress(PipelineError):
        found = read_json(path, "recalls")
        return all(found.get(key, value) == value for key, value in identity.items())
    return True


def _rankings(similarity: np.ndarray, split: Split) -> dict[str, list[dict[str, Any]]]:
    """The best results of every query, in the dataset's own ids; in those of the stores where two datasets number alike."""
    owner = split.images.image_of_caption.tolist()
    counted = np.arange(len(owner)) - np.searchsorted(owner, owner)  # of an image's captions, which stand together
    numbered = [f"{split.store_ids[image]}#{number}" for image, number in zip(owner, counted.tolist(), strict=True)]
    images, captions = (
        ids if len(set(ids)) == len(ids) else others
        for ids, others in ((split.image_ids, split.store_ids), (split.caption_ids, numbered))
    )
    found = zip(images, best_columns(similarity, RANKED), strict=True)
    caption_retrieval = [{"image_id": image, "caption_ids": [captions[m] for m in row]} for image, row in found]
    found = zip(captions, best_columns(similarity.T, RANKED), strict=True)
    image_retrieval = [{"caption_id": caption, "image_ids": [images[n] for n in row]} for caption, row in found]
    return {"caption_retrieval": caption_retrieval, "image_retrieval": image_retrieval}


def _verify(expected: tuple[int, float, float], protocols: dict[str, RetrievalMetrics]) -> tuple[bool, str]:
    folds, rsum, tolerance = expected
    found = next(metrics for name, metrics in protocols.items() if ("folds" in name) == (folds > 1))
    passed = found.rsum >= rsum - tolerance
    relation = "reaches" if passed else "falls short of"
    return passed, f"rsum {found.rsum:.1f} {relation} the expected {rsum:g} - {tolerance}"
