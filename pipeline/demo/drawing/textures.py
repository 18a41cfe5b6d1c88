"""Grounds and walls: seamless tiles of colour and relief, made from noise once per process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from pipeline.demo.drawing.color import bgr

SIDE = 512  # texels, of a tile
STEEPNESS = 80


@dataclass(frozen=True)
class Texture:
    """A tile that repeats without a seam, in bytes, with a margin of one texel so that it can be interpolated at its border."""

    color: np.ndarray  # (SIDE + 2, SIDE + 2, 3) uint8 BGR, display values
    coarse: np.ndarray  # `color` for where texels are smaller than pixels
    slope: np.ndarray  # (SIDE + 2, SIDE + 2, 2) uint8: 128 + STEEPNESS times how the surface rises along x and y
    units: float  # side of the tile, in units
    gloss: float  # 0 dull to 1 mirror
    mean: np.ndarray  # (3,) float32 linear BGR


@cache
def texture(name: str, variant: int) -> Texture:
    """A surface by name; variants differ in grain and tint."""
    rng = np.random.Generator(np.random.PCG64([SURFACES[name][0], variant]))
    color, height, depth, units, gloss = SURFACES[name][1](rng)
    slope = np.stack([np.roll(height, 1, axis) - np.roll(height, -1, axis) for axis in (1, 0)], 2) * depth
    color = np.clip(color, 0, 1).astype(np.float32)
    coarse = cv2.blur(_wrapped(color, 8), (9, 9))[8:-8, 8:-8]
    coded = [np.sqrt(color) * 255, np.sqrt(coarse) * 255, slope * STEEPNESS + 128]
    layers = [_wrapped(np.clip(layer + 0.5, 0, 255).astype(np.uint8), 1) for layer in coded]
    return Texture(layers[0], layers[1], layers[2], units, gloss, color.mean((0, 1)))


def _wrapped(tile: np.ndarray, margin: int) -> np.ndarray:
    """The tile with a margin of what follows when it repeats."""
    return cv2.copyMakeBorder(tile, margin, margin, margin, margin, cv2.BORDER_WRAP)


def noise(rng: np.random.Generator, roughness: float, stretch: tuple[float, float] = (1, 1)) -> np.ndarray:
    """(SIDE, SIDE) periodic noise of mean 0 and deviation 1.

    Args:
        rng: source of randomness.
        roughness: spectrum is 1 / frequency ** roughness: 0 white, 1 grainy, 2 cloudy.
        stretch: how much longer features are along x, along y.
    """
    fx, fy = np.fft.rfftfreq(SIDE)[None] * stretch[0], np.fft.fftfreq(SIDE)[:, None] * stretch[1]
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) / frequency**roughness
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (SIDE, SIDE))
    return (field / field.std()).astype(np.float32)


def soft_step(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((x - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def _mix(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low + (high - low) * np.clip(share, 0, 1)[..., None]


Made = tuple[np.ndarray, np.ndarray, float, float, float]  # color, height, depth of relief, units, gloss


def _sand(rng: np.random.Generator) -> Made:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 * np.pi
    ripples = np.sin(9 * y + 2 * x + 1.3 * noise(rng, 1.8))
    grain, dunes = noise(rng, 0.3), noise(rng, 1.6)
    color = _mix(bgr("#c9a878"), bgr("#ecd9b0"), 0.5 + 0.16 * grain + 0.12 * dunes + 0.08 * ripples)
    return color, 1.4 * ripples + 0.25 * grain + 3 * dunes, 0.25, 3.6, 0.05


def _snow(rng: np.random.Generator) -> Made:
    drifts, smooth, grain = noise(rng, 2.0), noise(rng, 2.6), noise(rng, 0.5)
    color = _mix(bgr("#c9d4e2"), bgr("#eef2f8"), 0.6 + 0.2 * drifts + 0.12 * grain)
    return color, 26 * smooth + 0.3 * grain, 0.6, 4.5, 0.1


def _grass(rng: np.random.Generator) -> Made:
    blades, patches = noise(rng, 0.6, (1, 3)), noise(rng, 1.7)
    color = _mix(bgr("#2f4d1a"), bgr("#7fa33c"), 0.45 + 0.22 * blades + 0.14 * patches)
    return color, blades, 0.15, 3.2, 0.0


def _wood(rng: np.random.Generator) -> Made:
    planks = 6
    row = np.arange(SIDE) * planks // SIDE
    along = np.arange(SIDE)
    starts = rng.integers(0, SIDE, planks)
    grain, fine, slow = noise(rng, 1.3, (14, 1)), noise(rng, 0.5, (40, 1)), noise(rng, 1.5, (3, 1))
    piece = ((along[None] - starts[row][:, None]) % SIDE) * 2 // SIDE  # two boards to a row
    shifts = rng.integers(0, SIDE, (planks, 2))[row[:, None], piece]
    rows = np.arange(SIDE)[:, None].repeat(SIDE, 1)
    grain = grain[(rows + shifts) % SIDE, (along[None] + shifts) % SIDE]
    rings = np.sin(6 * (slow + 0.4 * grain)[(rows + shifts * 3) % SIDE, along[None]])
    tone = rng.uniform(-0.3, 0.3, (planks, 2))[row[:, None], piece]
    light, dark = [("#d7a86e", "#7c4a22"), ("#c49a6c", "#6b4a2e"), ("#a8703f", "#4d2d17"), ("#e0bf92", "#977046")][
        rng.integers(4)
    ]
    color = _mix(bgr(dark), bgr(light), 0.6 + 0.13 * grain + 0.1 * rings + 0.06 * fine + tone)
    across = (np.arange(SIDE) * planks % SIDE) / SIDE
    seam = np.minimum(np.abs(across - 0.0), 1 - across)[:, None] * SIDE / planks
    end = (along[None] - starts[row][:, None]) % (SIDE // 2)
    gap = np.minimum(seam, np.minimum(end, SIDE // 2 - end))
    open_joint = 1 - soft_step(gap, 0.4, 2.4)
    return color * (1 - 0.75 * open_joint)[..., None], 0.5 * grain - 3 * open_joint, 0.12, 3.0, 0.22


def _tiles(rng: np.random.Generator) -> Made:
    count = 4
    y, x = np.mgrid[:SIDE, :SIDE] * count / SIDE
    checker = (np.floor(x) + np.floor(y)) % 2
    light, dark = [("#e9e4da", "#8fa3ad"), ("#efe9df", "#c9b8a0"), ("#e6e8ea", "#5f6f7a"), ("#f0ece2", "#a9b59a")][
        rng.integers(4)
    ]
    marble = noise(rng, 1.6)
    veins = np.exp(-np.abs(marble + 0.4 * noise(rng, 1.4)) * 9)
    color = _mix(bgr(light), bgr(dark), checker) * (0.94 + 0.05 * marble - 0.12 * veins)[..., None]
    edge = np.minimum.reduce([x % 1, 1 - x % 1, y % 1, 1 - y % 1]) * SIDE / count
    grout = 1 - soft_step(edge, 1.0, 3.2)
    return _mix(color, bgr("#9b958b"), grout), -3 * grout, 0.15, 2.6, 0.45


def _carpet(rng: np.random.Generator) -> Made:
    ground, figure, border = [
        ("#a08a78", "#6f5a50", "#d8c8b0"), ("#5f7f86", "#37525c", "#cfd8d0"), ("#8c5f5c", "#5b3438", "#d9bfa6"),
        ("#9aa07c", "#666f50", "#e2dcc2"),
    ][rng.integers(4)]  # fmt: skip
    y, x = np.mgrid[:SIDE, :SIDE] * 4 / SIDE
    u, v = (x + y) % 1 - 0.5, (x - y) % 1 - 0.5
    diamond = np.maximum(np.abs(u), np.abs(v))
    color = _mix(bgr(ground), bgr(figure), soft_step(-diamond, -0.24, -0.2))
    color = _mix(color, bgr(border), 1 - soft_step(np.abs(diamond - 0.36), 0.02, 0.045))
    color = _mix(color, bgr(border), soft_step(-np.hypot(u, v), -0.1, -0.07))
    pile, wear = noise(rng, 0.35), noise(rng, 1.6)
    weave = np.sin(np.arange(SIDE) * np.pi / 2)[None] * 0.5
    return color * (1 + 0.16 * pile + 0.07 * wear + 0.05 * weave)[..., None], pile, 0.16, 2.8, 0.0


def _cobbles(rng: np.random.Generator) -> Made:
    count = 8
    jitter = rng.uniform(0.2, 0.8, (2, count, count))
    y, x = np.mgrid[:SIDE, :SIDE] * count / SIDE
    x = x + 0.5 * (np.floor(y) % 2)
    cells = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (np.floor(y) + dy).astype(int), (np.floor(x) + dx).astype(int)
            jx, jy = jitter[0][row % count, column % count], jitter[1][row % count, column % count]
            cells.append((np.hypot(column + jx - x, row + jy - y), (row % count) * count + column % count))
    distance = np.stack([cell[0] for cell in cells])
    order = np.argsort(distance, 0)
    nearest, second = (np.take_along_axis(distance, order[rank : rank + 1], 0)[0] for rank in (0, 1))
    stone = np.take_along_axis(np.stack([cell[1] for cell in cells]), order[:1], 0)[0]
    gap = soft_step(second - nearest, 0.04, 0.2)
    tone = rng.uniform(0.3, 0.95, count * count)[stone]
    rough = noise(rng, 1.0)
    warm, cold = [("#a39a90", "#6a6560"), ("#9aa0a6", "#5d646b"), ("#ab9c8b", "#75685c")][rng.integers(3)]
    color = _mix(bgr(cold), bgr(warm), tone + 0.18 * rough) * (0.25 + 0.75 * gap)[..., None]
    dome = np.sqrt(np.clip(second - nearest, 0, 0.5))
    return color, 16 * dome + 0.4 * rough, 0.22, 3.0, 0.12


def _brick(rng: np.random.Generator) -> Made:
    rows, columns = 12, 5
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    row = np.floor(y * rows).astype(int)
    shifted = x * columns + 0.5 * (row % 2)
    column = np.floor(shifted).astype(int) % columns
    tone = rng.uniform(0, 1, (rows, columns))[row, column]
    rough, stains = noise(rng, 0.8), noise(rng, 1.8)
    light, dark = [("#b0705a", "#7d4535"), ("#c2967a", "#8f664d"), ("#9c7a70", "#6a4d47"), ("#cfc4b4", "#a3968a")][
        rng.integers(4)
    ]
    color = _mix(bgr(dark), bgr(light), tone + 0.15 * rough + 0.1 * stains)
    edge = np.minimum(
        np.minimum(shifted % 1, 1 - shifted % 1) * SIDE / columns,
        np.minimum(y * rows % 1, 1 - y * rows % 1) * SIDE / rows,
    )
    mortar = 1 - soft_step(edge + 0.5 * rough, 2.0, 4.5)
    return _mix(color, bgr("#b5aca0"), mortar), -4 * mortar + 0.5 * rough, 0.2, 2.2, 0.0


def _plaster(rng: np.random.Generator) -> Made:
    tint = ["#dfd3bd", "#c9d3cf", "#d8c3b8", "#b9c4cf", "#cdd0b4", "#e3ded4"][rng.integers(6)]
    rough, stains = noise(rng, 0.9), noise(rng, 2.0)
    color = bgr(tint) * (1 + 0.02 * rough + 0.03 * stains)[..., None]
    return color, rough, 0.07, 3.0, 0.0


SURFACES: dict[str, tuple[int, Callable[[np.random.Generator], Made]]] = {
    "sand": (1, _sand),
    "snow": (2, _snow),
    "grass": (3, _grass),
    "wood": (4, _wood),
    "tiles": (5, _tiles),
    "carpet": (6, _carpet),
    "cobbles": (7, _cobbles),
    "brick": (8, _brick),
    "plaster": (9, _plaster),
}
VARIANTS = 4
