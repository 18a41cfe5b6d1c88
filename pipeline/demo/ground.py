"""Grounds and walls in perspective, their relief under the light, and the shadows that things throw on them."""

import math
from functools import cache, lru_cache

import cv2
import numpy as np

from pipeline.demo.color import bgr, spread, tinted
from pipeline.demo.lighting import Illumination
from pipeline.demo.scenes import SIZES, Camera, Scene
from pipeline.demo.sprites import sprite
from pipeline.demo.textures import SIDE, STEEPNESS, VARIANTS, Texture, texture

GRASS_HEIGHT = 0.17  # units
STRIP = (48, 1024)  # pixels, height and width of a row of grass


def draw_ground(
    image: np.ndarray, scene: Scene, rng: np.random.Generator, light: Illumination, falling: np.ndarray
) -> float:
    """Cover the rows of `image` ((H, W, 3) linear BGR) below the scene's edge with its ground; returns its gloss."""
    top, camera = round(scene.edge), scene.camera
    surface = texture(scene.place.ground, int(rng.integers(VARIANTS)))
    if scene.place.ground == "grass":
        plate = _lawn(camera, top, int(rng.integers(VARIANTS)))
        start = int(rng.integers(plate.shape[1] - camera.width + 1))
        rows = plate[:, start : start + camera.width]
        rows = rows[:, ::-1] if rng.random() < 0.5 else rows
    else:
        angle = rng.choice([0.0, 90.0]) if scene.place.ground in ("wood", "tiles") else rng.uniform(0, 360)
        plane = _ground_plane(camera) @ _shift(top)
        rows = _cover(surface, plane, (camera.width, camera.height - top), angle, rng, light)
        if scene.outdoors:
            _haze(rows, surface.mean * 1.1, 0.5)
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
    wall = _cover(surface, _wall_plane(camera, wall_distance(scene)), (camera.width, bottom), 0, rng, light)
    if scene.place.backdrop == "plaster":
        skirting = max(4, round(0.09 * camera.scale_at(scene.edge)))
        wall[bottom - skirting :] = bgr("#ece7de")
        wall[bottom - skirting] *= 0.6
    np.multiply(wall, falling[:bottom], out=image[:bottom])
    image[bottom - 1] *= 0.5


def wall_distance(scene: Scene) -> float:
    """Where the wall stands, as y in units."""
    return scene.camera.ground_at(scene.width / 2, scene.edge)[1]


def falling_light(scene: Scene, light: Illumination) -> np.ndarray:
    """(H, W, 3) light that falls on ground and wall, shadows taken off."""
    cast, closed = _shadows(scene, light)
    cast *= 0.5 + 0.45 * light.hardness
    key = light.key * (light.direction[2] + 0.1)
    falling = tinted(cast, -key, key + light.sky)
    falling *= spread(1 - 0.75 * closed)
    return falling


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
        if not scene.outdoors:
            reach = np.minimum(reach, np.maximum(wall_distance(scene) - y, 0) / max(-ly, 0.05))
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


def grow_grass(
    image: np.ndarray, row: float, left: float, right: float, scale: float, shade: np.ndarray, start: int
) -> None:
    """Blades in front of what stands at a row, from column `left` to `right`, fading at both ends.

    Args:
        image: (H, W, 3) linear BGR, drawn upon.
        row, left, right: pixels.
        scale: pixels per unit there.
        shade: (H, W, 3) light that falls on the ground.
        start: which part of the strip of grass to use.
    """
    tall = max(3, round(GRASS_HEIGHT * scale))
    x0, x1, y1 = max(0, round(left)), min(image.shape[1], round(right)), min(image.shape[0], round(row) + 2)
    y0 = max(0, y1 - tall)
    if x1 - x0 < 4 or y1 - y0 < 2:
        return
    strip = _strip_at(start % VARIANTS, scale)
    part = np.roll(strip, -(start % strip.shape[1]), axis=1)[: y1 - y0, : x1 - x0]
    ends = np.minimum(np.arange(x1 - x0), np.arange(x1 - x0)[::-1])
    part = part * np.clip(ends / (0.12 * (x1 - x0)), 0, 1).astype(np.float32)[None, :, None]
    image[y0:y1, x0:x1] *= spread(1 - part[..., 3])
    image[y0:y1, x0:x1] += part[..., :3] * shade[y1 - 1, x0:x1][None]


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


def _ground_plane(camera: Camera) -> np.ndarray:
    """(3, 3) homography from pixels to (x, y) of the ground in units."""
    cos, sin = math.cos(math.radians(camera.pitch)), math.sin(math.radians(camera.pitch))
    f, cx, cy, above = camera.focal, camera.width / 2, camera.height / 2, camera.above
    return np.array(
        [
            [above / f, 0, -cx * above / f],
            [0, -sin * above / f, (cos + sin * cy / f) * above],
            [0, cos / f, sin - cos * cy / f],
        ]
    )


def _wall_plane(camera: Camera, distance: float) -> np.ndarray:
    """(3, 3) homography from pixels to (x, -z) in units of a wall at y = distance."""
    cos, sin = math.cos(math.radians(camera.pitch)), math.sin(math.radians(camera.pitch))
    f, cx, cy = camera.focal, camera.width / 2, camera.height / 2
    straight = np.array([0, -sin / f, cos + sin * cy / f])
    upward = np.array([0, -cos / f, cos * cy / f - sin])
    return np.stack(
        [np.array([1 / f, 0, -cx / f]) * distance, -(camera.above * straight + distance * upward), straight]
    )


def _shift(rows: int) -> np.ndarray:
    return np.array([[1.0, 0, 0], [0, 1, rows], [0, 0, 1]])


def _cover(
    surface: Texture,
    plane: np.ndarray,
    size: tuple[int, int],
    angle: float,
    rng: np.random.Generator,
    light: Illumination,
) -> np.ndarray:
    """(h, w, 3) albedo of a plane covered with a texture, its relief shaded by the light."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    texels = SIDE / surface.units
    dx, dy = rng.uniform(0, SIDE, 2)
    placed = np.array([[cos * texels, sin * texels, dx], [-sin * texels, cos * texels, dy], [0, 0, 1]]) @ plane
    u, v = _texels(placed, size)
    color = _light_of(cv2.remap(surface.color, u, v, cv2.INTER_LINEAR))
    share = _blur_share(placed, size)
    far = int(np.count_nonzero(share))  # such rows come first
    if far:
        coarse = _light_of(cv2.remap(surface.coarse, u[:far], v[:far], cv2.INTER_LINEAR))
        color[:far] += (coarse - color[:far]) * share[:far, None, None]
    lx, ly = light.direction[:2] * light.hardness / STEEPNESS
    toward = np.array([cos * lx + sin * ly, cos * ly - sin * lx])  # the light as the texture's axes see it
    slope = cv2.remap(surface.slope, u, v, cv2.INTER_LINEAR).astype(np.float32)
    relief = cv2.transform(slope, np.array([[*toward, -128 * toward.sum()]], np.float32)) * (1 - share[:, None])
    color *= spread(np.clip(1 - relief, 0.35, 1.7))
    return color


def _light_of(coded: np.ndarray) -> np.ndarray:
    """Display values 0..255 -> linear."""
    shown = coded.astype(np.float32)
    shown *= shown
    shown *= np.float32(1 / 255**2)
    return shown


def _texels(placed: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a texture, each (h, w) float32, that the pixels of an area show. Rows of a plane are level: one division each."""
    x, y = np.arange(size[0], dtype=np.float64), np.arange(size[1], dtype=np.float64)[:, None]
    depth = placed[2, 1] * y + placed[2, 2]
    maps = []
    for axis in placed[:2]:
        value = ((axis[1] * y + axis[2]) / depth + axis[0] / depth * x).astype(np.float32)
        maps.append(value - np.floor(value / SIDE) * SIDE + 1)
    return maps[0], maps[1]


def _blur_share(placed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h,) float32: how far each row's texels are below the size of a pixel, 0..1."""
    rows = np.arange(size[1])
    points = np.stack([np.full(size[1], size[0] / 2), rows, np.ones(size[1])])
    beside, below = points + np.array([[1.0], [0], [0]]), points + np.array([[0.0], [1], [0]])
    here, right, down = ((placed @ each)[:2] / (placed @ each)[2] for each in (points, beside, below))
    step = np.maximum(np.hypot(*(right - here)), np.hypot(*(down - here)))
    return np.clip((step - 2) / 6, 0, 1).astype(np.float32)


def _haze(rows: np.ndarray, color: np.ndarray, most: float) -> None:
    """Blend the farther half of some rows, farthest first, into a colour."""
    far = rows.shape[0] // 2
    share = (np.linspace(1, 0, far, dtype=np.float32)[:, None] ** 2 * most).repeat(rows.shape[1], 1)
    rows[:far] *= spread(1 - share)
    rows[:far] += tinted(share, color)


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
    tall = max(3, round(GRASS_HEIGHT * scale))
    strip = _strip_scaled(variant, tall)
    return np.tile(strip, (1, -(-400 // strip.shape[1]), 1))


@cache
def _lawn(camera: Camera, top: int, variant: int) -> np.ndarray:
    """(H - top, 1.5 W, 3) albedo of a lawn that ends at row `top`."""
    rng = np.random.Generator(np.random.PCG64([37, variant, camera.width]))
    width = camera.width * 3 // 2
    surface = texture("grass", variant)
    flat = Illumination.flat()
    lawn = _cover(surface, _ground_plane(camera) @ _shift(top), (width, camera.height - top), 0, rng, flat)
    row = float(top + 2)
    while row < camera.height + 12:
        scale = camera.scale_at(row)
        tall = max(2, round(GRASS_HEIGHT * scale))
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
    patches = cv2.resize(_light_of(surface.coarse), (width, camera.height - top)).mean(2, keepdims=True)
    lawn *= patches / patches.mean()
    _haze(lawn, bgr("#8aa653"), 0.45)
    return lawn
