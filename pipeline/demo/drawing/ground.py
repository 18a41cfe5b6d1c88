"""The ground and the wall of a scene."""

import numpy as np

from pipeline.demo.drawing.color import bgr, haze
from pipeline.demo.drawing.covering import cover
from pipeline.demo.drawing.grass import lawn
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.textures import VARIANTS, texture
from pipeline.demo.scenes import Scene


def draw_ground(
    image: np.ndarray, scene: Scene, rng: np.random.Generator, light: Illumination, falling: np.ndarray
) -> float:
    """Cover the rows of `image` ((H, W, 3) linear BGR) below the scene's edge with its ground; returns its gloss."""
    top, camera = round(scene.edge), scene.camera
    surface = texture(scene.place.ground, int(rng.integers(VARIANTS)))
    if scene.place.ground == "grass":
        plate = lawn(camera, top, int(rng.integers(VARIANTS)))
        start = int(rng.integers(plate.shape[1] - camera.width + 1))
        rows = plate[:, start : start + camera.width]
        rows = rows[:, ::-1] if rng.random() < 0.5 else rows
    else:
        angle = rng.choice([0.0, 90.0]) if scene.place.ground in ("wood", "tiles") else rng.uniform(0, 360)
        rows = cover(surface, camera.ground_plane(top), (camera.width, camera.height - top), angle, rng, light)
        if not scene.walled:
            haze(rows, surface.mean * 1.1, 0.5)
    np.multiply(rows, falling[top:], out=image[top:])
    return surface.gloss


def mean_color(name: str) -> np.ndarray:
    """(3,) of a ground, for the light that it sends back."""
    return texture(name, 0).mean


def draw_wall(
    image: np.ndarray, scene: Scene, rng: np.random.Generator, light: Illumination, falling: np.ndarray
) -> None:
    """Cover the rows above the scene's edge with its wall."""
    camera, bottom = scene.camera, round(scene.edge)
    surface = texture(scene.place.backdrop, int(rng.integers(VARIANTS)))
    wall = cover(surface, camera.wall_plane(scene.wall), (camera.width, bottom), 0, rng, light)
    if scene.place.backdrop == "plaster":
        skirting = max(4, round(0.09 * camera.scale_at(scene.edge)))
        wall[bottom - skirting :] = bgr("#ece7de")
        wall[bottom - skirting] *= 0.6
    np.multiply(wall, falling[:bottom], out=image[:bottom])
    image[bottom - 1] *= 0.5
