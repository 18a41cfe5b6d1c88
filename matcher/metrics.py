"""Ranks and recalls of both retrieval tasks from a similarity matrix. Pure functions on NumPy arrays.

Letters: N images, M captions. `caption_retrieval` asks with an image for its captions, `image_retrieval` with a caption
for its image. Ranks are 0-based. Ties count against us: a candidate as similar as the right one ranks before it, so that
a model that gives every pair the same score retrieves nothing. Scores that are not finite raise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from matcher.errors import MatcherError

BLOCK = 8_000_000  # scores compared at once
RANKS = (1, 5, 10)  # of the recalls
CONFIDENCE = 0.95  # of the bootstrap intervals
SAMPLES_AT_ONCE = 500  # bootstrap samples: 20 MB at 5,000 images


@dataclass(frozen=True)
class Ranks:
    """For every query, how many candidates come before the first right one."""

    caption_retrieval: np.ndarray  # (N,) of each image's best caption; images without captions are left out
    image_retrieval: np.ndarray  # (M,) of each caption's image


@dataclass(frozen=True)
class TaskMetrics:
    """Metrics of one task."""

    r1: float  # percent of queries whose first right answer is the first, …
    r5: float  # … among the first five, …
    r10: float  # … among the first ten
    median: float  # rank of the first right answer, 1 is best; floored, as published
    mean: float  # rank, 1 is best


@dataclass(frozen=True)
class RetrievalMetrics:
    """Both tasks."""

    caption_retrieval: TaskMetrics
    image_retrieval: TaskMetrics

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, what models are selected on."""
        return sum(task.r1 + task.r5 + task.r10 for task in (self.caption_retrieval, self.image_retrieval))

    def to_dict(self) -> dict[str, Any]:
        """Nested, for JSON."""
        return {**asdict(self), "rsum": self.rsum}

    def flat(self) -> dict[str, float]:
        """One level, for logs: caption_retrieval_r1, …, rsum."""
        tasks = asdict(self)
        return {f"{task}_{name}": value for task, m in tasks.items() for name, value in m.items()} | {"rsum": self.rsum}


def ranks(similarity: np.ndarray, image_of_caption: np.ndarray) -> Ranks:
    """Ranks of both tasks.

    Args:
        similarity: (N, M), images as rows, larger is better.
        image_of_caption: (M,) the image that each caption belongs to. Any number of captions an image.

    Raises:
        MatcherError: shapes that do not fit, or scores that are not finite.
    """
    similarity, owner = np.asarray(similarity), np.asarray(image_of_caption)
    N, M = similarity.shape
    if owner.shape != (M,) or not M or owner.min() < 0 or owner.max() >= N:
        raise MatcherError(f"image_of_caption {owner.shape}: expected ({M},) indices into {N} images")
    positives = similarity[owner, np.arange(M)]  # (M,)
    best = np.full(N, -np.inf, dtype=positives.dtype)
    np.maximum.at(best, owner, positives)  # (N,) of each image's most similar caption
    image_ranks = np.full(M, -1)  # the right image counts itself once
    caption_ranks = np.zeros(N, dtype=np.int64)
    step = max(1, BLOCK // M)
    for start in range(0, N, step):
        rows = np.asarray(similarity[start : start + step])
        if not np.isfinite(rows).all():
            raise MatcherError(f"similarity of images {start} to {start + len(rows) - 1}: scores that are not finite")
        image_ranks += (rows >= positives).sum(0)
        # An image's own captions are right answers, never ahead of one another.
        others = owner != np.arange(start, start + len(rows))[:, None]
        caption_ranks[start : start + len(rows)] = ((rows >= best[start : start + step, None]) & others).sum(1)
    return Ranks(caption_ranks[np.unique(owner)], image_ranks)


def recalls(ranks: Ranks) -> RetrievalMetrics:
    """Recall at 1, 5, 10 in percent, median and mean rank, of both tasks."""
    return RetrievalMetrics(_task(ranks.caption_retrieval), _task(ranks.image_retrieval))


def fold_average(similarity: np.ndarray, image_of_caption: np.ndarray, *, folds: int) -> RetrievalMetrics:
    """Mean of the metrics over folds of consecutive images and their captions: COCO's 1K protocol with five.

    Raises:
        MatcherError: images that do not divide into equal folds.
    """
    owner = np.asarray(image_of_caption)
    size, rest = divmod(len(similarity), folds)
    if rest or not size:
        raise MatcherError(f"{len(similarity)} images do not divide into {folds} equal folds")
    results = []
    for first in range(0, len(similarity), size):
        captions = np.flatnonzero((owner >= first) & (owner < first + size))
        block = similarity[first : first + size][:, captions]
        results.append(recalls(ranks(block, owner[captions] - first)))
    return RetrievalMetrics(
        _mean([result.caption_retrieval for result in results]), _mean([result.image_retrieval for result in results])
    )


def confidence_intervals(
    ranks: Ranks, image_of_caption: np.ndarray, *, samples: int = 1000
) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals of every recall and of rsum: "caption_retrieval_r1" -> (low, high), in percent.

    Images are drawn with replacement, each with all its captions, as those are not independent of one another
    (percentile method; Efron and Tibshirani 1993).

    Args:
        ranks: of a similarity matrix.
        image_of_caption: (M,) as `ranks` had it.
        samples: bootstrap samples, the same ones at every call.
    """
    images, owner = np.unique(np.asarray(image_of_caption), return_inverse=True)
    hits: list[np.ndarray] = [ranks.caption_retrieval < k for k in RANKS]
    hits += [np.bincount(owner, weights=ranks.image_retrieval < k) for k in RANKS]  # captions that found their image
    per_image = np.stack([*hits, np.bincount(owner)], axis=1).astype(np.float64)  # (N, 7)
    rng, even = np.random.default_rng(0), np.full(len(images), 1 / len(images))
    sizes = [min(SAMPLES_AT_ONCE, samples - first) for first in range(0, samples, SAMPLES_AT_ONCE)]
    sums = np.concatenate([rng.multinomial(len(images), even, size) @ per_image for size in sizes])  # (samples, 7)
    found: dict[str, np.ndarray] = {}
    for column, k in enumerate(RANKS):
        found[f"caption_retrieval_r{k}"] = 100 * sums[:, column] / len(images)
        found[f"image_retrieval_r{k}"] = 100 * sums[:, column + len(RANKS)] / sums[:, -1]
    found["rsum"] = np.sum(list(found.values()), axis=0)
    tails = [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)]
    return {name: tuple(np.percentile(values, tails).tolist()) for name, values in found.items()}


def chance(image_of_caption: np.ndarray, images: int, *, folds: int = 1) -> dict[str, float]:
    """What a random ranking gives on average, in percent: "caption_retrieval_r1" -> …, and rsum.

    Args:
        image_of_caption: (M,) as `ranks` had it.
        images: N.
        folds: of consecutive images, as `fold_average` had them.
    """
    owner, size = np.asarray(image_of_caption), images // folds
    found: dict[str, float] = {}
    for k in RANKS:
        of_folds = []
        for first in range(0, images, size):
            counts = np.bincount(owner[(owner >= first) & (owner < first + size)] - first, minlength=size)
            captions = counts.sum()
            drawn = np.arange(min(k, captions))
            misses = np.prod((captions - counts[counts > 0, None] - drawn).clip(0) / (captions - drawn), axis=1)
            of_folds.append(100 * (1 - misses.mean()))
        found[f"caption_retrieval_r{k}"] = float(np.mean(of_folds))
        found[f"image_retrieval_r{k}"] = 100 * min(k, size) / size
    found["rsum"] = sum(found.values())
    return found


def _task(positions: np.ndarray) -> TaskMetrics:
    r1, r5, r10 = (100.0 * float(np.mean(positions < k)) for k in RANKS)
    return TaskMetrics(r1, r5, r10, float(np.floor(np.median(positions)) + 1), float(positions.mean() + 1))


def _mean(tasks: Sequence[TaskMetrics]) -> TaskMetrics:
    return TaskMetrics(*np.mean([list(asdict(task).values()) for task in tasks], axis=0).tolist())


def kendall(scores: np.ndarray, grades: np.ndarray) -> tuple[float, float]:
    """Kendall's τ-b and τ-c of scores (n,) and grades (n,): agreement of two orders that may have ties, -1 to 1.

    With C pairs of observations ordered alike by both and D ordered oppositely, n_s and n_g pairs that are not tied in scores
    and in grades, and m the smaller number of different values (Kendall 1945; Stuart 1953):

        τ-b = (C - D) / sqrt(n_s n_g)        τ-c = 2 (C - D) m / (n² (m - 1))
    """
    order = np.unique(grades)
    groups = [np.sort(scores[grades == grade]) for grade in order]
    excess = 0  # C - D
    for lower, higher in combinations(groups, 2):
        excess += int(np.searchsorted(lower, higher, "left").sum())
        excess -= int((len(lower) - np.searchsorted(lower, higher, "right")).sum())
    n = len(scores)
    different, counts = np.unique(scores, return_counts=True)
    untied_scores = (n**2 - int((counts.astype(np.int64) ** 2).sum())) // 2
    untied_grades = (n**2 - sum(len(group) ** 2 for group in groups)) // 2
    m = min(len(different), len(order))
    if m < 2:
        return 0.0, 0.0
    return excess / float(np.sqrt(float(untied_scores) * untied_grades)), 2 * excess * m / (n**2 * (m - 1))


def best_columns(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the largest scores of each row, best first: (rows, count)."""
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
