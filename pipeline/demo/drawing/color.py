"""Colours as light: BGR, linear in intensity, 1 is paper white. Pictures are drawn in it and stored as its square root."""

import numpy as np


def bgr(code: str) -> np.ndarray:
    """(3,) float32 linear BGR of a display colour such as "#d8332a"."""
    rgb = [int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return np.array(rgb[::-1], np.float32) ** 2


def mix(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(..., 3) colours between two, `share` (...) of the way from `low` to `high`."""
    return low + (high - low) * np.clip(share, 0, 1)[..., None]


def soft_step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((x - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)
