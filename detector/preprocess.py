"""Decoded photo -> network input, as in the published detector's training. Needs no network: runs in any process."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detector.config import STRIDE, DetectorConfig
from detector.errors import DetectorError


@dataclass(frozen=True)
class InputSettings:
    """What of a detector's configuration concerns its input."""

    min_size: int
    max_size: int
    pixel_mean: tuple[float, ...]
    square: bool = False  # stretch to min_size x min_size, averaging the pixels where that shrinks

    @classmethod
    def of(cls, config: DetectorConfig) -> "InputSettings":
        return cls(config.min_size, config.max_size, tuple(config.pixel_mean))


@dataclass(frozen=True)
class PreparedImage:
    """A resized image, ready for the network."""

    pixels: np.ndarray  # (h, w, 3) float32, BGR minus the mean
    scale: tuple[float, float]  # resized / original, of (y, x); they differ only where a side was stretched
    image_size: tuple[int, int]  # (height, width) of the original


def prepare(image: np.ndarray, settings: InputSettings) -> PreparedImage:
    """Subtract the mean, then resize bilinearly: the short side to `min_size` unless the long side passes `max_size`.

    Under `square` both sides become `min_size`, whatever the aspect ratio, and the resize comes first. Of an extreme aspect
    ratio nothing of the short side would be left: it is stretched to one cell of the feature map.

    Raises:
        DetectorError: the image is not (H, W, 3) uint8 BGR.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DetectorError(f"image of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8, BGR")
    height, width = image.shape[:2]
    mean: Any = (*settings.pixel_mean, 0.0)  # a colour, which cv2's annotations do not know
    if settings.square:
        side = settings.min_size
        shrinks = height * width > side * side
        resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        pixels = cv2.subtract(resized, mean, dtype=cv2.CV_32F)
        return PreparedImage(pixels, (side / height, side / width), (height, width))
    scale = min(settings.min_size / min(height, width), settings.max_size / max(height, width))
    centered = cv2.subtract(image, mean, dtype=cv2.CV_32F)  # NumPy's numbers in half the time
    x, y = max(scale, STRIDE / width), max(scale, STRIDE / height)
    pixels = cv2.resize(centered, None, fx=x, fy=y, interpolation=cv2.INTER_LINEAR)
    return PreparedImage(pixels, (y, x), (height, width))
