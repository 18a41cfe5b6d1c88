"""Hand-written 4 x 8: every rank can be read off the table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matcher.errors import MatcherError
from matcher.metrics import confidence_intervals, fold_average, kendall, ranks, recalls

OWNER = np.array([0, 0, 1, 1, 1, 2, 3, 3])  # two, three, one and two captions
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.2, 0.3, 0.0, 0.8, 0.4, 0.5],  # best own 0.9: nobody before
        [0.7, 0.2, 0.3, 0.6, 0.5, 0.1, 0.0, 0.4],  # best own 0.6: one before
        [0.8, 0.7, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2],  # own 0.4: five before
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],  # all alike: six strangers tie, and count against us
    ]
)


def test_ranks_by_hand() -> None:
    found = ranks(SIMILARITY, OWNER)
    assert found.caption_retrieval.tolist() == [0, 1, 5, 6]
    # by column, images at least as similar as the right one, itself not counted
    assert found.image_retrieval.tolist() == [0, 3, 2, 1, 2, 2, 0, 1]


def test_recalls_by_hand() -> None:
    metrics = recalls(ranks(SIMILARITY, OWNER))
    assert metrics.caption_retrieval.r1 == 25
    assert metrics.caption_retrieval.r5 == 50
    assert metrics.caption_retrieval.r10 == 100
    assert (metrics.caption_retrieval.median, metrics.caption_retrieval.mean) == (4, 4)  # of 1, 2, 6, 7: floored
    assert metrics.image_retrieval.r1 == 25
    assert metrics.image_retrieval.mean == 1 + 11 / 8
    assert metrics.rsum == 25 + 50 + 100 + 25 + 100 + 100
    assert metrics.flat()["image_retrieval_r1"] == metrics.to_dict()["image_retrieval"]["r1"] == 25


def test_equal_scores_retrieve_nothing() -> None:
    metrics = recalls(ranks(np.zeros((20, 100)), np.arange(100) // 5))
    assert metrics.rsum == 0


def test_images_without_captions_are_candidates_but_no_queries() -> None:
    found = ranks(np.array([[0.5, 0.1], [0.9, 0.0], [0.0, 0.2]]), np.array([0, 2]))
    assert found.caption_retrieval.tolist() == [0, 0]
    assert found.image_retrieval.tolist() == [1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_raise(bad: float) -> None:
    similarity = SIMILARITY.copy()
    similarity[2, 3] = bad
    with pytest.raises(MatcherError, match="not finite"):
        ranks(similarity, OWNER)


@pytest.mark.parametrize("owner", [OWNER[:-1], OWNER + 1, OWNER - 1])
def test_owners_that_do_not_fit_raise(owner: np.ndarray) -> None:
    with pytest.raises(MatcherError, match="expected"):
        ranks(SIMILARITY, owner)


def test_folds_are_consecutive_and_their_mean_is_taken() -> None:
    rng = np.random.default_rng(0)
    similarity, owner = rng.normal(size=(10, 30)), np.repeat(np.arange(10), 3)
    halves = [
        recalls(ranks(similarity[rows, columns], owner[columns] - rows.start))
        for rows, columns in ((slice(0, 5), slice(0, 15)), (slice(5, 10), slice(15, 30)))
    ]
    found = fold_average(similarity, owner, folds=2)
    assert found.rsum == pytest.approx(np.mean([half.rsum for half in halves]))
    assert found.caption_retrieval.mean == pytest.approx(np.mean([half.caption_retrieval.mean for half in halves]))
    with pytest.raises(MatcherError, match="equal folds"):
        fold_average(similarity, owner, folds=3)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 999), st.data())
def test_ranks_agree_with_sorting(images: int, captions: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, images, captions)
    similarity = rng.permutation(images * captions).reshape(images, captions).astype(np.float32)  # no ties
    found = ranks(similarity, owner)
    for row, image in zip(found.caption_retrieval, np.unique(owner), strict=True):
        assert row == np.flatnonzero(owner[np.argsort(-similarity[image])] == image)[0]
    for caption, row in enumerate(found.image_retrieval):
        assert np.argsort(-similarity[:, caption])[row] == owner[caption]


def test_intervals_hold_their_estimates_and_shrink_with_more_images() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for images in (50, 800):
        owner = np.repeat(np.arange(images), 5)
        similarity = rng.normal(size=(images, 5 * images)) + 2.5 * (owner == np.arange(images)[:, None])
        found = ranks(similarity, owner)
        intervals = confidence_intervals(found, owner, samples=400)
        for name, value in recalls(found).flat().items():
            if name in intervals:
                low, high = intervals[name]
                assert low <= value <= high
        assert intervals == confidence_intervals(found, owner, samples=400)
        low, high = intervals["caption_retrieval_r1"]
        p = np.mean(found.caption_retrieval < 1)
        assert high - low == pytest.approx(2 * 1.96 * 100 * np.sqrt(p * (1 - p) / images), rel=0.25)
        widths.append(intervals["rsum"][1] - intervals["rsum"][0])
    assert widths[0] > widths[1]


def test_intervals_are_the_same_however_many_samples_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = np.repeat(np.arange(40), 2)
    found = ranks(np.random.default_rng(0).standard_normal((40, 80)), owner)
    together = confidence_intervals(found, owner, samples=70)
    monkeypatch.setattr("matcher.metrics.SAMPLES_AT_ONCE", 16)
    apart = confidence_intervals(found, owner, samples=70)
    np.testing.assert_allclose(list(apart.values()), list(together.values()))


def kendall_loop(scores: np.ndarray, grades: np.ndarray) -> tuple[float, float]:
    """Pair by pair, as the definitions have it."""
    excess = untied_scores = untied_grades = 0
    for i in range(len(scores)):
        for j in range(i):
            left, right = np.sign(scores[i] - scores[j]), np.sign(grades[i] - grades[j])
            excess += left * right
            untied_scores += left != 0
            untied_grades += right != 0
    m = min(len(set(scores)), len(set(grades)))
    return excess / np.sqrt(untied_scores * untied_grades), 2 * excess / (len(scores) ** 2 * (m - 1) / m)


@settings(deadline=None)  # the first example imports SciPy
@given(st.integers(0, 999), st.integers(2, 30), st.integers(2, 5))
def test_kendall_is_its_definition(seed: int, size: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, size).astype(np.float32)
    grades = random.integers(0, levels, size).astype(float)
    if min(len(set(scores)), len(set(grades))) < 2:
        assert kendall(scores, grades) == (0.0, 0.0)
        return
    assert kendall(scores, grades) == pytest.approx(kendall_loop(scores, grades))
    stats = pytest.importorskip("scipy.stats")
    wanted = [stats.kendalltau(scores, grades, variant=variant).statistic for variant in ("b", "c")]
    assert kendall(scores, grades) == pytest.approx(wanted)


def test_kendall_of_perfect_agreement() -> None:
    assert kendall(np.array([0.1, 0.2, 0.7, 0.9]), np.array([1, 2, 3, 4])) == (1.0, 1.0)
    assert (
        kendall(np.array([0.9, 0.7, 0.2, 0.1]), np.array([1, 1, 2, 2]))[1] == -1.0
    )  # with ties τ-c reaches -1, τ-b does not
