"""A texture on a plane in perspective, its relief shaded by the light."""

import math

import cv2
import numpy as np

from pipeline.demo.drawing.color import linear, spread
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.textures import SIDE, STEEPNESS, Texture


def cover(
    surface: Texture,
    plane: np.ndarray,
    size: tuple[int, int],
    angle: float,
    rng: np.random.Generator,
    light: Illumination,
) -> np.ndarray:
    """(h, w, 3) albedo of a plane covered with a texture, its relief shaded by the light."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    texels = SIDE / surface.units
    dx, dy = rng.uniform(0, SIDE, 2)
    placed = np.array([[cos * texels, sin * texels, dx], [-sin * texels, cos * texels, dy], [0, 0, 1]]) @ plane
    u, v = _texels(placed, size)
    color = linear(cv2.remap(surface.color, u, v, cv2.INTER_LINEAR))
    share = _blur_share(placed, size)
    far = int(np.count_nonzero(share))  # such rows come first
    if far:
        coarse = linear(cv2.remap(surface.coarse, u[:far], v[:far], cv2.INTER_LINEAR))
        color[:far] += (coarse - color[:far]) * share[:far, None, None]
    lx, ly = light.direction[:2] * light.hardness / STEEPNESS
    toward = np.array([cos * lx + sin * ly, cos * ly - sin * lx])  # the light as the texture's axes see it
    slope = cv2.remap(surface.slope, u, v, cv2.INTER_LINEAR).astype(np.float32)
    relief = cv2.transform(slope, np.array([[*toward, -128 * toward.sum()]], np.float32)) * (1 - share[:, None])
    color *= spread(np.clip(1 - relief, 0.35, 1.7))
    return color


def _texels(placed: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a texture, each (h, w) float32, that the pixels of an area show. Rows of a plane are level: one division each."""
    x, y = np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float64)[:, None]
    depth = placed[2, 1] * y + placed[2, 2]
    maps = []
    for axis in placed[:2]:
        first = np.mod((axis[1] * y + axis[2]) / depth, SIDE).astype(np.float32)
        value = first + (axis[0] / depth).astype(np.float32) * x
        maps.append(value - np.floor(value * np.float32(1 / SIDE)) * SIDE + 1)
    return maps[0], maps[1]


def _blur_share(placed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h,) float32: how far each row's texels are below the size of a pixel, 0..1."""
    rows = np.arange(size[1])
    points = np.stack([np.full(size[1], size[0] / 2), rows, np.ones(size[1])])
    beside, below = points + np.array([[1.0], [0], [0]]), points + np.array([[0.0], [1], [0]])
    here, right, down = ((placed @ each)[:2] / (placed @ each)[2] for each in (points, beside, below))
    step = np.maximum(np.hypot(*(right - here)), np.hypot(*(down - here)))
    return np.clip((step - 2) / 6, 0, 1).astype(np.float32)
