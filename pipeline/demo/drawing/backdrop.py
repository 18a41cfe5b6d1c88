"""What lies behind: sky with clouds, hills with trees, the sea."""

import cv2
import numpy as np

from pipeline.demo.drawing.color import bgr
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.textures import SIDE, VARIANTS, noise, soft_step
from pipeline.demo.scenes import Scene

SKIES = {  # at the horizon, at the top, clouds
    "day": ("#d3e4f2", "#5b9bd8", "#ffffff"),
    "sunset": ("#ffc27a", "#7c7fb0", "#ffb0a0"),
    "night": ("#31446f", "#0b1230", "#46557f"),
}
"""Far and near hills."""
HILLS = {
    ("grass", "day"): ("#8fb0a8", "#5e8a4e"),
    ("grass", "sunset"): ("#a58a86", "#6c6a42"),
    ("snow", "day"): ("#b9cbdc", "#e3ecf4"),
    ("snow", "night"): ("#47588a", "#9aa8cc"),
}


def _cloud_tiles() -> list[np.ndarray]:
    return [noise(np.random.Generator(np.random.PCG64([41, variant])), 1.7, (2.6, 1.0)) for variant in range(VARIANTS)]


_CLOUDS: list[np.ndarray] = []


def draw_sky(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Cover the rows above the horizon."""
    rows, width = max(1, round(scene.camera.horizon) + 2), scene.width
    low, high, cloud = (bgr(code) for code in SKIES[scene.place.time])
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    sky = low + (high - low) * up**0.8
    sky = np.broadcast_to(sky, (rows, width, 3)).copy()
    if not _CLOUDS:
        _CLOUDS.extend(_cloud_tiles())
    field = _CLOUDS[rng.integers(VARIANTS)]
    y, x = int(rng.integers(SIDE - rows)), int(rng.integers(SIDE - width))
    cover = soft_step(field[y : y + rows, x : x + width], rng.uniform(-0.3, 0.9), 1.9)[..., None]
    if scene.place.time == "night":
        cover = cover * 0.35
        _stars(sky, rng)
    sky += (cloud - sky) * cover * (0.35 + 0.6 * up)
    image[:rows] = sky


def draw_hills(image: np.ndarray, scene: Scene, rng: np.random.Generator, light: Illumination) -> None:
    """Two ranges of hills and a row of trees before the horizon."""
    foot, width = round(scene.edge), scene.width
    far, near = (bgr(code) for code in HILLS[scene.place.ground, scene.place.time])
    glow = light.key * 0.6 + light.sky if scene.place.time == "night" else light.key * 0.5 + light.sky
    tall = 0.8 * foot
    _silhouette(image, foot, _ridge(rng, width, rng.uniform(0.4, 0.9) * tall, 1.5), far * (0.6 * glow + 0.4), 0.85)
    _silhouette(image, foot, _ridge(rng, width, rng.uniform(0.12, 0.4) * tall, 1.8), near * glow, 1.0)
    dark = bgr("#2f4a34") if scene.place.ground == "grass" else bgr("#39505a")
    _trees(image, foot, rng, dark * glow * 0.9, pointed=scene.place.ground == "snow")


def draw_sea(image: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Water from the horizon to a line of foam."""
    top, bottom = round(scene.camera.horizon), round(scene.edge)
    far, near = (bgr("#2f6f9f"), bgr("#69b6bd")) if scene.place.time == "day" else (bgr("#5a5a85"), bgr("#d99a7c"))
    down = np.linspace(0, 1, bottom - top + 4, dtype=np.float32)[:, None, None]
    sea = np.broadcast_to(far + (near - far) * down**1.5, (bottom - top + 4, scene.width, 3)).copy()
    waves = cv2.resize(
        rng.standard_normal((sea.shape[0], 40), dtype=np.float32),
        (scene.width, sea.shape[0]),
        interpolation=cv2.INTER_LINEAR,
    )
    sea *= (1 + 0.13 * waves)[..., None]
    sea += np.clip(waves - 1.3, 0, 1)[..., None] * 0.35
    shore = (
        bottom + 1.5 + 1.6 * np.interp(np.arange(scene.width), np.linspace(0, scene.width, 12), rng.normal(0, 1, 12))
    )
    gap = (shore[None] - np.arange(top, bottom + 4)[:, None]).astype(np.float32)[..., None]
    foam = np.exp(-(((gap - 1) / 1.3) ** 2))
    sea += (bgr("#f6f6f2") - sea) * foam * 0.85
    rows = image[top : bottom + 4]
    rows += (sea - rows) * np.clip(gap + 0.5, 0, 1)


def _stars(sky: np.ndarray, rng: np.random.Generator) -> None:
    count = sky.shape[0] * sky.shape[1] // 260
    rows, columns = rng.integers(0, sky.shape[0], count), rng.integers(0, sky.shape[1], count)
    sky[rows, columns] += (rng.random((count, 1)) ** 3 * 0.9).astype(np.float32)


def _ridge(rng: np.random.Generator, width: int, tall: float, roughness: float) -> np.ndarray:
    """(width,) heights of a range of hills, in pixels."""
    x = np.linspace(0, 1, width)
    waves = [rng.normal() / k**roughness * np.sin(2 * np.pi * (0.7 * k * x + rng.random())) for k in range(1, 24)]
    line = np.sum(waves, axis=0)
    return tall * (0.55 + 0.45 * line / max(np.abs(line).max(), 1e-6))


def _silhouette(image: np.ndarray, foot: int, line: np.ndarray, color: np.ndarray, opacity: float) -> None:
    top = max(0, int(foot - line.max() - 2))
    depth = line[None] - (foot - np.arange(top, foot)[:, None]) + 0.5
    share = (np.clip(depth, 0, 1) * opacity).astype(np.float32)[..., None]
    tone = 1 + 0.12 * np.clip(depth / 20, 0, 1).astype(np.float32)[..., None]
    image[top:foot] += (color * tone - image[top:foot]) * share


def _trees(image: np.ndarray, foot: int, rng: np.random.Generator, color: np.ndarray, pointed: bool) -> None:
    """Groups of firs, or of round trees, standing on the row `foot`."""
    width = image.shape[1]
    line = np.zeros(width)
    columns = np.arange(width)
    for _ in range(int(rng.integers(2, 5))):
        centre, spread = rng.uniform(0, width), rng.uniform(8, 45)
        for _ in range(int(rng.integers(5, 16))):
            x, tall = rng.normal(centre, spread), rng.uniform(5, 13)
            away = np.abs(columns - x)
            if pointed:
                crown = tall * (1 - away / (0.28 * tall))
            else:
                crown = np.where(
                    away < 0.6 * tall, tall * (0.45 + 0.55 * np.sqrt(np.clip(1 - (away / (0.6 * tall)) ** 2, 0, 1))), 0
                )
            line = np.maximum(line, crown)
    line += (line > 0) * rng.normal(0, 0.5, width)
    _silhouette(image, foot, np.clip(line, 0, 16), color, 0.92)
