"""The ten kinds of things, as signed distance functions: their shape and what is painted on it.

Space of a thing: x to the right, y away from the viewer, z up; it stands on z = 0, its front looks to -y, and its larger side
is about 1. Points come as three arrays of one shape, so that a whole picture of rays is asked at once. The formulas of the
primitives are Inigo Quilez's (iquilezles.org/articles/distfunctions).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from pipeline.demo.drawing.color import bgr

Array = np.ndarray
Field = Callable[[Array, Array, Array], Array]  # (n,) x, y, z -> (n,), distances: negative inside

OWN = ""  # the colour of the thing
WHITE, CREAM, DARK, BROWN = "#f4f1ea", "#efe3c8", "#2b2b30", "#c08a4e"
GOLDEN = 2.39996  # radians: turned by it again and again, points spread evenly


class Part:
    """A surface and its paint."""

    def __init__(self, distance: Field, color: str = OWN, *decals: tuple[Field, str]):
        """
        Args:
            distance: to the surface.
            color: of the surface.
            decals: where it has other colours, later ones on top.
        """
        self.distance, self.color, self.decals = distance, color, decals

    def paint(self, x: Array, y: Array, z: Array) -> Array:
        """(n, 4): share of the thing's own colour; BGR besides."""
        paint = np.repeat(_coded(self.color), len(x), axis=0)
        for where, color in self.decals:
            paint += (_coded(color) - paint) * np.clip(-70 * where(x, y, z), 0, 1)[:, None]
        return paint


def _coded(color: str) -> Array:
    return np.array([[0, *bgr(color)] if color else [1, 0, 0, 0]], np.float32)


class Shape:
    """A kind of thing: the union of its parts."""

    def __init__(self, turns: Sequence[float], *parts: Part):
        """`turns`: degrees that it may be turned by; few for what looks the same from everywhere."""
        self.turns, self.parts = turns, parts

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        """(n,) distance to the nearest part."""
        return np.minimum.reduce([part.distance(x, y, z) for part in self.parts])

    def paint(self, x: Array, y: Array, z: Array) -> Array:
        """(n, 4) paint of the nearest part."""
        nearest = np.argmin([part.distance(x, y, z) for part in self.parts], axis=0)
        return np.choose(nearest[:, None], [part.paint(x, y, z) for part in self.parts])


# --- primitives


def _length(*axes: Array) -> Array:
    return np.sqrt(sum(axis * axis for axis in axes))


def _rounded(*axes: Array) -> Array:
    """From distances along axes at right angles to the distance from what all of them are inside of."""
    return _length(*(np.maximum(axis, 0) for axis in axes)) + np.minimum(np.maximum.reduce(axes), 0)


def ellipsoid(x: Array, y: Array, z: Array, a: float, b: float, c: float) -> Array:
    inner = _length(x / a, y / b, z / c)
    return inner * (inner - 1) / np.maximum(_length(x / a**2, y / b**2, z / c**2), 1e-6)


def block(x: Array, y: Array, z: Array, a: float, b: float, c: float, rounding: float = 0.03) -> Array:
    """Half sides a, b, c."""
    return _rounded(abs(x) - a + rounding, abs(y) - b + rounding, abs(z) - c + rounding) - rounding


def cylinder(radial: Array, along: Array, radius: float, half: float, rounding: float = 0.02) -> Array:
    return _rounded(radial - radius + rounding, abs(along) - half + rounding) - rounding


def torus(x: Array, y: Array, along: Array, radius: float, thickness: float) -> Array:
    return _length(_length(x, y) - radius, along) - thickness


def frustum(radial: Array, z: Array, low: float, high: float, r_low: float, r_high: float) -> Array:
    """A cone cut at both ends, slopes shallow enough for this bound to be close."""
    radius = np.interp(z, [low, high], [r_low, r_high])
    slant = math.cos(math.atan2(r_low - r_high, high - low))
    return _rounded((radial - radius) * slant, np.maximum(low - z, z - high))


def smooth_union(first: Array, second: Array, blend: float) -> Array:
    share = np.maximum(blend - abs(first - second), 0) / blend
    return np.minimum(first, second) - share * share * blend / 4


def turned(a: Array, b: Array, degrees: float) -> tuple[Array, Array]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cos * a + sin * b, cos * b - sin * a


# --- the kinds


def _mug(x: Array, y: Array, z: Array) -> Array:
    radial = _length(x, y)
    return np.maximum(cylinder(radial, z - 0.46, 0.4, 0.46, 0.05), -cylinder(radial, z - 0.56, 0.34, 0.5))


def _mug_handle(x: Array, y: Array, z: Array) -> Array:
    return np.maximum(torus(x - 0.4, z - 0.47, y, 0.22, 0.06), 0.36 - x)


def _leaning(field: Field) -> Field:
    """A donut's x, up and along its axis, of which `field` is: it leans back, its icing to the viewer."""
    return lambda x, y, z: field(x, *turned(-y, z - 0.48, 28)[::-1])


def _sprinkles(x: Array, up: Array, along: Array) -> Array:
    strokes = []
    for number in range(26):
        angle, across = number * GOLDEN, 0.33 + 0.1 * math.sin(number * 5.3)
        a, b = turned(x - across * math.cos(angle), up - across * math.sin(angle), number * 77)
        strokes.append(_length(np.maximum(abs(a) - 0.028, 0), b) - 0.017)
    return np.maximum(np.minimum.reduce(strokes), 0.06 - along)


def _star(x: Array, y: Array, z: Array) -> Array:
    fold = math.radians(36)
    angle = abs((np.arctan2(x, z - 0.47) + fold) % (2 * fold) - fold)  # 0 at a point, `fold` between two
    radius = _length(x, z - 0.47)
    outline, _ = turned(radius * np.sin(angle), radius * np.cos(angle) - 0.52, 26.3)  # of a point's side
    return np.maximum(outline, abs(y) * 0.87 + outline * 0.5 - 0.04) * 0.9 - 0.025


def _heart(x: Array, y: Array, z: Array) -> Array:
    x, z = abs(x) * 1.02, z * 1.02 + 0.02
    lobe = _length(x - 0.25, z - 0.75) - 0.353553
    shift = 0.5 * np.maximum(x + z, 0)
    tip = np.minimum(_length(x, z - 1), _length(x - shift, z - shift)) * np.sign(x - z)
    return _length(np.maximum(np.where(x + z > 1, lobe, tip) + 0.19, 0), y * 0.95) - 0.19


def _cap(x: Array, y: Array, z: Array) -> Array:
    return -smooth_union(-ellipsoid(x, y, z - 0.5, 0.52, 0.52, 0.46), z - 0.45, 0.1)


def _spots(x: Array, y: Array, z: Array) -> Array:
    spots = []
    for number in range(17):
        height = 1 - (number + 0.5) / 17 * 0.92
        angle, flat = number * GOLDEN, 0.52 * math.sqrt(1 - height * height)
        away = _length(x - flat * math.cos(angle), y - flat * math.sin(angle), z - 0.5 - 0.46 * height)
        spots.append(away - 0.07 - 0.025 * math.sin(number * 3.7))
    return np.minimum.reduce(spots)


def _walls(x: Array, y: Array, z: Array) -> Array:
    return np.maximum(block(x, y, z - 0.45, 0.4, 0.34, 0.47, 0.01), (abs(x) * 0.75 + z - 0.94) * 0.8)


def _roof(x: Array, y: Array, z: Array) -> Array:
    slope = (abs(x) * 0.75 + z - 0.98) * 0.8
    return np.maximum.reduce([abs(slope) - 0.035, abs(y) - 0.4, abs(x) - 0.5])


def _windows(x: Array, y: Array, z: Array, half: float, bars: float) -> Array:
    """Two on the front and back, one on each side."""
    across, up = np.where(abs(y) > 0.32, abs(abs(x) - 0.22), np.where(abs(x) > 0.38, abs(y), 1)), abs(z - 0.34)
    return np.maximum.reduce([across - half, up - half - 0.01, bars - np.minimum(across, up)])


def _duck(x: Array, y: Array, z: Array) -> Array:
    along, up = turned(x - 0.42, z - 0.45, 35)
    hull = smooth_union(
        ellipsoid(x - 0.02, y, z - 0.29, 0.48, 0.34, 0.3), ellipsoid(along, y, up, 0.2, 0.12, 0.09), 0.2
    )
    return smooth_union(hull, _length(x + 0.22, y, z - 0.76) - 0.27, 0.16)


def _wing(x: Array, y: Array, z: Array) -> Array:
    along, up = turned(x - 0.1, z - 0.36, 15)
    return ellipsoid(along, abs(y) - 0.29, up, 0.24, 0.08, 0.15)


def _car(x: Array, y: Array, z: Array) -> Array:
    narrower = np.maximum(z - 0.36, 0)
    cabin = block((x + 0.03) * (1 + 0.45 * narrower), y * (1 + 0.3 * narrower), z - 0.48, 0.34, 0.24, 0.2, 0.09)
    body = smooth_union(block(x, y, z - 0.27, 0.58, 0.27, 0.15, 0.09), cabin * 0.85, 0.05)
    return np.maximum(body, np.where(abs(y) > 0.17, -_wheels(x, y, z, 0.155), -1))


def _wheels(x: Array, y: Array, z: Array, radius: float) -> Array:
    return _length(abs(x) - 0.34, z - 0.15) - radius


def _glass(x: Array, y: Array, z: Array) -> Array:
    along = abs(x + 0.03)
    side, ends = np.maximum(along - 0.25, 0.022 - along), np.where(along > 0.2, abs(y) - 0.17, 1)
    return np.maximum(abs(z - 0.535) - 0.085, np.where(abs(y) > 0.195, side, ends))


SHAPES = {
    "ball": Shape(
        (0, 80, 150, 230),
        Part(
            lambda x, y, z: _length(x, y, z - 0.5) - 0.5,
            OWN,
            (lambda x, y, z: abs(0.45 * x + 0.25 * y + 0.857 * (z - 0.5)) - 0.075, WHITE),
        ),
    ),
    "car": Shape(
        (-30, -12, 12, 30, 150, 168, 192, 210),
        Part(
            _car,
            OWN,
            (_glass, "#2a3644"),
            (lambda x, y, z: np.where(x < -0.5, _length(abs(y) - 0.17, z - 0.31) - 0.06, 1), "#fff3c4"),
        ),
        Part(
            lambda x, y, z: cylinder(_wheels(x, y, z, 0), abs(y) - 0.22, 0.14, 0.065),
            DARK,
            (partial(_wheels, radius=0.075), "#c9c9cf"),
        ),
    ),
    "cone": Shape(
        (15, 40, 65),
        Part(
            lambda x, y, z: frustum(_length(x, y), z, 0.04, 1.08, 0.34, 0.05) - 0.015,
            OWN,
            (lambda x, y, z: abs(z - 0.56) - 0.09, WHITE),
        ),
        Part(lambda x, y, z: block(x, y, z - 0.04, 0.43, 0.43, 0.04)),
    ),
    "donut": Shape(
        (-32, -12, 10, 30),
        Part(
            _leaning(lambda x, up, along: torus(x, up, along, 0.33, 0.185)),
            OWN,
            (_leaning(_sprinkles), WHITE),
            (_leaning(lambda x, up, along: along - 0.035 * np.sin(7 * np.arctan2(up, x))), BROWN),
        ),
    ),
    "duck": Shape(
        (-20, 0, 25, 50, 130, 155, 180, 200),
        Part(_duck),
        Part(_wing),
        Part(lambda x, y, z: ellipsoid(x + 0.5, y, z - 0.72, 0.15, 0.115, 0.05), "#f08a1c"),
        Part(lambda x, y, z: _length(x + 0.385, abs(y) - 0.155, z - 0.84) - 0.055, "#15151a"),
    ),
    "heart": Shape((-38, -20, 0, 20, 38), Part(_heart)),
    "house": Shape(
        (-50, -35, -20, 0, 20, 35, 50),
        Part(
            _walls,
            OWN,
            (partial(_windows, half=0.1, bars=0), WHITE),
            (partial(_windows, half=0.075, bars=0.012), "#31425c"),
            (lambda x, y, z: np.maximum.reduce([abs(x) - 0.075, z - 0.3, 0.32 - abs(y)]), "#6b4428"),
        ),
        Part(_roof, "#5d463b", (lambda x, y, z: abs(z % 0.075 - 0.0375) - 0.009, "#43342c")),
        Part(lambda x, y, z: block(x - 0.24, y - 0.1, z - 0.9, 0.07, 0.07, 0.17, 0.01), "#9a5b48"),
    ),
    "mug": Shape(
        (-150, -50, -25, 0, 25, 150, 180, 205),
        Part(_mug, OWN, (lambda x, y, z: np.maximum(_length(x, y) - 0.365, 0.1 - z), WHITE)),
        Part(_mug_handle),
        Part(lambda x, y, z: cylinder(_length(x, y), z - 0.7, 0.345, 0.02, 0.005), "#4a2a17"),
    ),
    "mushroom": Shape(
        (0, 70, 140, 220),
        Part(_cap, OWN, (_spots, WHITE), (lambda x, y, z: ellipsoid(x, y, z - 0.5, 0.495, 0.495, 0.44), CREAM)),
        Part(lambda x, y, z: frustum(_length(x, y), z, 0.03, 0.62, 0.17, 0.12) - 0.03, CREAM),
    ),
    "star": Shape((-35, -18, 0, 18, 35), Part(_star)),
}
