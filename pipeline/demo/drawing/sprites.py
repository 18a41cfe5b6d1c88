"""A thing seen from one side: what its surface is at every pixel, before any light falls on it.

Rays are marched through a shape's distance function once per view, in parallel projection; scenes then scale the result and light it,
which takes a millisecond and looks the same as tracing every scene anew.
"""

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from pipeline.demo.drawing.shapes import SHAPES, Shape

RESOLUTION = 130  # pixels per unit: the largest things are drawn at this size
LEFT, RIGHT, BELOW, ABOVE = -0.8, 0.8, -0.35, 1.3  # of the view, in units about the point where the thing stands
COARSE = 4  # pixels between the rays of the first pass
BACK = 2.0  # units between the camera's plane and the thing
NEVER = 2 * BACK  # units: rays that have gone so far have missed
STEPS = 36
HIT = 0.004


@dataclass(frozen=True)
class Sprite:
    """Surface at each pixel, premultiplied by coverage so that it can be resized."""

    normal: np.ndarray  # (h, w, 4) float32: x, y, z of the world, and coverage 0..1
    paint: np.ndarray  # (h, w, 4) float32: share of the thing's own colour, BGR besides
    place: np.ndarray  # (h, w, 4) float32: x, y, z in units; openness to the sky 0..1
    solid: np.ndarray  # (3, n) float32 points inside the shape, in units: what throws the shadow
    foot: tuple[float, float]  # (x, y) in pixels of the point where it stands
    scale: float  # pixels per unit

    def resized(self, size: tuple[int, int]) -> "Sprite":
        """The same at another (width, height) in pixels."""
        height, width = self.normal.shape[:2]
        normal, paint, place = (
            cv2.resize(layer, size, interpolation=cv2.INTER_AREA) for layer in (self.normal, self.paint, self.place)
        )
        foot = (self.foot[0] * size[0] / width, self.foot[1] * size[1] / height)
        return Sprite(normal, paint, place, self.solid, foot, self.scale * size[0] / width)


@cache
def sprite(kind: str, turn: float, pitch: float) -> Sprite:
    """A kind of thing, turned by `turn` degrees, seen from `pitch` degrees above."""
    return _render(SHAPES[kind], turn, pitch)


@cache
def halved(kind: str, turn: float, pitch: float) -> Sprite:
    """The same at half the resolution: small things are scaled from it, which is faster."""
    whole = sprite(kind, turn, pitch)
    height, width = whole.normal.shape[:2]
    return whole.resized((-(-width // 2), -(-height // 2)))


def _render(shape: Shape, turn: float, pitch: float) -> Sprite:
    height, width = round((ABOVE - BELOW) * RESOLUTION), round((RIGHT - LEFT) * RESOLUTION)
    # 1. where rays come near the shape at all: one ray in COARSE x COARSE finds out for its neighbours
    origin, forward = _rays(pitch, COARSE / RESOLUTION)
    travelled, nearest = _march(shape, turn, origin, forward, np.zeros(len(origin), np.float32))
    margin = COARSE / RESOLUTION  # more than half the diagonal between rays
    soonest = np.where(nearest < margin, travelled, NEVER).astype(np.float32)
    soonest = soonest.reshape(-(-height // COARSE), -(-width // COARSE))
    soonest_near = cv2.erode(soonest, np.ones((3, 3), np.uint8))  # of the neighbours
    start = np.repeat(np.repeat(soonest_near, COARSE, 0), COARSE, 1)[:height, :width].ravel()
    # 2. the other rays, from just before the shape on
    origin, forward = _rays(pitch, 1 / RESOLUTION)
    near = np.flatnonzero(start < NEVER)
    origin = origin[near]
    travelled, nearest = _march(shape, turn, origin, forward, np.maximum(start[near] - 0.25, 0))
    coverage = np.clip(1 - nearest * RESOLUTION, 0, 1)
    hit = coverage > 0
    points, seen, coverage = origin[hit] + travelled[hit, None] * forward, near[hit], coverage[hit, None]
    # 3. what the surface is there
    normal = _normals(shape, turn, points)
    surfaces = (
        np.concatenate([normal, np.ones_like(coverage)], 1),
        shape.paint(*_turn(points, turn)),
        np.concatenate([points, _openness(shape, turn, points, normal)[:, None]], 1),
    )
    rows, columns = np.unravel_index(seen, (height, width))
    top, left = int(rows.min()), int(columns.min())
    layers = [np.zeros((int(rows.max()) + 1 - top, int(columns.max()) + 1 - left, 4), np.float32) for _ in surfaces]
    for layer, surface in zip(layers, surfaces, strict=True):
        layer[rows - top, columns - left] = surface * coverage
    foot = (-LEFT * RESOLUTION - left, ABOVE * RESOLUTION - top)
    return Sprite(layers[0], layers[1], layers[2], _solid(shape, turn), foot, RESOLUTION)


def _rays(pitch: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Origins (n, 3) of parallel rays, row by row from the upper left, `step` apart, and their direction (3,)."""
    cos, sin = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    forward = np.array([0, cos, -sin], np.float32)
    right = np.arange(LEFT, RIGHT - 1e-6, step, dtype=np.float32) + step / 2
    up = ABOVE - np.arange(0, ABOVE - BELOW - 1e-6, step, dtype=np.float32) - step / 2
    a, b = (axis.ravel() for axis in np.meshgrid(right, up))
    return np.stack([a, b * sin, b * cos], 1).astype(np.float32) - BACK * forward, forward


def _turn(points: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the world in the space of the thing."""
    cos, sin = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))
    x, y, z = points.T
    return cos * x + sin * y, cos * y - sin * x, z


def _march(
    shape: Shape, turn: float, origin: np.ndarray, forward: np.ndarray, travelled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each ray, how far it goes until it meets the shape, or passes it closest; and how close it passes (0: it meets)."""
    nearest = np.full(len(origin), np.inf, np.float32)
    at_nearest = np.zeros(len(origin), np.float32)
    active = np.arange(len(origin))
    for _ in range(STEPS):
        distance = shape.distance(*_turn(origin[active] + travelled[active, None] * forward, turn))
        closer = distance < nearest[active]
        nearest[active[closer]], at_nearest[active[closer]] = distance[closer], travelled[active[closer]]
        travelled[active] += 0.9 * distance
        active = active[(distance > HIT) & (travelled[active] < NEVER)]
        if not len(active):
            break
    nearest[nearest <= HIT] = 0
    return at_nearest, nearest


def _normals(shape: Shape, turn: float, points: np.ndarray) -> np.ndarray:
    step = np.float32(0.01)  # about a pixel: sharp edges become narrow bevels
    gradient = np.empty_like(points)
    for axis in range(3):
        ahead, behind = points.copy(), points.copy()
        ahead[:, axis] += step
        behind[:, axis] -= step
        gradient[:, axis] = shape.distance(*_turn(ahead, turn)) - shape.distance(*_turn(behind, turn))
    return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)


def _openness(shape: Shape, turn: float, points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """How much of the sky a point sees, from how soon the shape comes near on the way out."""
    openness = np.ones(len(points), np.float32)
    for reach, weight in ((0.05, 0.35), (0.14, 0.4)):
        distance = shape.distance(*_turn(points + reach * normal, turn))
        openness -= weight * np.clip(1 - distance / reach, 0, 1)
    return np.clip(openness, 0, 1)


@cache
def _grid() -> np.ndarray:
    x, y, z = np.meshgrid(np.arange(-0.75, 0.76, 0.06), np.arange(-0.6, 0.61, 0.06), np.arange(0.02, 1.25, 0.06))
    return np.stack([x.ravel(), y.ravel(), z.ravel()], 1).astype(np.float32)


def _solid(shape: Shape, turn: float) -> np.ndarray:
    grid = _grid()
    return np.ascontiguousarray(grid[shape.distance(*_turn(grid, turn)) < 0.01].T)
