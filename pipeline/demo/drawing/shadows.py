"""The light that reaches ground and wall, and the shadows that things throw there.

A thing's shadow is that of a grid of points inside it: each falls along the light onto ground or wall, and what they cover is
filled. What is high above the ground throws a softer shadow; what touches it keeps the sky out.
"""

import cv2
import numpy as np

from pipeline.demo.drawing.camera import Camera
from pipeline.demo.drawing.color import spread, tinted
from pipeline.demo.drawing.lighting import Illumination
from pipeline.demo.drawing.sprites import sprite
from pipeline.demo.scenes import SIZES, Scene


def falling_light(scene: Scene, light: Illumination) -> np.ndarray:
    """(H, W, 3) light that falls on ground and wall, shadows taken off."""
    cast, closed = _shadows(scene, light)
    reached = 1 - cast * (0.5 + 0.45 * light.hardness)
    if light.window is not None:
        reached *= _window_light(scene, light)
    falling = tinted(reached, light.key * (light.direction[2] + 0.1), light.sky)
    falling *= spread(1 - 0.75 * closed)
    return falling


def _window_light(scene: Scene, light: Illumination) -> np.ndarray:
    """(H, W) share of the key light that a window lets onto ground and wall."""
    camera, edge = scene.camera, round(scene.edge)
    rows, columns = np.mgrid[: scene.height, : scene.width].astype(np.float32)
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size, np.float32)])
    wall, ground = pixels[:, : edge * scene.width], pixels[:, edge * scene.width :]
    x, down, depth = camera.wall_plane(scene.wall).astype(np.float32) @ wall
    behind = np.stack([x / depth, np.full_like(x, scene.wall), -down / depth])
    x, y, depth = camera.ground_plane(0).astype(np.float32) @ ground
    below = np.stack([x / depth, y / depth, np.zeros_like(x)])
    share = light.through_window(np.concatenate([behind, below], axis=1))
    return share.reshape(scene.height, scene.width)


def _shadows(scene: Scene, light: Illumination) -> tuple[np.ndarray, np.ndarray]:
    """How much of the key light, and of the sky, things keep from ground and wall: two (H, W) float32, 0 none to 1 all."""
    height, width = scene.height, scene.width
    half = (-(-height // 2), -(-width // 2))
    near, far, contact = (np.zeros(half, np.float32) for _ in range(3))
    lx, ly, lz = light.direction
    for thing in scene.things:
        size = SIZES[thing.size]
        x, y, z = (axis * np.float32(size) for axis in sprite(thing.kind, thing.turn, scene.camera.pitch).solid)
        x, y = x + np.float32(thing.x), y + np.float32(thing.y)
        reach = z / lz
        if scene.walled:
            reach = np.minimum(reach, np.maximum(scene.wall - y, 0) / max(-ly, 0.05))
        high, low = z > 0.4 * size, z < 0.16 * size
        fallen = np.stack([x - reach * lx, y - reach * ly, z - reach * lz])
        _splat(near, scene.camera, fallen[:, ~high], size)
        _splat(far, scene.camera, fallen[:, high], size)
        _splat(contact, scene.camera, np.stack([x[low], y[low], np.zeros_like(x[low])]), size)
    soft = 1.3 + 2.5 * (1 - light.hardness)
    cast = np.maximum(_filled(near, 1.2), _filled(far, soft))
    closed = cv2.GaussianBlur(_filled(contact, 1.2), (0, 0), 3.5)
    enlarged = [cv2.resize(each, (2 * half[1], 2 * half[0]), interpolation=cv2.INTER_LINEAR) for each in (cast, closed)]
    return enlarged[0][:height, :width], enlarged[1][:height, :width]


def _splat(target: np.ndarray, camera: Camera, points: np.ndarray, size: float) -> None:
    """Add points to a map of half the frame's size, each by the share of a pixel's solid that it stands for."""
    if not points.size:
        return
    x, y, scale = camera.project(points)
    columns, rows = (x * 0.5).astype(np.int32), (y * 0.5).astype(np.int32)
    inside = (columns >= 0) & (columns < target.shape[1]) & (rows >= 0) & (rows < target.shape[0]) & (x >= 0)
    counts = np.bincount((rows * target.shape[1] + columns)[inside], minlength=target.size).reshape(target.shape)
    target += np.minimum(counts, 2).astype(np.float32) * np.float32(max(0.25, (0.03 * size * scale.mean()) ** 2 / 2))


def _filled(points: np.ndarray, blur: float) -> np.ndarray:
    """A map of points as a closed surface, 0..1."""
    return np.clip(cv2.GaussianBlur(points, (0, 0), blur) * 2.1, 0, 1)
