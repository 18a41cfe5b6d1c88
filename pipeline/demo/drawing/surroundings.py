"""What things stand in: the ground, and behind it a wall, or sky and hills, or sky and sea."""

import math
from functools import cache

import cv2
import numpy as np

from pipeline.demo.drawing.color import bgr, mix, soft_step
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.textures import SIDE, VARIANTS, Texture, noise, texture
from pipeline.demo.scenes import Scene

SKIES = {  # at the horizon, at the top, clouds
    "day": ("#d3e4f2", "#5b9bd8", "#ffffff"),
    "sunset": ("#ffc27a", "#7c7fb0", "#ffb0a0"),
    "night": ("#31446f", "#0b1230", "#46557f"),
}
HILLS = {  # far and near ones, and the trees before them
    ("grass", "day"): ("#a3bdb8", "#5e8a4e", "#2f4a34"),
    ("grass", "sunset"): ("#a58a86", "#6c6a42", "#2f4a34"),
    ("snow", "day"): ("#b9cbdc", "#e3ecf4", "#39505a"),
    ("snow", "night"): ("#47588a", "#9aa8cc", "#39505a"),
}
RANGES = ((0.3, 0.7, 1.5), (0.1, 0.35, 1.8), (0.06, 0.12, 0.7))  # of them: height from .. to over the sky's; roughness
SEAS = {"day": ("#2f6f9f", "#69b6bd"), "sunset": ("#5a5a85", "#d99a7c")}  # far, near


def draw_surroundings(
    image: np.ndarray, scene: Scene, rng: np.random.Generator, light: Illumination, falling: np.ndarray
) -> float:
    """Cover `image` ((H, W, 3) linear BGR), `falling` being the light on ground and wall; returns the ground's gloss."""
    edge, camera = round(scene.edge), scene.camera
    if scene.place.walled:
        wall = texture(scene.place.backdrop, int(rng.integers(VARIANTS)))
        image[:edge] = _in_perspective(wall, camera.wall(scene.wall), 0, image[:edge], rng) * falling[:edge]
        image[edge - 4 : edge] *= np.array([1.2, 1.2, 0.8, 0.4], np.float32)[:, None, None]  # a skirting board
    else:
        _draw_sky(image[: max(1, round(camera.horizon) + 2)], scene.place.time, rng)
    if scene.place.backdrop == "hills":
        _draw_hills(image[:edge], scene, rng, light.key * 0.5 + light.sky)
    ground = texture(scene.place.ground, int(rng.integers(VARIANTS)))
    below = np.array([[1, 0, 0], [0, 1, -edge], [0, 0, 1]])
    straight = scene.place.ground in ("wood", "tiles", "grass")
    rows = _in_perspective(ground, below @ camera.ground, 0 if straight else rng.uniform(0, 360), image[edge:], rng)
    if not scene.place.walled:
        haze = np.linspace(0.8, -0.5, len(rows))[:, None].repeat(scene.width, 1)
        rows = mix(rows, ground.mean * 1.1, haze)
    image[edge:] = rows * falling[edge:]
    if scene.place.backdrop == "sea":
        _draw_sea(image[round(camera.horizon) : edge + 4], scene.place.time, rng)
    return ground.gloss


def _in_perspective(
    surface: Texture, plane: np.ndarray, angle: float, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Rows like those given, filled with a texture; `plane` is the homography from units to their pixels."""
    height, width = rows.shape[:2]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    dx, dy = rng.uniform(0, SIDE, 2)
    units = np.array([[cos, -sin, -dx], [sin, cos, -dy], [0, 0, 1]]) @ np.diag([surface.units / SIDE] * 2 + [1])
    texels = np.linalg.inv(np.diag([2, 2, 1]) @ plane @ units)  # in pixels of half the size, which are then averaged
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    doubled = cv2.warpPerspective(
        surface.color, texels, (2 * width, 2 * height), flags=flags, borderMode=cv2.BORDER_WRAP
    )
    return cv2.resize(doubled, (width, height), interpolation=cv2.INTER_AREA)


def _draw_sky(rows: np.ndarray, time: str, rng: np.random.Generator) -> None:
    height, width = rows.shape[:2]
    low, high, cloud = map(bgr, SKIES[time])
    up = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(width, 1)
    y, x = rng.integers(SIDE - height), rng.integers(SIDE - width)
    field = _clouds(int(rng.integers(VARIANTS)))[y : y + height, x : x + width]
    cover = soft_step(field, rng.uniform(-0.3, 0.9), 1.9) * (0.35 + 0.6 * up)
    rows[:] = mix(mix(low, high, up**0.8), cloud, 0.35 * cover if time == "night" else cover)
    if time == "night":
        stars = rng.random((height, width)) < 1 / 260
        rows[stars] += rng.random((np.count_nonzero(stars), 1)) ** 3 * 0.9


@cache
def _clouds(variant: int) -> np.ndarray:
    return noise(np.random.Generator(np.random.PCG64([41, variant])), 1.7, 2.6, 1.0)


def _draw_hills(rows: np.ndarray, scene: Scene, rng: np.random.Generator, glow: np.ndarray) -> None:
    """Two ranges of hills and a row of trees, standing on the last row."""
    height, width = rows.shape[:2]
    frequency = np.arange(1, width // 2)[:, None]
    for code, (least, most, roughness) in zip(HILLS[scene.place.ground, scene.place.time], RANGES, strict=True):
        waves = np.sin(2 * np.pi * (frequency * np.arange(width) / (1.4 * width) + rng.random(frequency.shape)))
        line = (rng.normal(size=frequency.shape) / frequency**roughness * waves).sum(0)
        tall = rng.uniform(least, most) * height * (0.55 + 0.45 * line / abs(line).max())
        share = tall - np.arange(height, 0, -1)[:, None] + 0.5
        rows[:] = mix(rows, bgr(code) * glow, share)


def _draw_sea(rows: np.ndarray, time: str, rng: np.random.Generator) -> None:
    """Water from the horizon to a line of foam, four rows before the last."""
    height, width = rows.shape[:2]
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, 1)
    waves = cv2.resize(rng.standard_normal((height, 40), dtype=np.float32), (width, height))
    far, near = map(bgr, SEAS[time])
    sea = mix(far, near, down**1.5) * (1 + 0.13 * waves)[..., None]
    shore = height - 2.5 + 1.6 * np.interp(np.arange(width), np.linspace(0, width, 12), rng.normal(0, 1, 12))
    before = shore - np.arange(height)[:, None]
    sea = mix(sea, bgr("#f6f6f2"), 0.85 * np.exp(-(((before - 1) / 1.3) ** 2)))
    rows[:] = mix(rows, sea, before + 0.5)
