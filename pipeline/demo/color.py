"""Colours as light: BGR, linear in intensity, 1 is paper white. Pictures are drawn in it and stored as its square root."""

import numpy as np


def bgr(code: str) -> np.ndarray:
    """(3,) float32 linear BGR of a display colour such as "#d8332a"."""
    rgb = [int(code[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return np.array(rgb[::-1], np.float32) ** 2
