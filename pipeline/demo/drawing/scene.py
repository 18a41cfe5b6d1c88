"""A scene as a photo: backdrop, ground, shadows and things, then what a camera does to them."""

from functools import cache

import cv2
import numpy as np

from pipeline.demo.drawing import backdrop, ground
from pipeline.demo.drawing.color import spread
from pipeline.demo.drawing.grass import grow_grass
from pipeline.demo.drawing.lighting import Illumination, illumination, lit
from pipeline.demo.drawing.shadows import falling_light
from pipeline.demo.scenes import SIZES, Scene, Thing, overlap, stream


def draw_scene(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 BGR, the same for the same scene."""
    rng = stream(scene.seed, scene.number, 1)
    image = np.zeros((scene.height, scene.width, 3), np.float32)
    light = illumination(scene, ground.mean_color(scene.place.ground))
    falling = falling_light(scene, light)
    if not scene.walled:
        backdrop.draw_sky(image, scene, rng)
    else:
        ground.draw_wall(image, scene, rng, light, falling)
    if scene.place.backdrop == "hills":
        backdrop.draw_hills(image, scene, rng, light)
    gloss = ground.draw_ground(image, scene, rng, light, falling)
    if scene.place.backdrop == "sea":
        backdrop.draw_sea(image, scene, rng)
    for thing in scene.things:
        _draw_thing(image, scene, thing, light, gloss)
        if scene.place.ground == "grass":
            x, y, scale = scene.camera.at(thing.x, thing.y)
            reach, dip = 0.62 * SIZES[thing.size] * scale, 0.10 * SIZES[thing.size] * scale
            grow_grass(image, y + dip, x - reach, x + reach, scale, falling, int(rng.integers(10000)))
    return _photograph(image, rng)


def _draw_thing(image: np.ndarray, scene: Scene, thing: Thing, light: Illumination, gloss: float) -> None:
    color, coverage, left, top = lit(scene, thing, light)
    if gloss > 0.15:
        _draw_reflection(image, scene, thing, color, coverage, left, gloss)
    frame, part = overlap(image.shape, left, top, color.shape)
    image[frame] *= spread(1 - coverage[part])
    image[frame] += color[part]


def _draw_reflection(
    image: np.ndarray, scene: Scene, thing: Thing, color: np.ndarray, coverage: np.ndarray, left: int, gloss: float
) -> None:
    """The thing upside down below its foot, fading, as a polished floor shows it."""
    _, foot, _ = scene.camera.at(thing.x, thing.y)
    frame, part = overlap(image.shape, left, round(foot), color.shape)
    covered = cv2.blur(coverage[::-1][part], (3, 5))
    fade = (gloss * 0.55 * np.linspace(1, 0, color.shape[0], dtype=np.float32) ** 1.5)[part[0], None]
    image[frame] *= spread(1 - covered * fade)
    image[frame] += cv2.blur(color[::-1][part], (3, 5)) * spread(np.repeat(fade, covered.shape[1], 1))


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lens and sensor: blur, vignette, exposure, a soft shoulder, noise, eight bits."""
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.45, 0.75)))
    image = cv2.multiply(image, _vignette(height, width), scale=float(rng.uniform(0.95, 1.1)))
    image = np.sqrt(np.maximum(image, 0))  # to display values
    bright = np.maximum(image - 0.75, 0)
    image = np.minimum(image, 0.75, out=image) + bright / (1 + 2.2 * bright)
    y, x = rng.integers(_grain().shape[0] - height), rng.integers(_grain().shape[1] - width)
    image += spread(_grain()[y : y + height, x : x + width] * float(rng.uniform(0.004, 0.013)))
    return cv2.convertScaleAbs(image, alpha=255)


@cache
def _grain() -> np.ndarray:
    """A sheet of sensor noise; each photo takes a part of it."""
    return np.random.Generator(np.random.PCG64(43)).standard_normal((480, 480), dtype=np.float32)


@cache
def _vignette(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return spread((1 - 0.13 * (x * x + y * y)).astype(np.float32))
