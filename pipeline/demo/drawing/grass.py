"""Grass: a lawn of many rows of blades, drawn once, and the blades before the foot of what stands in it."""

from functools import cache, lru_cache

import cv2
import numpy as np

from pipeline.demo.drawing.camera import Camera
from pipeline.demo.drawing.color import bgr, haze, linear, spread
from pipeline.demo.drawing.covering import cover
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.textures import VARIANTS, texture

BLADES = 0.17  # units tall
STRIP = (48, 1024)  # pixels, height and width of a row of grass


def grow_grass(
    image: np.ndarray, row: float, left: float, right: float, scale: float, shade: np.ndarray, start: int
) -> None:
    """Blades in front of what stands at a row, from column `left` to `right`, fading at both ends and at the roots.

    Args:
        image: (H, W, 3) linear BGR, drawn upon.
        row, left, right: pixels.
        scale: pixels per unit there.
        shade: (H, W, 3) light that falls on the ground.
        start: which part of the strip of grass to use.
    """
    tall = max(3, round(BLADES * scale))
    x0, x1, y1 = max(0, round(left)), min(image.shape[1], round(right)), min(image.shape[0], round(row + 0.2 * tall))
    y0 = max(0, y1 - tall)
    if x1 - x0 < 4 or y1 - y0 < 2:
        return
    strip = _strip_at(start % VARIANTS, scale)
    part = np.roll(strip, -(start % strip.shape[1]), axis=1)[: y1 - y0, : x1 - x0]
    ends = np.minimum(np.arange(x1 - x0), np.arange(x1 - x0)[::-1])
    sides = np.clip(ends / (0.12 * (x1 - x0)), 0, 1).astype(np.float32)
    roots = np.clip(np.arange(y1 - y0, 0, -1) / (0.3 * tall), 0, 1).astype(np.float32)
    part = part * (roots[:, None] * sides)[..., None]
    image[y0:y1, x0:x1] *= spread(1 - part[..., 3])
    before = min(image.shape[0] - 1, y1 + tall // 3)  # they grow outside of the dark below the thing
    image[y0:y1, x0:x1] += part[..., :3] * shade[before, x0:x1][None]


@cache
def _strip(variant: int) -> np.ndarray:
    """(*STRIP, 4) float32 premultiplied linear BGR and coverage: a row of grass."""
    rng = np.random.Generator(np.random.PCG64([31, variant]))
    height, width = STRIP
    strip = np.zeros((height, width, 4), np.float32)
    canvas = np.zeros((height, width + 80, 4), np.uint8)
    dark, light, dry = (np.sqrt(bgr(code)) * 255 for code in ("#31511c", "#8fb548", "#b8b061"))
    for _ in range(620):
        x, lean = rng.uniform(40, width + 40), rng.normal(0, 9)
        tall, wide = height * rng.uniform(0.35, 1.0), rng.uniform(1.2, 2.6)
        tip = light if rng.random() < 0.85 else dry
        tone, low = rng.uniform(0.1, 1.0), np.array([x, height + 2.0])
        for piece in range(4):
            up = (piece + 1) / 4
            high = np.array([x + lean * up**2, height - tall * up])
            color = dark + (tip - dark) * (tone * (0.25 + 0.75 * up))
            thick = max(1, round(wide * (1.25 - up)))
            ends = [tuple(int(v * 16) for v in end) for end in (low, high)]
            cv2.line(canvas, ends[0], ends[1], (*color.tolist(), 255), thick, cv2.LINE_AA, 4)
            low = high
    shown = canvas[:, 40:-40].astype(np.float32) / 255
    strip[..., :3], strip[..., 3] = shown[..., :3] ** 2 * shown[..., 3:], shown[..., 3]
    return strip


@lru_cache(maxsize=64)
def _strip_scaled(variant: int, tall: int) -> np.ndarray:
    width = max(64, round(STRIP[1] * tall / STRIP[0]))
    return cv2.resize(_strip(variant), (width, tall), interpolation=cv2.INTER_AREA)


def _strip_at(variant: int, scale: float) -> np.ndarray:
    tall = max(3, round(BLADES * scale))
    strip = _strip_scaled(variant, tall)
    return np.tile(strip, (1, -(-400 // strip.shape[1]), 1))


@cache
def lawn(camera: Camera, top: int, variant: int) -> np.ndarray:
    """(H - top, 1.5 W, 3) albedo of a lawn that ends at row `top`."""
    rng = np.random.Generator(np.random.PCG64([37, variant, camera.width]))
    width = camera.width * 3 // 2
    surface = texture("grass", variant)
    flat = Illumination.flat()
    lawn = cover(surface, camera.ground_plane(top), (width, camera.height - top), 0, rng, flat)
    row = float(top + 2)
    while row < camera.height + 12:
        scale = camera.scale_at(row)
        tall = max(2, round(BLADES * scale))
        strip = _strip_scaled(int(rng.integers(VARIANTS)), max(3, tall))
        part = np.roll(np.tile(strip, (1, -(-width // strip.shape[1]), 1)), int(rng.integers(2000)), 1)[:, :width]
        tone = np.float32(rng.uniform(0.82, 1.12))
        y1 = round(row) - top
        y0 = max(0, y1 - part.shape[0])
        part = part[part.shape[0] - (y1 - y0) :][: max(0, lawn.shape[0] - y0)]
        rows = lawn[y0 : y0 + part.shape[0]]
        rows *= 1 - part[..., 3:]
        rows += part[..., :3] * tone
        row += max(1.0, 0.32 * tall)
    patches = cv2.resize(linear(surface.coarse), (width, camera.height - top)).mean(2, keepdims=True)
    lawn *= patches / patches.mean()
    haze(lawn, bgr("#8aa653"), 0.45)
    return lawn
