"""A scene as a photo: surroundings, shadows and things, then what a camera does to them."""

import cv2
import numpy as np

from pipeline.demo.drawing.lighting import falling_light, illumination, lit
from pipeline.demo.drawing.surroundings import draw_surroundings
from pipeline.demo.drawing.textures import texture
from pipeline.demo.scenes import Scene, overlap, stream


def draw_scene(scene: Scene) -> np.ndarray:
    """(H, W, 3) uint8 BGR, the same for the same scene."""
    rng = stream(scene.seed, scene.number, 1)
    image = np.zeros((scene.height, scene.width, 3), np.float32)
    light = illumination(scene, texture(scene.place.ground, 0).mean)
    gloss = draw_surroundings(image, scene, rng, light, falling_light(scene, light))
    for thing in scene.things:
        color, coverage, left, top = lit(scene, thing, light)
        if gloss > 0.15:  # upside down below its foot, fading, as a polished floor shows it
            fade = gloss * 0.55 * np.linspace(1, 0, len(color), dtype=np.float32)[:, None, None] ** 1.5
            _, foot, _ = scene.camera.at(thing.x, thing.y)
            _lay_over(image, cv2.blur(color[::-1] * fade, (3, 5)), coverage[::-1] * fade, left, round(foot))
        _lay_over(image, color, coverage, left, top)
    return _photograph(image, rng)


def _lay_over(image: np.ndarray, color: np.ndarray, coverage: np.ndarray, left: int, top: int) -> None:
    frame, part = overlap(image.shape, left, top, color.shape)
    image[frame] *= 1 - coverage[part]
    image[frame] += color[part]


def _photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lens and sensor: blur, vignette, exposure, a soft shoulder, noise, eight bits."""
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.45, 0.75))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    image *= (1 - 0.13 * (x * x + y * y))[..., None] * np.float32(rng.uniform(0.95, 1.1))
    image = np.sqrt(image)  # to display values
    bright = np.maximum(image - 0.75, 0)
    image = np.minimum(image, 0.75) + bright / (1 + 2.2 * bright)
    image += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(0.004, 0.013))
    return cv2.convertScaleAbs(image, alpha=255)
