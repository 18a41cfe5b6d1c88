"""Light on things: diffuse, sky, highlights and reflections, and the shadow of one thing on another."""

import math
from dataclasses import dataclass

import numpy as np

from pipeline.demo.drawing.color import bgr
from pipeline.demo.drawing.textures import soft_step
from pipeline.demo.scenes import SIZES, Scene, Thing, thing_sprite

WINDOW = (1.7, 1.25)  # units, half the width and height of a window's light, seen along it
BAR, SOFT = 0.05, 0.05  # units, half the width of a bar of the window, and of the edge of its shadow
SHADE, GLARE = 0.55, 1.35  # of the key light, beside the light of a window and in it

PAINTS = {  # colours of things
    "black": "#232327",
    "blue": "#1f5fd0",
    "green": "#1f9a45",
    "orange": "#f5801e",
    "purple": "#7d3cbd",
    "red": "#d6262b",
    "white": "#f1efe9",
    "yellow": "#f7cf1d",
}


@dataclass(frozen=True)
class Illumination:
    """The light of a scene as colours, linear BGR."""

    direction: np.ndarray  # (3,) towards the light, of length 1
    key: np.ndarray  # (3,) of sun, moon or window
    sky: np.ndarray  # (3,) from all above
    ground: np.ndarray  # (3,) from below
    hardness: float
    indoors: bool  # whether highlights show a window or the sun
    window: tuple[float, float] | None = None  # the point (x, y) of the ground on which its middle shines

    @staticmethod
    def flat() -> "Illumination":
        """From straight above, without relief."""
        grey = np.full(3, 0.5, np.float32)
        return Illumination(np.array([0, 0, 1], np.float32), grey, grey, grey, 0.0, False)

    @property
    def axes(self) -> np.ndarray:
        """(2, 3) two directions across the light: level, and upwards."""
        side = np.array([-self.direction[1], self.direction[0], 0], np.float32)
        side /= np.linalg.norm(side)
        return np.stack([side, np.cross(self.direction, side)])

    def through_window(self, points: np.ndarray) -> np.ndarray:
        """(n,) how much of the key light the window lets onto (3, n) points: more in the light of its panes, less elsewhere."""
        if self.window is None:
            return np.ones(points.shape[1], np.float32)
        middle = np.array([[self.window[0]], [self.window[1]], [0.3]], np.float32)
        across, up = self.axes @ (points - middle)
        pane = soft_step(WINDOW[0] - np.abs(across), -SOFT, SOFT) * soft_step(WINDOW[1] - np.abs(up), -SOFT, SOFT)
        to_bar = np.minimum(np.abs(np.abs(across) - WINDOW[0] / 3), np.abs(up))
        return SHADE + (GLARE - SHADE) * pane * soft_step(to_bar, BAR - SOFT, BAR + SOFT)


def illumination(scene: Scene, ground: np.ndarray) -> Illumination:
    """The scene's light; `ground` is the mean colour of the ground, which shines back."""
    light = scene.light
    if scene.place.time == "night":
        key, sky = bgr("#dfe6fa") * 0.5, bgr("#8697c4") * 0.42
    elif scene.place.time == "sunset":
        key, sky = bgr("#ffc58a") * 1.15, bgr("#c0aebf") * 0.62
    else:
        warm, cold = bgr("#ffeccb"), bgr("#f2f6ff")
        key = (cold + (warm - cold) * (light.warmth + 1) / 2) * (0.9 if scene.indoors else 1.0)
        sky = bgr("#f0e9e0") * 0.42 if scene.indoors else bgr("#cbdcf5") * 0.5
    key = key * (0.75 + 0.3 * light.hardness)
    direction = np.array(light.direction, np.float32)
    back = ground * (key * direction[2] + sky) * 0.6
    sky = sky * (1.25 - 0.35 * light.hardness)
    return Illumination(direction, key, sky, back, light.hardness, scene.indoors, light.window)


def lit(scene: Scene, thing: Thing, light: Illumination) -> tuple[np.ndarray, np.ndarray, int, int]:
    """A thing under the scene's light.

    Returns:
        (h, w, 3) float32 linear BGR, premultiplied; (h, w) coverage; and the corner's column and row.
    """
    shown, left, top = thing_sprite(thing, scene.camera)
    height, width = shown.normal.shape[:2]
    seen = np.flatnonzero(shown.normal[..., 3].ravel() > 0.004)
    normal, paint, place = (layer.reshape(-1, 4)[seen].T.copy() for layer in (shown.normal, shown.paint, shown.place))
    coverage = normal[3]
    paint, place = paint / coverage, place / coverage
    normal = normal[:3] / coverage
    length = np.maximum(np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2), 1e-4)
    albedo = bgr(PAINTS[thing.color])[:, None] * paint[0] + paint[1:]
    image = np.zeros((height * width, 3), np.float32)
    image[seen] = (_shade(scene, thing, light, normal / length, albedo, place, length**6) * coverage).T
    return image.reshape(height, width, 3), np.ascontiguousarray(shown.normal[..., 3]), left, top


def _shade(
    scene: Scene,
    thing: Thing,
    light: Illumination,
    normal: np.ndarray,
    albedo: np.ndarray,
    place: np.ndarray,
    smooth: np.ndarray,
) -> np.ndarray:
    """(3, n) colours of n points of a thing.

    Args:
        scene, thing, light: where, which, how lit.
        normal, albedo: (3, n).
        place: (4, n) x, y, z in the thing's own units, and openness to the sky.
        smooth: (n,) 1 on a smooth surface, less where normals of several directions share a pixel: edges do not glitter.
    """
    height, openness = place[2], place[3]
    key, sky, ground = (color[:, None] for color in (light.key, light.sky, light.ground))
    points = place[:3] * np.float32(SIZES[thing.size]) + np.array([[thing.x], [thing.y], [0]], np.float32)
    reached = 1 - (0.35 + 0.6 * light.hardness) * _shadow_of_others(scene, thing, light, points)
    reached *= light.through_window(points)
    diffuse = np.clip((light.direction @ normal) * 0.93 + 0.07, 0, 1) * reached * (0.55 + 0.45 * openness)
    upward = normal[2] * 0.5 + 0.5
    grounded = 0.4 + 0.6 * soft_step(height + 0.35 * np.maximum(normal[2], 0), 0.0, 0.3)
    ambient = (ground + (sky - ground) * upward) * (openness * grounded)
    color = albedo * (key * diffuse + ambient)
    pitch = math.radians(scene.camera.pitch)
    view = np.array([0, -math.cos(pitch), math.sin(pitch)], np.float32)
    toward = np.clip(view @ normal, 0, 1)
    mirrored = 2 * toward * normal - view[:, None]
    gleam = np.clip(light.direction @ mirrored, 0, 1)
    if not thing.shiny:
        return color + key * (0.10 * gleam**6 * reached)
    fresnel = (0.05 + 0.6 * (1 - toward) ** 4) * openness
    around = ground + (1.5 * sky - ground) * soft_step(mirrored[2], -0.12, 0.25)
    return color + around * fresnel + key * (_highlight(mirrored, gleam, light) * reached * smooth)


def _highlight(mirrored: np.ndarray, gleam: np.ndarray, light: Illumination) -> np.ndarray:
    """(n,) the mirrored lamp: a window with a crossbar indoors, else the sun."""
    if not light.indoors:
        return 1.2 * soft_step(gleam, 0.93, 0.975) + 0.25 * gleam**14
    a, b = light.axes @ mirrored
    pane = soft_step(0.24 - np.abs(a), 0, 0.04) * soft_step(0.3 - np.abs(b), 0, 0.04)
    bars = soft_step(np.minimum(np.abs(a), np.abs(b)), 0.012, 0.035)
    return np.where(gleam > 0, 0.85 * pane * bars, 0) + 0.15 * gleam**10


def _shadow_of_others(scene: Scene, thing: Thing, light: Illumination, points: np.ndarray) -> np.ndarray:
    """(n,) share of the key light that other things, taken for balls, keep from points."""
    shadow = np.zeros(points.shape[1], np.float32)
    for other in scene.things:
        size = SIZES[other.size]
        across = np.array([other.x - thing.x, other.y - thing.y], np.float32)
        if other is thing or across @ light.direction[:2] < 0:
            continue
        away = np.array([[other.x], [other.y], [0.45 * size]], np.float32) - points
        along = light.direction @ away
        miss = np.sqrt(np.maximum(away[0] ** 2 + away[1] ** 2 + away[2] ** 2 - along**2, 0))
        shadow = np.maximum(shadow, np.where(along > 0, 1 - soft_step(miss, 0.25 * size, 0.52 * size), 0))
    return shadow
