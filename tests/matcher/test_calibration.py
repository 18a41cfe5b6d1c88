"""Weak matches: what chance alone would score."""

import json

import numpy as np
import pytest

from matcher.calibration import Calibration, calibrate
from matcher.errors import MatcherError


def scores(photos: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unrelated pairs are normal around 0, right ones around 4."""
    rng = np.random.default_rng(seed)
    similarity = rng.normal(size=(photos, 2 * photos))
    own = np.repeat(np.arange(photos), 2)
    similarity[own, np.arange(2 * photos)] += 4
    return similarity, own


def test_chance_is_counted_in_photos() -> None:
    found = calibrate(*scores())
    assert found is not None
    assert found.share(1.2816) == pytest.approx(0.1, rel=0.05)  # a tenth of a normal distribution
    assert found.share(2.3263) == pytest.approx(0.01, rel=0.1)
    assert found.share(99.0) == pytest.approx(1e-4)
    assert found.right[1] == pytest.approx(4, abs=0.2)


def test_a_score_is_weak_where_unrelated_photos_reach_it() -> None:
    found = calibrate(*scores())
    assert found is not None
    assert found.is_weak(2.0, 100)  # more than two of a hundred score that high
    assert not found.is_weak(2.3263, 100)  # one does
    assert not found.is_weak(3.0, 100)
    assert found.is_weak(2.3263, 300)
    assert not found.is_weak(3.0, 1000)
    assert found.is_weak(2.8, 1000)
    assert not found.is_weak(3.5, 1_000_000)  # of a large collection no more is asked


@pytest.mark.parametrize("photos", [1, 2, 3, 4, 12, 24])
def test_nonsense_is_weak_among_a_few_photos_as_well(photos: int) -> None:
    found = calibrate(*scores())
    assert found is not None
    assert found.is_weak(1.5, photos)  # which one unrelated pair in fifteen reaches
    assert not found.is_weak(2.0, photos)  # one in forty


def test_new_data_keeps_to_the_promise() -> None:
    found = calibrate(*scores())
    assert found is not None
    similarity, own = scores(100, seed=1)
    best_unrelated = np.where(own == np.arange(100)[:, None], -np.inf, similarity).max(0)
    right = similarity[own, np.arange(200)]
    assert np.mean([found.is_weak(score, 100) for score in best_unrelated]) > 0.1
    assert np.mean([found.is_weak(score, 100) for score in right]) < 0.05


def test_json_and_back() -> None:
    found = calibrate(*scores(50))
    assert found is not None
    content = json.loads(json.dumps(found.to_file("a model")))
    assert Calibration.of_file(content, "a model") == found
    assert Calibration.of_file(content, "another model") is None
    assert Calibration.of_file({}, "a model") is None
    with pytest.raises(MatcherError, match=r"calibration\.json: not a calibration"):
        Calibration.of_file({"shares": [1]}, "a model")


def test_a_changed_digit_is_told() -> None:
    found = calibrate(*scores(50))
    assert found is not None
    content = found.to_file("a model")
    changed = content | {"scores": [score + 0.1 for score in found.scores]}
    with pytest.raises(MatcherError, match=r"calibration\.json: damaged, not the numbers that were written"):
        Calibration.of_file(changed, "a model")
    del changed["sha256"]  # as runs were written before there was one
    assert Calibration.of_file(changed, "a model")


def test_small_dev_splits() -> None:
    assert calibrate(np.ones((1, 5)), np.zeros(5, dtype=int)) is None
    found = calibrate(np.eye(2), np.arange(2))
    assert found is not None
    assert found.is_weak(0.0, 10)
