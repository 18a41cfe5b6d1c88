"""Light: what of it reaches ground and wall past the things, and how things look in it."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.demo.drawing.color import bgr, mix, soft_step
from pipeline.demo.drawing.sprites import sprite
from pipeline.demo.scenes import PAINTS, SIZES, Scene, Thing, thing_sprite


@dataclass(frozen=True)
class Illumination:
    """The light of a scene as colours, linear BGR."""

    direction: np.ndarray  # (3,) towards the light, of length 1
    key: np.ndarray  # (3,) of sun, moon or lamp
    sky: np.ndarray  # (3,) from all above
    ground: np.ndarray  # (3,) from below
    hardness: float


def illumination(scene: Scene, ground: np.ndarray) -> Illumination:
    """The scene's light; `ground` is the mean colour of the ground, which shines back."""
    light = scene.light
    if scene.place.time == "night":
        key, sky = bgr("#dfe6fa") * 0.5, bgr("#8697c4") * 0.42
    elif scene.place.time == "sunset":
        key, sky = bgr("#ffc58a") * 1.15, bgr("#c0aebf") * 0.62
    else:
        key = mix(bgr("#f2f6ff"), bgr("#ffeccb"), np.array(light.warmth + 1) / 2)
        sky = bgr("#f0e9e0") * 0.42 if scene.place.walled else bgr("#cbdcf5") * 0.5
    key = key * (0.75 + 0.3 * light.hardness)
    direction = np.array(light.direction, np.float32)
    back = ground * (key * direction[2] + sky) * 0.6
    return Illumination(direction, key, sky * (1.25 - 0.35 * light.hardness), back, light.hardness)


def falling_light(scene: Scene, light: Illumination) -> np.ndarray:
    """(H, W, 3) light that falls on ground and wall, less what things keep from there.

    A thing's shadow is the hull of points inside it: all of them along the light, and those near the ground, straight below
    which no sky is seen.
    """
    cast, closed = np.zeros((2, scene.height, scene.width), np.float32)
    lx, ly, lz = light.direction
    for thing in scene.things:
        x, y, z = sprite(thing.kind, thing.turn, scene.camera.pitch).solid * SIZES[thing.size]
        x, y, low = x + thing.x, y + thing.y, z < 0.16 * SIZES[thing.size]
        reach = z / lz
        if scene.place.walled:
            reach = np.minimum(reach, np.maximum(scene.wall - y, 0) / max(-ly, 0.05))
        _fill(cast, scene, np.stack([x - reach * lx, y - reach * ly, z - reach * lz]))
        _fill(closed, scene, np.stack([x, y, 0 * z])[:, low])
    cast = cv2.GaussianBlur(cast, (0, 0), 3 + 4 * (1 - light.hardness)) * (0.5 + 0.45 * light.hardness)
    falling = light.key * (light.direction[2] + 0.1) * (1 - cast[..., None]) + light.sky
    return falling * (1 - 0.75 * cv2.GaussianBlur(closed, (0, 0), 5))[..., None]


def _fill(area: np.ndarray, scene: Scene, points: np.ndarray) -> None:
    pixels = scene.camera.project(points)[:2].T
    cv2.fillConvexPoly(area, cv2.convexHull(pixels.round().astype(np.int32)), 1.0)


def lit(scene: Scene, thing: Thing, light: Illumination) -> tuple[np.ndarray, np.ndarray, int, int]:
    """A thing under the scene's light.

    Returns:
        (h, w, 3) float32 linear BGR, premultiplied; (h, w, 1) coverage; and the corner's column and row.
    """
    shown, left, top = thing_sprite(thing, scene.camera)
    coverage = shown[..., -1:]
    normal, own, paint, height, openness, _ = np.split(shown / np.maximum(coverage, 1e-3), (3, 4, 7, 8, 9), axis=2)
    length = np.maximum(np.linalg.norm(normal, axis=2, keepdims=True), 1e-4)
    normal = normal / length
    albedo = bgr(PAINTS[thing.color]) * own + paint
    diffuse = np.clip((normal @ light.direction)[..., None] * 0.93 + 0.07, 0, 1) * (0.55 + 0.45 * openness)
    grounded = 0.4 + 0.6 * soft_step(height + 0.35 * np.maximum(normal[..., 2:], 0), 0.0, 0.3)
    ambient = (light.ground + (light.sky - light.ground) * (normal[..., 2:] * 0.5 + 0.5)) * openness * grounded
    color = albedo * (light.key * diffuse + ambient)
    pitch = math.radians(scene.camera.pitch)
    view = np.array([0, -math.cos(pitch), math.sin(pitch)], np.float32)
    toward = np.clip(normal @ view, 0, 1)[..., None]
    mirrored = 2 * toward * normal - view
    gleam = np.clip(mirrored @ light.direction, 0, 1)[..., None]
    if thing.shiny:
        around = light.ground + (1.5 * light.sky - light.ground) * soft_step(mirrored[..., 2:], -0.12, 0.25)
        color += around * (0.05 + 0.6 * (1 - toward) ** 4) * openness
        # edges, where normals of several directions share a pixel, do not glitter
        color += light.key * (1.2 * soft_step(gleam, 0.93, 0.975) + 0.25 * gleam**14) * length**6
    else:
        color += light.key * 0.1 * gleam**6
    return color * coverage, coverage, left, top
