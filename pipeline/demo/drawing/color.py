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


def linear(coded: np.ndarray) -> np.ndarray:
    """uint8 display values -> float32 linear."""
    shown = coded.astype(np.float32)
    shown *= shown
    shown *= np.float32(1 / 255**2)
    return shown


def haze(rows: np.ndarray, color: np.ndarray, most: float) -> None:
    """Blend the farther half of some rows, farthest first, into a colour."""
    far = rows.shape[0] // 2
    share = (np.linspace(1, 0, far, dtype=np.float32)[:, None] ** 2 * most).repeat(rows.shape[1], 1)
    rows[:far] *= spread(1 - share)
    rows[:far] += tinted(share, color)
