"""The ten kinds of things, as signed distance functions: their shape and what is painted on it.

Space of a thing: x to the right, y away from the viewer, z up; it stands on z = 0, its front looks to -y, and its larger side
is about 1. Points come as three arrays of one shape, so that a whole picture of rays is asked at once. The formulas of the
primitives are Inigo Quilez's (iquilezles.org/articles/distfunctions).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.demo.drawing.color import bgr

Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (n,) x, y, z -> (n,), negative inside
Paint = Callable[
    [np.ndarray, np.ndarray, np.ndarray], np.ndarray
]  # (n,) x, y, z -> (n, 4): share of the thing's own colour; BGR besides

WHITE, CREAM, DARK, BROWN = "#f4f1ea", "#efe3c8", "#2b2b30", "#c08a4e"


@dataclass(frozen=True)
class Part:
    """A surface and its paint."""

    distance: Distance
    paint: Paint


@dataclass(frozen=True)
class Shape:
    """A kind of thing: the union of its parts."""

    parts: Sequence[Part]
    turns: Sequence[float]  # degrees that it may be turned by; few for what looks alike from everywhere

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n,) distance to the nearest part."""
        return np.minimum.reduce([part.distance(x, y, z) for part in self.parts])

    def paint(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n, 4) paint of the nearest part."""
        nearest = np.argmin([part.distance(x, y, z) for part in self.parts], axis=0)
        paint = np.empty((len(x), 4), np.float32)
        for number, part in enumerate(self.parts):
            here = nearest == number
            paint[here] = part.paint(x[here], y[here], z[here])
        return paint


# --- paint


def own(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The thing's own colour all over."""
    return np.repeat(np.array([[1, 0, 0, 0]], np.float32), len(x), axis=0)


def plain(color: str) -> Paint:
    """A fixed colour, whatever the thing's own is."""
    row = np.array([[0, *bgr(color)]], np.float32)
    return lambda x, y, z: np.repeat(row, len(x), axis=0)


def decal(where: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], color: str, under: Paint = own) -> Paint:
    """A fixed colour where `where` is positive (0..1 blends), `under` elsewhere."""

    def paint(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        share = np.clip(where(x, y, z), 0, 1)[:, None]
        return (1 - share) * under(x, y, z) + share * plain(color)(x, y, z)

    return paint


# --- primitives


def _length(*axes: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(axis * axis for axis in axes))


def _positive(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def sphere(x: np.ndarray, y: np.ndarray, z: np.ndarray, radius: float) -> np.ndarray:
    return _length(x, y, z) - radius


def ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    inner = _length(x / a, y / b, z / c)
    slope = _length(x / a**2, y / b**2, z / c**2)
    return inner * (inner - 1) / np.maximum(slope, 1e-6)


def block(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, a: float, b: float, c: float, rounding: float = 0.03
) -> np.ndarray:
    """Half sides a, b, c."""
    dx, dy, dz = np.abs(x) - a + rounding, np.abs(y) - b + rounding, np.abs(z) - c + rounding
    outside = _length(_positive(dx), _positive(dy), _positive(dz))
    return outside + np.minimum(np.maximum(dx, np.maximum(dy, dz)), 0) - rounding


def cylinder(radial: np.ndarray, along: np.ndarray, radius: float, half: float, rounding: float = 0.02) -> np.ndarray:
    dr, da = radial - radius + rounding, np.abs(along) - half + rounding
    return _length(_positive(dr), _positive(da)) + np.minimum(np.maximum(dr, da), 0) - rounding


def torus(x: np.ndarray, y: np.ndarray, along: np.ndarray, radius: float, thickness: float) -> np.ndarray:
    return _length(_length(x, y) - radius, along) - thickness


def frustum(radial: np.ndarray, z: np.ndarray, low: float, high: float, r_low: float, r_high: float) -> np.ndarray:
    """A cone cut at both ends, slopes shallow enough for this bound to be close."""
    share = np.clip((z - low) / (high - low), 0, 1)
    radius = r_low + (r_high - r_low) * share
    slant = math.cos(math.atan2(r_low - r_high, high - low))
    dr, dz = (radial - radius) * slant, np.maximum(low - z, z - high)
    return _length(_positive(dr), _positive(dz)) + np.minimum(np.maximum(dr, dz), 0)


def smooth_union(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    share = _positive(blend - np.abs(first - second)) / blend
    return np.minimum(first, second) - share * share * blend / 4


def _turned(a: np.ndarray, b: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos * a + sin * b, cos * b - sin * a


def star_outline(x: np.ndarray, y: np.ndarray, radius: float, inner: float) -> np.ndarray:
    """2D distance to a five-pointed star, a point upwards."""
    k1x, k1y, k2x = 0.809016994, -0.587785252, -0.809016994
    x = np.abs(x)
    dot = _positive(k1x * x + k1y * y)
    x, y = x - 2 * dot * k1x, y - 2 * dot * k1y
    dot = _positive(k2x * x + k1y * y)
    x, y = np.abs(x - 2 * dot * k2x), y - 2 * dot * k1y
    y = y - radius
    bx, by = inner * -k1y, inner * k1x - 1
    h = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, radius)
    return _length(x - bx * h, y - by * h) * np.sign(y * bx - x * by)


def heart_outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """2D distance to a heart of height 1 that stands on (0, 0)."""
    x = np.abs(x)
    lobe = _length(x - 0.25, y - 0.75) - 0.353553
    shift = 0.5 * _positive(x + y)
    tip = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - shift) ** 2 + (y - shift) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip)


# --- the kinds


def _ball() -> Shape:
    def band(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        tilted = 0.45 * x + 0.25 * y + 0.857 * (z - 0.5)
        return (0.075 - np.abs(tilted)) * 60

    return Shape([Part(lambda x, y, z: sphere(x, y, z - 0.5, 0.5), decal(band, WHITE))], (0, 80, 150, 230))


def _cone() -> Shape:
    def stripe(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (0.09 - np.abs(z - 0.56)) * 80

    body = Part(lambda x, y, z: frustum(_length(x, y), z, 0.04, 1.08, 0.34, 0.05) - 0.015, decal(stripe, WHITE))
    foot = Part(lambda x, y, z: block(x, y, z - 0.04, 0.43, 0.43, 0.04), own)
    return Shape([body, foot], (15, 40, 65))


def _mug() -> Shape:
    def cup(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        radial = _length(x, y)
        return np.maximum(cylinder(radial, z - 0.46, 0.4, 0.46, 0.05), -cylinder(radial, z - 0.56, 0.34, 0.5, 0.02))

    def inside(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(z > 0.1, (0.365 - _length(x, y)) * 60, 0)

    def handle(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(torus(x - 0.4, z - 0.47, y, 0.22, 0.06), 0.36 - x)

    coffee = Part(lambda x, y, z: cylinder(_length(x, y), z - 0.7, 0.345, 0.02, 0.005), plain("#4a2a17"))
    return Shape([Part(cup, decal(inside, WHITE)), Part(handle, own), coffee], (-150, -50, -25, 0, 25, 150, 180, 205))


def _donut() -> Shape:
    lean, radius, thickness = 62.0, 0.33, 0.185

    def upright(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        along, up = _turned(-y, z - 0.48, 90 - lean)  # leans back, its icing to the viewer
        return x, up, along

    def ring(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return torus(*upright(x, y, z), radius, thickness)

    def dough(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, up, along = upright(x, y, z)
        angle = np.arctan2(up, x)
        edge = 0.0 + 0.025 * np.sin(7 * angle) + 0.02 * np.sin(4 * angle + 1)
        return (edge - along) * 50

    def sprinkles(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, up, along = upright(x, y, z)
        share = np.zeros_like(x)
        for number in range(26):
            angle, across = number * 2.39996, radius + 0.1 * math.sin(number * 5.3)
            cx, cy, turn = across * math.cos(angle), across * math.sin(angle), number * 77.0
            a, b = _turned(x - cx, up - cy, turn)
            stroke = _length(_positive(np.abs(a) - 0.028), b)
            share = np.maximum(share, (0.017 - stroke) * 90)
        return np.where(along > 0.06, share, 0)

    icing = decal(sprinkles, WHITE)
    return Shape([Part(ring, decal(dough, BROWN, icing))], (-32, -12, 10, 30))


def _star() -> Shape:
    def star(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        outline = star_outline(x, z - 0.47, 0.55, 0.5)
        return np.maximum(outline, np.abs(y) * 0.87 + outline * 0.5 - 0.04) * 0.9 - 0.025

    return Shape([Part(star, own)], (-35, -18, 0, 18, 35))


def _heart() -> Shape:
    def heart(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        outline = heart_outline(x * 1.02, z * 1.02 + 0.02)
        return _length(_positive(outline + 0.19), y * 0.95) - 0.19

    return Shape([Part(heart, own)], (-38, -20, 0, 20, 38))


def _mushroom() -> Shape:
    def cap(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        dome = ellipsoid(x, y, z - 0.5, 0.52, 0.52, 0.46)
        return -smooth_union(-dome, z - 0.45, 0.1)

    def spots(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        share = np.zeros_like(x)
        for number in range(17):
            height = 1 - (number + 0.5) / 17 * 0.92
            angle, flat = number * 2.39996, math.sqrt(1 - height * height)
            dx, dy, dz = x - 0.52 * flat * math.cos(angle), y - 0.52 * flat * math.sin(angle), z - 0.5 - 0.46 * height
            share = np.maximum(share, (0.07 + 0.025 * math.sin(number * 3.7) - _length(dx, dy, dz)) * 60)
        return np.where(_length(x / 0.5, y / 0.5, (z - 0.5) / 0.44) > 0.95, share, 0)

    def gills(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (1.0 - _length(x / 0.495, y / 0.495, (z - 0.5) / 0.44)) * 30

    stalk = Part(lambda x, y, z: frustum(_length(x, y), z, 0.03, 0.62, 0.17, 0.12) - 0.03, plain(CREAM))
    return Shape([Part(cap, decal(gills, CREAM, decal(spots, WHITE))), stalk], (0, 70, 140, 220))


def _house() -> Shape:
    def panes(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        front = np.minimum(0.075 - np.abs(np.abs(x) - 0.22), 0.085 - np.abs(z - 0.34))
        bars = np.minimum(np.abs(np.abs(x) - 0.22), np.abs(z - 0.34)) - 0.012
        side = np.minimum(0.09 - np.abs(y), 0.085 - np.abs(z - 0.34))
        bars_side = np.minimum(np.abs(y), np.abs(z - 0.34)) - 0.012
        pane = np.where(
            np.abs(y) > 0.32, np.minimum(front, bars), np.where(np.abs(x) > 0.38, np.minimum(side, bars_side), -1)
        )
        return pane * 100

    def frames(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        front = np.minimum(0.1 - np.abs(np.abs(x) - 0.22), 0.11 - np.abs(z - 0.34))
        side = np.minimum(0.115 - np.abs(y), 0.11 - np.abs(z - 0.34))
        return np.where(np.abs(y) > 0.32, front, np.where(np.abs(x) > 0.38, side, -1)) * 100

    def door(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(np.abs(y) > 0.32, np.minimum(0.075 - np.abs(x), 0.3 - z), -1) * 100

    def walls(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        gable = (np.abs(x) * 0.75 + (z - 0.94)) * 0.8
        return np.maximum(block(x, y, z - 0.45, 0.4, 0.34, 0.47, 0.01), gable)

    def roof(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        slope = (np.abs(x) * 0.75 + (z - 0.98)) * 0.8
        return np.maximum(np.maximum(np.abs(slope) - 0.035, np.abs(y) - 0.4), np.abs(x) - 0.5)

    def tiles(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return 0.55 * (np.abs(np.mod(z / 0.075, 1) - 0.5) > 0.38)

    chimney = Part(lambda x, y, z: block(x - 0.24, y - 0.1, z - 0.9, 0.07, 0.07, 0.17, 0.01), plain("#9a5b48"))
    wall_paint = decal(door, "#6b4428", decal(panes, "#31425c", decal(frames, WHITE)))
    return Shape(
        [Part(walls, wall_paint), Part(roof, decal(tiles, "#2e241f", plain("#5d463b"))), chimney],
        (-50, -35, -20, 0, 20, 35, 50),
    )


def _duck() -> Shape:
    def body(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        hull = ellipsoid(x - 0.02, y, z - 0.29, 0.48, 0.34, 0.3)
        tail = ellipsoid(*_tilted(x - 0.42, z - 0.45, y, 35), 0.2, 0.12, 0.09)
        head = sphere(x + 0.22, y, z - 0.76, 0.27)
        return smooth_union(smooth_union(hull, tail, 0.2), head, 0.16)

    def _tilted(
        x: np.ndarray, z: np.ndarray, y: np.ndarray, degrees: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        along, up = _turned(x, z, degrees)
        return along, y, up

    def wing(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return ellipsoid(*_tilted(x - 0.1, z - 0.36, np.abs(y) - 0.29, 15), 0.24, 0.08, 0.15)

    def beak(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        upper = ellipsoid(x + 0.5, y, z - 0.735, 0.15, 0.115, 0.04)
        lower = ellipsoid(x + 0.47, y, z - 0.69, 0.12, 0.09, 0.035)
        return np.minimum(upper, lower)

    def eye(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return sphere(x + 0.385, np.abs(y) - 0.155, z - 0.84, 0.055)

    def glint(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (0.03 - _length(x + 0.42, np.abs(y) - 0.18, z - 0.875)) * 90

    return Shape(
        [
            Part(body, own),
            Part(wing, own),
            Part(beak, plain("#f08a1c")),
            Part(eye, decal(glint, WHITE, plain("#15151a"))),
        ],
        (-20, 0, 25, 50, 130, 155, 180, 200),
    )


def _car() -> Shape:
    def hull(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        low = block(x, y, z - 0.27, 0.58, 0.27, 0.15, 0.09)
        shift = x + 0.03
        cabin = block(
            shift * (1 + 0.45 * _positive(z - 0.36)),
            y * (1 + 0.3 * _positive(z - 0.36)),
            z - 0.48,
            0.34,
            0.24,
            0.2,
            0.09,
        )
        arches = 0.155 - _length(np.abs(x) - 0.34, z - 0.15)
        return np.maximum(smooth_union(low, cabin * 0.85, 0.05), np.where(np.abs(y) > 0.17, arches, -1))

    def glass(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        high = 0.085 - np.abs(z - 0.535)
        side = np.minimum(0.25 - np.abs(x + 0.03), np.abs(x + 0.03) - 0.022)
        ends = 0.17 - np.abs(y)
        return np.minimum(high, np.where(np.abs(y) > 0.195, side, np.where(np.abs(x + 0.03) > 0.2, ends, -1))) * 70

    def lamps(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(x < -0.5, (0.06 - _length(np.abs(y) - 0.17, z - 0.31)) * 80, 0)

    def wheel(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return cylinder(_length(np.abs(x) - 0.34, z - 0.14), np.abs(y) - 0.22, 0.14, 0.065, 0.02)

    def hub(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (0.075 - _length(np.abs(x) - 0.34, z - 0.14)) * 80

    paint = decal(lamps, "#fff3c4", decal(glass, "#2a3644"))
    return Shape(
        [Part(hull, paint), Part(wheel, decal(hub, "#c9c9cf", plain(DARK)))], (-30, -12, 12, 30, 150, 168, 192, 210)
    )


SHAPES: dict[str, Shape] = {
    "ball": _ball(),
    "car": _car(),
    "cone": _cone(),
    "donut": _donut(),
    "duck": _duck(),
    "heart": _heart(),
    "house": _house(),
    "mug": _mug(),
    "mushroom": _mushroom(),
    "star": _star(),
}
