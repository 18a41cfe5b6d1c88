"""Grounds and walls: seamless tiles, made from noise and a pattern once per process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from pipeline.demo.drawing.color import bgr, mix, soft_step

SIDE = 512  # texels, of a tile
VARIANTS = 4

Pattern = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""-> two (SIDE, SIDE): how much lighter it is, and the share of the joints."""


@dataclass(frozen=True)
class Texture:
    """A tile that repeats without a seam."""

    color: np.ndarray  # (SIDE, SIDE, 3) float32 linear BGR
    units: float  # side of the tile, in units
    gloss: float  # 0 dull to 1 mirror

    @cached_property
    def mean(self) -> np.ndarray:
        """(3,) float32 linear BGR."""
        return self.color.mean((0, 1))


@dataclass(frozen=True)
class Surface:
    """How a texture is made."""

    units: float  # side of the tile
    palettes: Sequence[tuple[str, str]]  # dark and light: a variant takes one
    # Noises: how much lighter each makes it, and its roughness, along and across as `noise` takes them
    grain: Sequence[tuple[float, float, float, float]]
    relief: float = 0.0  # how high what is lighter stands
    gloss: float = 0.0
    joints: str = "#000000"
    pattern: Pattern = lambda rng: (np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE)))


@cache
def texture(name: str, variant: int) -> Texture:
    """A surface by name; variants differ in grain and tint."""
    rng = np.random.Generator(np.random.PCG64([list(SURFACES).index(name), variant]))
    surface = SURFACES[name]
    dark, light = map(bgr, surface.palettes[int(rng.integers(len(surface.palettes)))])
    grain = sum(weight * noise(rng, *args) for weight, *args in surface.grain)
    lighter, joint = surface.pattern(rng)
    height = surface.relief * grain - 2 * soft_step(joint, 0, 1)
    shade = np.clip(1 + 0.15 * (height - np.roll(height, 2, (0, 1))), 0.4, 1.6)  # lit from the upper left
    color = mix(mix(dark, light, 0.5 + lighter + grain), bgr(surface.joints), joint) * shade[..., None]
    return Texture(color.astype(np.float32), surface.units, surface.gloss)


def noise(rng: np.random.Generator, roughness: float, along: float = 1, across: float = 1) -> np.ndarray:
    """(SIDE, SIDE) periodic noise of mean 0 and deviation 1.

    Args:
        rng: source of randomness.
        roughness: spectrum is 1 / frequency ** roughness: 0 white, 1 grainy, 2 cloudy.
        along, across: how much longer features are along x, along y.
    """
    frequency = np.hypot(np.fft.rfftfreq(SIDE)[None] * along, np.fft.fftfreq(SIDE)[:, None] * across)
    frequency[0, 0] = np.inf  # no mean
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) / frequency**roughness, (SIDE, SIDE))
    return (field / field.std()).astype(np.float32)


def _laid(
    rows: int, columns: int, *, shift: float, joint: float, tones: float, wobble: float = 0, checked: bool = False
) -> Pattern:
    """Boards, bricks or tiles.

    Args:
        rows, columns: of a tile.
        shift: of each row against the one before, in pieces.
        joint: half the width of a joint, in texels.
        tones: how much one piece is lighter than another.
        wobble: how far from straight the joints are, in pieces.
        checked: light and dark pieces take turns.
    """

    def pattern(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        y = y * rows + wobble * noise(rng, 1.8)
        x = x * columns + np.floor(y) * shift + wobble * noise(rng, 1.8)
        row, column = np.floor(y).astype(int) % rows, np.floor(x).astype(int) % columns
        tone = (row + column) % 2 - 0.5 if checked else rng.uniform(-tones, tones, (rows, columns))[row, column]
        edge = np.minimum((0.5 - abs(x % 1 - 0.5)) * SIDE / columns, (0.5 - abs(y % 1 - 0.5)) * SIDE / rows)
        return tone, 1 - soft_step(edge, 0.4 * joint, 1.4 * joint)

    return pattern


def _diamonds(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE] * 4 / SIDE
    u, v = (x + y) % 1 - 0.5, (x - y) % 1 - 0.5
    diamond = np.maximum(abs(u), abs(v))
    lines = np.maximum(1 - soft_step(abs(diamond - 0.36), 0.02, 0.045), 1 - soft_step(np.hypot(u, v), 0.07, 0.1))
    return 0.5 - soft_step(-diamond, -0.24, -0.2), lines


SURFACES = {
    "sand": Surface(3.6, [("#c9a878", "#ecd9b0")], [(0.16, 0.3, 1, 1), (0.14, 1.6, 1, 2)], relief=3, gloss=0.05),
    "snow": Surface(4.5, [("#c9d4e2", "#eef2f8")], [(0.2, 2, 1, 1), (0.12, 0.5, 1, 1)], relief=3, gloss=0.1),
    "grass": Surface(3.2, [("#2f4d1a", "#7fa33c")], [(0.3, 0.7, 1, 4), (0.14, 1.7, 1, 1)], relief=2),
    "wood": Surface(
        units=3.0,
        palettes=[("#7c4a22", "#d7a86e"), ("#6b4a2e", "#c49a6c"), ("#4d2d17", "#a8703f"), ("#977046", "#e0bf92")],
        grain=[(0.17, 1.3, 14, 1), (0.06, 0.5, 40, 1)],
        relief=1,
        gloss=0.22,
        joints="#1c120a",
        pattern=_laid(6, 2, shift=0.37, joint=1.5, tones=0.3),
    ),
    "tiles": Surface(
        units=2.6,
        palettes=[("#8fa3ad", "#e9e4da"), ("#c9b8a0", "#efe9df"), ("#5f6f7a", "#e6e8ea"), ("#a9b59a", "#f0ece2")],
        grain=[(0.06, 1.6, 1, 1)],
        gloss=0.45,
        joints="#9b958b",
        pattern=_laid(4, 4, shift=0, joint=2.3, tones=0, checked=True),
    ),
    "carpet": Surface(
        units=2.8,
        palettes=[("#6f5a50", "#a08a78"), ("#37525c", "#5f7f86"), ("#5b3438", "#8c5f5c"), ("#666f50", "#9aa07c")],
        grain=[(0.12, 0.35, 1, 1), (0.08, 1.6, 1, 1)],
        relief=3,
        joints="#d9ccb6",
        pattern=_diamonds,
    ),
    "cobbles": Surface(
        units=3.0,
        palettes=[("#6a6560", "#a39a90"), ("#5d646b", "#9aa0a6"), ("#75685c", "#ab9c8b")],
        grain=[(0.18, 1, 1, 1)],
        relief=2,
        gloss=0.12,
        joints="#3a3734",
        pattern=_laid(10, 8, shift=0.5, joint=5, tones=0.3, wobble=0.15),
    ),
    "brick": Surface(
        units=2.2,
        palettes=[("#7d4535", "#b0705a"), ("#8f664d", "#c2967a"), ("#6a4d47", "#9c7a70"), ("#a3968a", "#cfc4b4")],
        grain=[(0.15, 0.8, 1, 1), (0.1, 1.8, 1, 1)],
        relief=1,
        joints="#b5aca0",
        pattern=_laid(12, 5, shift=0.5, joint=3, tones=0.5, wobble=0.015),
    ),
    "plaster": Surface(
        units=3.0,
        palettes=[("#d0c4ae", "#e5dac6"), ("#bbc6c2", "#d2dbd8"), ("#cbb3a8", "#e0cdc4"), ("#bfc2a6", "#d6d9c0")],
        grain=[(0.15, 0.9, 1, 1), (0.2, 2, 1, 1)],
        relief=1,
    ),
}
