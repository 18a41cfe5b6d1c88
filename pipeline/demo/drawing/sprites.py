"""A thing seen from one side: what its surface is at every pixel, before any light falls on it.

Rays are marched through a shape's distance function once per view, in parallel projection; scenes then scale the result and light it,
which takes a millisecond and looks the same as tracing every scene anew.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.demo.drawing.shapes import SHAPES, Shape

RESOLUTION = 130  # pixels per unit: the largest things are drawn at this size
LEFT, RIGHT, BELOW, ABOVE = -0.8, 0.8, -0.35, 1.3  # of the view, in units about the point where the thing stands
BACK = 2.0  # units between the camera's plane and the thing
NEVER = 2 * BACK  # units: rays that have gone so far have missed
STEPS = 36
HIT = 0.004


@dataclass(frozen=True)
class Sprite:
    """A view of a thing."""

    surface: np.ndarray
    """(h, w, 10) float32, premultiplied by coverage so that it can be resized: x, y, z of the normal; share of the thing's own
    colour, BGR besides; height in units; openness to the sky 0..1; coverage 0..1."""
    foot: np.ndarray  # (2,) x, y in pixels of the point where it stands
    solid: np.ndarray  # (3, n) points inside the shape, in units: what throws the shadow


@cache
def sprite(kind: str, turn: float, pitch: float) -> Sprite:
    """A kind of thing, turned by `turn` degrees, seen from `pitch` degrees above."""
    shape, angle = SHAPES[kind], math.radians(turn)
    own = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]], np.float32
    )
    # rays, and all that follows, are in the space of the thing: a row of the world times `own`
    cos, sin = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    forward = np.array([0, cos, -sin], np.float32) @ own
    right = np.arange(LEFT, RIGHT, 1 / RESOLUTION, dtype=np.float32) + 0.5 / RESOLUTION
    up = np.arange(ABOVE, BELOW, -1 / RESOLUTION, dtype=np.float32) - 0.5 / RESOLUTION
    across, along = (axis.ravel() for axis in np.meshgrid(right, up))
    origin = np.stack([across, along * sin, along * cos], 1) @ own - BACK * forward
    travelled, nearest = _march(shape, origin, forward)
    coverage = np.clip(1 - nearest * RESOLUTION, 0, 1)
    hit = np.flatnonzero(coverage)
    points = origin[hit] + travelled[hit, None] * forward
    normal = _normals(shape, points)
    parts = (normal @ own.T, shape.paint(*points.T), points[:, 2:], _openness(shape, points, normal))
    surface = np.zeros((len(up), len(right), 10), np.float32)
    surface.reshape(-1, 10)[hit] = np.column_stack([*parts, np.ones(len(hit))]) * coverage[hit, None]
    rows, columns = np.unravel_index(hit, surface.shape[:2])
    top, left = rows.min(), columns.min()
    surface = surface[top : rows.max() + 1, left : columns.max() + 1].copy()
    grid = np.mgrid[-0.75:0.76:0.06, -0.6:0.61:0.06, 0.02:1.25:0.06].reshape(3, -1).astype(np.float32)
    solid = own @ grid[:, shape.distance(*grid) < 0.01]
    return Sprite(surface, np.array([-LEFT * RESOLUTION - left, ABOVE * RESOLUTION - top]), solid)


def _march(shape: Shape, origin: np.ndarray, forward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each ray, how far it goes until it meets the shape, or passes it closest; and how close it passes (0: it meets)."""
    travelled, at_nearest = np.zeros((2, len(origin)), np.float32)
    nearest = np.full(len(origin), np.inf, np.float32)
    active = np.arange(len(origin))
    for _ in range(STEPS):
        distance = shape.distance(*(origin[active] + travelled[active, None] * forward).T)
        closer = distance < nearest[active]
        nearest[active[closer]], at_nearest[active[closer]] = distance[closer], travelled[active[closer]]
        travelled[active] += 0.9 * distance
        active = active[(distance > HIT) & (travelled[active] < NEVER)]
    nearest[nearest <= HIT] = 0
    return at_nearest, nearest


def _normals(shape: Shape, points: np.ndarray) -> np.ndarray:
    steps = 0.01 * np.eye(3, dtype=np.float32)  # about a pixel: sharp edges become narrow bevels
    differences = [shape.distance(*(points + step).T) - shape.distance(*(points - step).T) for step in steps]
    gradient = np.stack(differences, 1)
    return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)


def _openness(shape: Shape, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """How much of the sky a point sees, from how soon the shape comes near on the way out."""
    openness = np.ones(len(points), np.float32)
    for reach, weight in ((0.05, 0.35), (0.14, 0.4)):
        openness -= weight * np.clip(1 - shape.distance(*(points + reach * normal).T) / reach, 0, 1)
    return np.maximum(openness, 0)
