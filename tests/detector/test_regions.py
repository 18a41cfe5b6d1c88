"""Boxes in pixels of the image that they are drawn on, whatever is stored."""

import numpy as np
import pytest

from detector.regions import Regions


def regions(box: list[float], image_size: tuple[int, int]) -> Regions:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.int32)
    return Regions(np.array([box], np.float32), np.ones((1, 2), np.float32), zero, one, zero, one, image_size)


@pytest.mark.parametrize(
    ("box", "image_size", "shown", "expected"),
    [
        ([0, 10, 30, 40], (100, 200), (100, 200), [0, 10, 30, 40]),  # pixels, full size: as stored
        ([0, 0, 1, 1], (100, 200), (100, 200), [0, 0, 1, 1]),  # one pixel, not the image
        ([0, 10, 30, 40], (100, 200), (50, 50), [0, 5, 7.5, 20]),  # pixels, on a thumbnail
        ([0, 0.5, 0.25, 1], (0, 0), (100, 200), [0, 50, 50, 100]),  # the size was not known: fractions
        ([0, 0, 1.2, 1], (0, 0), (10, 10), [0, 0, 12, 10]),  # a fraction that leaves the image is one still
    ],
)
def test_pixel_boxes(
    box: list[float], image_size: tuple[int, int], shown: tuple[int, int], expected: list[float]
) -> None:
    found = regions(box, image_size).pixel_boxes(*shown)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [expected], rtol=1e-6)
