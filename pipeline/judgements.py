"""Human judgements as a yardstick: how well a run's scores order pairs of photos and captions as people's grades do.

One line a pair, fields separated by tabs (or CSV): the image's id or name, the caption or its id in the captions file, and one
grade or several, larger is better. Flickr8k's ExpertAnnotations.txt is such a file. As its literature does, every grade is an
observation of its own: three judges of a pair make three. Of CrowdFlowerAnnotations.txt (share of yes, number of yes, number of no)
the share is the grade. Where a header names the columns, those that it calls grades count.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from matcher.metrics import kendall
from pipeline.errors import PipelineError
from pipeline.files import read_bytes
from pipeline.inputs.finding import folders, image_index_of
from pipeline.inputs.image_index import stem_of
from pipeline.inputs.splits import Split
from pipeline.inputs.tables import CAPTION_WORDS
from pipeline.runs import TrainedRun, mean_similarity

T = TypeVar("T")
LARGEST_FILE = 1 << 30  # bytes
LONGEST_FIELD = 1 << 17  # characters
EXPECTED = "image, caption and at least one grade, separated by tabs or as CSV"
# What a header calls a grade, and not who gave it
GRADES = re.compile(
    r".*(grade|scor|rating|judge?ment|percent|(expert|judge|human|rater|annotator|worker)_?\d).*(?<!id)", re.IGNORECASE
)


@dataclass(frozen=True)
class Judgement:
    """What people thought of one pair."""

    image: str
    caption: str
    grades: tuple[float, ...]
    where: str  # file and line, for messages


def read_judgements(path: Path, notes: list[str] | None = None) -> list[Judgement]:
    """Read a file of judgements, in its order. `notes` takes a line about columns that are no grades.

    Raises:
        PipelineError: not readable, or a line that is no judgement.
    """
    csv.field_size_limit(LONGEST_FIELD)  # of the process: another reader may have set a larger one
    content = read_bytes(path, "judgements", limit=LARGEST_FILE)
    try:
        text = content.decode("utf-8-sig")
        delimiter = "\t" if "\t" in text else ","
        lines = io.StringIO(text, newline="")
        rows = list(
            csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
        )
    except (ValueError, csv.Error) as error:
        raise PipelineError(f"--judgements {path}: not readable ({error}); expected {EXPECTED}") from error
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if row]
    names = numbered.pop(0)[1] if numbered and _is_header(numbered[0][1]) else []
    if any(name.strip().lower() in CAPTION_WORDS for name in names[2:]) and not names[1].strip().lower().startswith(
        CAPTION_WORDS
    ):
        raise PipelineError(
            f"--judgements {path}: the second column is {names[1]!r}, the caption stands behind it; expected {EXPECTED}"
        )
    columns = _columns_of_grades(path, names, [row[2:] for _, row in numbered])
    if len(names) > 2 + len(columns) and notes is not None:
        others = [name for column, name in enumerate(names[2:]) if column not in columns]
        notes.append(f"--judgements {path}: not counted as grades: {', '.join(others)}")
    found = []
    for number, row in numbered:
        try:
            grades = tuple(map(float, (row[2:][column] for column in columns or range(len(row) - 2))))
            if not grades or (names and len(row) != len(names)) or not np.isfinite(grades).all() or not row[1].strip():
                raise ValueError
        except (ValueError, IndexError):
            raise PipelineError(f"--judgements {path}: line {number} is {row!r:.80}; expected {EXPECTED}") from None
        found.append(Judgement(row[0].strip(), row[1].strip(), grades, f"--judgements {path}: line {number}"))
    if len({grade for judgement in found for grade in judgement.grades}) < 2:
        raise PipelineError(f"--judgements {path}: fewer than two different grades; expected {EXPECTED}")
    return found


def _is_header(row: Sequence[str]) -> bool:
    return len(row) > 2 and not any(map(_is_number, row[2:])) and stem_of(row[0]) == row[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _columns_of_grades(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Which columns after image and caption are grades; []: all of them."""
    if names:
        named = [column for column, name in enumerate(names[2:]) if GRADES.fullmatch(name.strip()) or len(names) == 3]
        if not named:
            raise PipelineError(
                f"--judgements {path}: which of the columns {', '.join(names[2:])[:80]} are grades?",
                "call those grade, grade_2, …, or leave the others out",
            )
        return named
    return [0] if rows and all(map(_is_crowdflower, rows)) else []


def _is_crowdflower(row: Sequence[str]) -> bool:
    """Whether three numbers are the share of judges who said yes, how many did, and how many said no."""
    if len(row) != 3 or not all(map(_is_number, row)):
        return False
    share, yes, no = map(float, row)
    return yes + no > 0 and abs(share - yes / (yes + no)) < 0.01


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of scores with grades; see `matcher.metrics.kendall`."""

    tau_b: float
    tau_c: float
    pairs: int
    grades: int

    def __str__(self) -> str:
        return (
            f"agreement with {self.grades:,} grades of {self.pairs:,} pairs: Kendall's τ-c {100 * self.tau_c:.1f}, "
            f"τ-b {100 * self.tau_b:.1f} (× 100)"
        )


def locate(
    judgements: Sequence[Judgement], split: Split, runs: Sequence[TrainedRun], notes: list[str] | None = None
) -> list[tuple[int, str]]:
    """Row in the stores and text of every judged pair. `notes` takes lines about images that only a part of their name finds.

    Raises:
        PipelineError: an image that is in no store, or a caption that is neither an id of the split nor a sentence with a
            word that every run knows.
    """
    index = image_index_of(split.stores)
    rows = _by_id(split.image_ids, split.images.rows.tolist())
    of_id = {image: next(iter(found)) for image, found in rows.items()}
    images = dict.fromkeys(judgement.image for judgement in judgements)  # an id may be a name as well
    named = index.match([[one for one in images if of_id.get(one) in (None, index.find(one))]], "--judgements")
    named |= {image: of_id[image] for image in images if image in of_id}
    texts = _by_id(split.caption_ids, split.images.captions)
    found = []
    for judgement in judgements:
        for kind, name, meant in (("image", judgement.image, rows), ("caption", judgement.caption, texts)):
            if len(meant.get(name, ())) > 1:
                raise PipelineError(
                    f"{judgement.where}: {kind} {name!r} is the id of several in the split {split.name}",
                    f"name the {kind} by its {'file' if kind == 'image' else 'sentence'}, or one captions file with --captions",
                )
        row = named.get(judgement.image)
        if row is None:
            raise PipelineError(
                f"{judgement.where}: image {judgement.image!r} is in no store of the evaluation",
                "name the stores of all judged photos with --features",
            )
        text = next(iter(texts.get(judgement.caption, ())), judgement.caption)
        # A word alone may be a sentence; 1056338697_4798441efc.jpg#2 and 7041 are ids, of captions that are not evaluated.
        is_id = text == judgement.caption and len(text.split()) == 1 and not text.isalpha()
        if is_id or not all(run.model.vocabulary.known(text) for run in runs):
            raise PipelineError(
                f"{judgement.where}: caption {judgement.caption!r} is no id of a caption in the split {split.name or 'all'}, "
                "and no sentence that the run has words of",
                "evaluate all judged captions with --split all, or name their files with --captions",
            )
        found.append((row, text))
    elsewhere = {image: row for image, row in named.items() if image not in rows and index.contradicts(image, row)}
    weaker = index.weaker(named, folders(split.stores))
    said = [
        f"{len(some):,} judged images are named {how}: {image} is taken for {split.stores.image_ids[row]}"
        for some, how in ((elsewhere, "in other folders"), (weaker, "otherwise than most"))
        for image, row in islice(some.items(), 1)
    ]
    if notes is not None:
        notes += said
    return found


def _by_id(ids: Sequence[int | str], values: Sequence[T]) -> dict[str, dict[T, None]]:
    """What each id stands for; several where two captions files number theirs alike."""
    found: dict[str, dict[T, None]] = {}
    for key, value in zip(map(str, ids), values, strict=True):
        found.setdefault(key, {})[value] = None
    return found


def agreement(runs: Sequence[TrainedRun], judgements: Sequence[Judgement], split: Split) -> Agreement:
    """How the scores of a run, or of an ensemble, agree with people's grades."""
    pairs = locate(judgements, split, runs)
    rows, of_pair = np.unique([row for row, _ in pairs], return_inverse=True)
    captions = {text: number for number, text in enumerate(dict.fromkeys(text for _, text in pairs))}
    columns = [captions[text] for _, text in pairs]
    similarity = mean_similarity(runs, split.stores, rows, list(captions))
    scores = np.repeat(similarity[of_pair, columns], [len(judgement.grades) for judgement in judgements])
    grades = np.array([grade for judgement in judgements for grade in judgement.grades])
    return Agreement(*kendall(scores, grades), pairs=len(pairs), grades=len(grades))
