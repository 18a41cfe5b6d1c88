"""Colours as light: BGR, linear in intensity, 1 is paper white. Pictures are drawn in it and stored as its square root.

NumPy is slow where the last axis is three long; these go through OpenCV instead.
"""

import cv2
import numpy as np


def bgr(code: str) -> np.ndarray:
    """(3,) float32 linear BGR of a display colour such as "#d8332a"."""
    rgb = [int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return np.array(rgb[::-1], np.float32) ** 2


def spread(share: np.ndarray) -> np.ndarray:
    """(H, W) float32 -> (H, W, 3), the same for each colour."""
    return cv2.cvtColor(share, cv2.COLOR_GRAY2BGR)


def tinted(share: np.ndarray, color: np.ndarray, base: np.ndarray | float = 0.0) -> np.ndarray:
    """(H, W) float32 -> (H, W, 3): base + share * color."""
    affine = np.stack([color, np.broadcast_to(base, 3)], 1)
    return cv2.transform(share, affine.astype(np.float32))
