"""A scene as a photo: backdrop, ground, shadows and things, then what a camera does to them."""

from functools import cache

import cv2
import numpy as np

from pipeline.demo import backdrop, ground
from pipeline.demo.lighting import Illumination, illumination, lit
from pipeline.demo.scenes import SIZES, Scene, Thing, overlap, stream


def draw_scene(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 BGR, the same for the same scene."""
    rng = stream(scene.seed, scene.number, 1)
    image = np.zeros((scene.height, scene.width, 3), np.float32)
    light = illumination(scene, ground.mean_color(scene.place.ground))
    if scene.outdoors:
        backdrop.draw_sky(image, scene, rng)
    if scene.place.backdrop == "hills":
        backdrop.draw_hills(image, scene, rng, light)
    if not scene.outdoors:
        ground.draw_wall(image, scene, rng, light)
    gloss = ground.draw_ground(image, scene, rng, light)
    cast, closed = ground.shadows(scene, light)
    shade = _shade(scene, light, cast, closed)
    top = 0 if not scene.outdoors else round(scene.edge)
    image[top:] *= shade[top:]
    if scene.place.backdrop == "sea":
        backdrop.draw_sea(image, scene, rng)
    for thing in scene.things:
        _draw_thing(image, scene, thing, light, gloss)
        if scene.place.ground == "grass":
            x, y, scale = scene.camera.project(np.array([[thing.x, thing.y, 0.0]]))[0]
            reach, dip = 0.62 * SIZES[thing.size] * scale, 0.10 * SIZES[thing.size] * scale
            lighting = (light.key * (light.direction[2] + 0.1) + light.sky) * shade
            ground.grow_grass(image, y + dip, x - reach, x + reach, scale, lighting, int(rng.integers(10000)))
    return _photograph(image, rng)


def _shade(scene: Scene, light: Illumination, cast: np.ndarray, closed: np.ndarray) -> np.ndarray:
    """(H, W, 3) share of its light that reaches ground and wall."""
    key = light.key * (light.direction[2] + 0.1)
    share = key / (key + light.sky)
    dark = cast[..., None] * (0.5 + 0.45 * light.hardness) * share
    return (1 - dark) * (1 - 0.6 * closed[..., None])


def _draw_thing(image: np.ndarray, scene: Scene, thing: Thing, light: Illumination, gloss: float) -> None:
    color, coverage, left, top = lit(scene, thing, light)
    if gloss > 0.15:
        _draw_reflection(image, scene, thing, color, coverage, left, gloss)
    frame, part = overlap(image.shape, left, top, color.shape)
    image[frame] = image[frame] * (1 - coverage[part]) + color[part]


def _draw_reflection(
    image: np.ndarray, scene: Scene, thing: Thing, color: np.ndarray, coverage: np.ndarray, left: int, gloss: float
) -> None:
    """The thing upside down below its foot, fading, as a polished floor shows it."""
    foot = round(float(scene.camera.project(np.array([[thing.x, thing.y, 0.0]]))[0, 1]))
    tall = color.shape[0]
    fade = (gloss * 0.55 * np.linspace(1, 0, tall, dtype=np.float32) ** 1.5)[:, None, None]
    frame, part = overlap(image.shape, left, foot, color.shape)
    upside, covered = cv2.blur(color[::-1], (3, 5)), cv2.blur(coverage[::-1], (3, 5))[..., None]
    image[frame] += (upside[part] - image[frame] * covered[part]) * fade[part[0]]


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lens and sensor: blur, vignette, exposure, a soft shoulder, noise, eight bits."""
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.45, 0.75)))
    image *= _vignette(height, width) * np.float32(rng.uniform(0.95, 1.1))
    image = np.sqrt(np.maximum(image, 0))  # to display values
    bright = np.maximum(image - 0.75, 0)
    image = np.minimum(image, 0.75) + bright / (1 + 2.2 * bright)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(0.006, 0.02))
    image += grain[..., None]
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


@cache
def _vignette(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return (1 - 0.13 * (x * x + y * y))[..., None].astype(np.float32)
