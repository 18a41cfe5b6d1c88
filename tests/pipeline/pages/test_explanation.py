"""The map of attention over a photo: honest in scale, smooth, the same in figure and page."""

import numpy as np
import pytest

from pipeline.explanation import Explanation
from pipeline.pages.explanation import DARKEST, FULL, coverage, dimmed_photos

BOXES = np.array([[0, 0, 20, 20], [20, 0, 40, 20], [0, 0, 40, 40]], dtype=np.float32)


def explanation(attention: list[float]) -> Explanation:
    weights = np.array([attention])
    photo = np.full((40, 40, 3), 200, np.uint8)
    names = ["", "brown dog", ""]
    return Explanation(photo, "a.jpg", "dog", "t2i", 0.5, ["dog"], weights, 1 / 3, weights, 0.1, BOXES, names)


def test_uniform_attention_looks_uniform() -> None:
    (photo,) = dimmed_photos(explanation([1 / 3] * 3))
    assert np.ptp(photo.astype(int)) <= 1
    assert photo.mean() == pytest.approx(200 * (DARKEST + (1 - DARKEST) / FULL), abs=1)


def test_a_small_peak_is_not_stretched_to_full_contrast() -> None:
    (slight,) = dimmed_photos(explanation([0.30, 0.38, 0.32]))
    (strong,) = dimmed_photos(explanation([0.0, 1.0, 0.0]))
    assert np.ptp(slight.astype(int)) < 20
    assert np.ptp(strong.astype(int)) > 60
    assert strong[5, 30].mean() > strong[5, 5].mean()


def test_coverage_sums_to_one_where_regions_are_and_to_zero_elsewhere() -> None:
    total = coverage(BOXES, 40, 40).sum(axis=0)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    alone = coverage(BOXES[:1] * 0.5, 40, 40)[0]
    assert alone[0, 0] == pytest.approx(1)
    assert alone[30, 30] == 0
    assert np.abs(np.diff(alone[0])).max() < 0.5  # a slope, no edge
