"""Search with several runs together: a score is the mean of theirs, as `evaluate` has it.

Candidates of any run are compared exactly by all. Each run has an index of its own; where one has none, every photo is compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from detector.regions import Regions
from matcher.collection import EncodedCaptions
from pipeline.answer import Answer
from pipeline.errors import PipelineError
from pipeline.gallery.ranking import Compared
from pipeline.inputs.captions import Caption
from pipeline.queries import known_words
from pipeline.runs import notes_on_twins
from pipeline.search import Search, open_search


class Ensemble(Search):
    """A search with several runs. Boxes and explanations are those of the first; no match is called weak."""

    def __init__(self, members: Sequence[Search]):
        """members: over the same photos."""
        first = members[0]
        super().__init__(
            replace(first.run, calibration=None),
            first.collection,
            weights=first.weights,
            device=first.device,
            report=first.report,
        )
        self.members = members
        self.name = ", ".join(member.name for member in members)

    def open(self) -> None:
        """See `Search.open`; of every run."""
        for member in self.members:
            member.open()
        self._embeddings, self._first_stage = self.members[0].embeddings, self.members[0].first_stage

    def similar(self, image: int | str | Tensor, top: int = 10, **how: Any) -> Answer:
        """Refused: how photos are alike is a question for one run."""
        raise PipelineError(
            f"photos like a photo, by {self.name}: one run compares photos", "open_search with one of them"
        )

    def _unknown(self, query: str) -> dict[str, str]:
        return {word: near for member in self.members for word, near in known_words(member.run, query).items()}

    def _fewest(self) -> int:
        of_members = [member._fewest() for member in self.members]
        return max(of_members) if all(of_members) else 0

    def _for_sentences(self, queries: Sequence[str], rows: np.ndarray | None, counts: Sequence[int]) -> list[Compared]:
        encoded = [(member, EncodedCaptions(member.run.model, queries)) for member in self.members]
        of_members = [member._candidates(words, rows, counts) for member, words in encoded]
        candidates = [found for found in of_members if found is not None]  # of all members, or none
        if not candidates:
            of_runs = [member._compared(words, rows, ()) for member, words in encoded]
            return [
                Compared(of_query[0].rows, _mean([one.scores for one in of_query]))
                for of_query in zip(*of_runs, strict=True)
            ]
        compared = []
        for query, found in enumerate(zip(*candidates, strict=True)):
            every = np.unique(np.concatenate([rows for rows, _ in found]))
            places = np.full(len(every), np.iinfo(np.int64).max)
            for some, of_member in found:  # a photo is where the first of them puts it
                own = np.searchsorted(every, some)
                places[own] = np.minimum(places[own], of_member)
            scores = _mean([member._scores(words, query, every, places, counts) for member, words in encoded])
            compared.append(Compared(every, scores, places))
        return compared

    def _scored_captions(self, photos: Sequence[Regions], captions: Sequence[Caption]) -> list[np.ndarray]:
        of_runs = [member._scored_captions(photos, captions) for member in self.members]
        return [_mean(of_photo) for of_photo in zip(*of_runs, strict=True)]


def open_ensemble(runs: Sequence[str], features: Sequence[str] = (), **options: Any) -> Search:
    """A search with one run or several; with none named, as `open_search`, whose arguments these are.

    Raises:
        PipelineError: a run is not there, or cannot read the stores that the first one searches.
    """
    first, *others = runs or [""]
    search = open_search(first, features, **options)
    if not others:
        return search
    stores = [str(store.path) for store in search.collection.stores]
    members = [search, *(open_search(run, stores, **options) for run in others)]
    for note in notes_on_twins([member.run for member in members]):
        search.report(f"note: {note}")
    return Ensemble(members)


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    mean: np.ndarray = np.mean(scores, axis=0)
    return mean
