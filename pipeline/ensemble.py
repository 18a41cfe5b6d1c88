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
from pipeline.inputs.captions import Caption
from pipeline.search import Search, known_words, open_search


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

    def _for_sentences(
        self, queries: Sequence[str], rows: np.ndarray | None, count: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = [(member, EncodedCaptions(member.run.model, queries)) for member in self.members]
        found = [member._candidates(words, rows, count) for member, words in encoded]
        if any(some is None for some in found):
            of_runs = [member._compared(words, rows, 0) for member, words in encoded]
            return [
                (of_query[0][0], _mean([scores for _, scores in of_query])) for of_query in zip(*of_runs, strict=True)
            ]
        compared = []
        for query, candidates in enumerate(zip(*found, strict=True)):
            every = np.unique(np.concatenate(candidates))
            compared.append((every, _mean([member._scores(words, query, every) for member, words in encoded])))
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
    return Ensemble([search, *(open_search(run, stores, **options) for run in others)])


def _mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    mean: np.ndarray = np.mean(scores, axis=0)
    return mean
