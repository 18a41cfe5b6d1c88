"""The order in which photos are shown, page by page, where a first stage chooses whom to compare: one list, whatever page is asked for.

A later page is ranked among more candidates. Their places in the first stage tell which of them the pages before it had.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DEEPER = 4  # candidates for each result that is asked for, at least
EQUAL = 2e-6  # of a score, or of 1 where that is more: its last digits depend on what is scored together


def ranked(scores: np.ndarray) -> np.ndarray:
    """The places (n,) of scores, the largest first; of equal ones, such as of copies of a photo, in their order."""
    return equal_in_order(np.argsort(-scores, kind="stable"), scores)


def equal_in_order(places: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The places (n,) of scores (n,), as they are shown, with those of equal ones that follow each other in their order.

    Among a million photos most scores have one so close above that all would be equal by it; those keep the order of their scores.
    """
    listed = scores[places]
    closest = EQUAL * np.maximum(1, np.abs(listed))
    begins = np.insert(np.abs(np.diff(listed)) > closest[1:], 0, True)[: len(places)]
    group, first = np.cumsum(begins) - 1, np.flatnonzero(begins)
    is_wide = np.abs(listed[first] - np.append(listed[first[1:] - 1], listed[-1:])) > 2 * closest[first]
    return places[np.lexsort((np.where(is_wide[group], 0, places), group))]


def depths(candidates: int, results: int) -> list[int]:
    """How many candidates rank so many results, and, for the results before, how many fewer: each number is twice the one before."""
    counts = [candidates]
    while counts[-1] < DEEPER * results:
        counts.append(2 * counts[-1])
    return counts


def by_depth(places: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Which candidates (n,) each depth adds, to be scored by themselves: scores differ in their last digit by what is scored together,
    and copies of a photo would change places from page to page.
    """
    depths_of = np.searchsorted(counts, places, side="right").clip(max=len(counts) - 1)
    return [np.flatnonzero(depths_of == depth) for depth in range(len(counts))]


class Compared(NamedTuple):
    """The photos that were compared with a query."""

    rows: np.ndarray  # (n,) ascending
    scores: np.ndarray  # (n,)
    places: np.ndarray | None = None  # (n,) in the first stage, those beyond it last; None: it chose none

    def order(self, counts: Sequence[int], min_score: float) -> np.ndarray:
        """Which photos reach a score, in the order in which they are shown.

        First come the best of the first candidates, then the best of twice as many less those before, and so on.

        Args:
            counts: of `depths`.
        """
        left = np.flatnonzero(self.scores >= min_score)
        if self.places is None:
            return left[ranked(self.scores[left])]
        shown = left[:0]
        for count in counts:
            fits = left[self.places[left] < count]
            shown = np.concatenate([shown, fits[ranked(self.scores[fits])][: count // DEEPER - len(shown)]])
            left = np.setdiff1d(left, shown)
        return shown
