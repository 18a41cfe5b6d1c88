"""Light on things: diffuse, sky, highlights and reflections, and the shadow of one thing on another."""

from dataclasses import dataclass

import numpy as np

from pipeline.demo.color import bgr
from pipeline.demo.scenes import SIZES, Scene, Thing, thing_sprite
from pipeline.demo.textures import soft_step

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
    window: bool  # whether highlights show a window or the sun

    @staticmethod
    def flat() -> "Illumination":
        """From straight above, without relief."""
        grey = np.full(3, 0.5, np.float32)
        return Illumination(np.array([0, 0, 1], np.float32), grey, grey, grey, 0.0, False)


def illumination(scene: Scene, ground: np.ndarray) -> Illumination:
    """The scene's light; `ground` is the mean colour of the ground, which shines back."""
    light = scene.light
    if scene.place.time == "night":
        key, sky = bgr("#b9cdfb") * 0.62, bgr("#7288c8") * 0.5
    elif scene.place.time == "sunset":
        key, sky = bgr("#ffc58a") * 1.15, bgr("#c0aebf") * 0.62
    else:
        warm, cold = bgr("#ffeccb"), bgr("#f2f6ff")
        key = (cold + (warm - cold) * (light.warmth + 1) / 2) * (1.0 if scene.outdoors else 0.9)
        sky = bgr("#cbdcf5") * 0.5 if scene.outdoors else bgr("#f0e9e0") * 0.42
    key = key * (0.75 + 0.3 * light.hardness)
    direction = np.array(light.direction, np.float32)
    back = ground * (key * direction[2] + sky) * 0.6
    return Illumination(direction, key, sky * (1.25 - 0.35 * light.hardness), back, light.hardness, not scene.outdoors)


def lit(scene: Scene, thing: Thing, light: Illumination) -> tuple[np.ndarray, np.ndarray, int, int]:
    """A thing under the scene's light.

    Returns:
        (h, w, 3) float32 linear BGR, premultiplied; (h, w, 1) coverage; and the corner's column and row.
    """
    shown, left, top = thing_sprite(thing, scene.camera)
    coverage = shown.normal[..., 3:]
    seen = np.flatnonzero(coverage.ravel() > 0.004)
    share = 1 / coverage.ravel()[seen, None]
    normal = shown.normal.reshape(-1, 4)[seen, :3] * share
    normal /= np.maximum(np.sqrt((normal * normal).sum(1, keepdims=True)), 1e-4)
    paint, place = shown.paint.reshape(-1, 4)[seen] * share, shown.place.reshape(-1, 4)[seen] * share
    albedo = paint[:, :1] * bgr(PAINTS[thing.color]) + paint[:, 1:]
    color = _shade(scene, thing, light, normal, albedo, place)
    image = np.zeros((coverage.size, 3), np.float32)
    image[seen] = color * coverage.ravel()[seen, None]
    return image.reshape(*coverage.shape[:2], 3), coverage, left, top


def _shade(
    scene: Scene, thing: Thing, light: Illumination, normal: np.ndarray, albedo: np.ndarray, place: np.ndarray
) -> np.ndarray:
    """(n, 3) colours of n points of a thing, from their (n, 3) normals and albedo and (n, 4) places and openness."""
    size = SIZES[thing.size]
    points = place[:, :3] * np.float32(size) + np.array([thing.x, thing.y, 0], np.float32)
    facing = normal @ light.direction
    reached = 1 - (0.35 + 0.6 * light.hardness) * _shadow_of_others(scene, thing, light, points)
    diffuse = np.clip(facing * 0.93 + 0.07, 0, 1) * reached * (0.55 + 0.45 * place[:, 3])
    upward = normal[:, 2:] * 0.5 + 0.5
    grounded = 0.4 + 0.6 * soft_step(place[:, 2:3] + 0.35 * np.maximum(normal[:, 2:], 0), 0.0, 0.3)
    ambient = (light.sky * upward + light.ground * (1 - upward)) * (place[:, 3:] * grounded)
    color = albedo * (light.key * diffuse[:, None] + ambient)
    view = np.array([0, -np.cos(np.radians(scene.camera.pitch)), np.sin(np.radians(scene.camera.pitch))], np.float32)
    toward = np.clip(normal @ view, 0, 1)
    mirrored = 2 * toward[:, None] * normal - view
    gleam = mirrored @ light.direction
    if thing.shiny:
        fresnel = 0.05 + 0.6 * (1 - toward) ** 4
        above = soft_step(mirrored[:, 2:], -0.12, 0.25)
        around = light.ground * (1 - above) + light.sky * 1.5 * above
        color += (fresnel * place[:, 3])[:, None] * around
        color += (_highlight(mirrored, gleam, light) * reached)[:, None] * light.key
    else:
        color += (0.10 * np.clip(gleam, 0, 1) ** 6 * reached)[:, None] * light.key
    return color


def _highlight(mirrored: np.ndarray, gleam: np.ndarray, light: Illumination) -> np.ndarray:
    """(n,) the mirrored lamp: a window with a crossbar indoors, else the sun."""
    if not light.window:
        return 1.2 * soft_step(gleam, 0.93, 0.975) + 0.25 * np.clip(gleam, 0, 1) ** 14
    side = np.array([light.direction[1], -light.direction[0], 0], np.float32)
    side /= np.linalg.norm(side)
    upright = np.cross(side, light.direction)
    a, b = mirrored @ side, mirrored @ upright
    pane = soft_step(0.24 - np.abs(a), 0, 0.04) * soft_step(0.3 - np.abs(b), 0, 0.04)
    bars = soft_step(np.minimum(np.abs(a), np.abs(b)), 0.012, 0.035)
    return np.where(gleam > 0, 0.85 * pane * bars, 0) + 0.15 * np.clip(gleam, 0, 1) ** 10


def _shadow_of_others(scene: Scene, thing: Thing, light: Illumination, points: np.ndarray) -> np.ndarray:
    """(n,) share of the key light that other things, taken for balls, keep from points."""
    shadow = np.zeros(len(points), np.float32)
    for other in scene.things:
        size = SIZES[other.size]
        centre = np.array([other.x, other.y, 0.45 * size], np.float32)
        across = np.array([other.x - thing.x, other.y - thing.y])
        if other is thing or across @ light.direction[:2] < 0:
            continue
        away = centre - points
        along = away @ light.direction
        miss = np.sqrt(np.maximum((away * away).sum(1) - along * along, 0))
        shadow = np.maximum(shadow, np.where(along > 0, 1 - soft_step(miss, 0.25 * size, 0.52 * size), 0))
    return shadow
