"""What is where: a scene's place, light and things, from a seed and the scene's number alone.

Lengths are in units; a big thing is one unit tall. `camera` says which way the axes go.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipeline.demo.drawing.camera import Camera
from pipeline.demo.drawing.shapes import SHAPES
from pipeline.demo.drawing.sprites import RESOLUTION, sprite

KINDS = tuple(SHAPES)
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
COLORS = tuple(PAINTS)
SIZES = {"small": 0.54, "big": 1.0}  # units tall
SHORT, LONG = 240, 320  # pixels, sides of a scene
NEAREST = 0.97  # of the frame's height: the lowest row on which a thing stands
LARGEST, SMALLEST = 0.54, 0.38  # a big thing's height over the short side, nearest and farthest
APART = 0.47  # between the centres of two things, over the sum of their sizes
MIN_VISIBLE = 0.45  # share of a thing that others leave uncovered
MIN_INSIDE = 0.85  # share of a thing that is in the frame


@dataclass(frozen=True)
class Place:
    """Where a scene is set."""

    ground: str  # grass, sand, snow, wood, tiles, carpet or cobbles
    backdrop: str  # hills, sea, plaster or brick
    time: str  # day, sunset or night; before a wall always day

    @property
    def walled(self) -> bool:
        """Whether a wall stands behind, not a horizon."""
        return self.backdrop in ("plaster", "brick")


PLACES = (
    Place("grass", "hills", "day"),
    Place("grass", "hills", "sunset"),
    Place("sand", "sea", "day"),
    Place("sand", "sea", "sunset"),
    Place("snow", "hills", "day"),
    Place("snow", "hills", "night"),
    Place("wood", "plaster", "day"),
    Place("wood", "brick", "day"),
    Place("carpet", "plaster", "day"),
    Place("tiles", "plaster", "day"),
    Place("cobbles", "brick", "day"),
)


@dataclass(frozen=True)
class Light:
    """What lights a scene."""

    direction: tuple[float, float, float]  # towards the light, of length 1
    warmth: float  # -1 cold to 1 warm
    hardness: float  # 0 overcast to 1 sun


@dataclass(frozen=True)
class Thing:
    """One thing: what it is, where it stands and what of it is seen."""

    kind: str
    color: str
    size: str
    shiny: bool
    turn: float  # degrees
    x: float  # units
    y: float
    box: tuple[int, int, int, int]  # XYXY in pixels: its full extent as drawn, behind others too, clipped to the frame
    visible: float  # share of it that is in the frame and not behind another thing


@dataclass(frozen=True)
class Scene:
    """All that is said about a picture before it is drawn."""

    seed: int
    number: int
    place: Place
    camera: Camera
    light: Light
    edge: float  # row where the ground ends and the backdrop begins
    things: tuple[Thing, ...]  # farthest first

    @property
    def width(self) -> int:
        return self.camera.width

    @property
    def height(self) -> int:
        return self.camera.height

    @property
    def wall(self) -> float:
        """Where ground and backdrop meet, as y in units."""
        return self.camera.ground_at(self.width / 2, self.edge)[1]


def stream(seed: int, number: int, purpose: int) -> np.random.Generator:
    """Random numbers of one scene for one purpose (0 layout, 1 drawing, 2 captions, 3 annotations, 4 file), the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(number, purpose))))


def make_scene(seed: int, number: int) -> Scene:
    """Scene `number` of the world that `seed` makes. Other scenes have no part in it."""
    rng = stream(seed, number, 0)
    place = PLACES[rng.integers(len(PLACES))]
    width, height = (SHORT, LONG) if rng.random() < 0.25 else (LONG, SHORT)
    pitch, focal = (22.0, 1.9 * SHORT) if place.walled else (12.0, 1.35 * SHORT)
    camera = _camera(width, height, pitch, focal)
    edge = camera.horizon + (rng.uniform(6, 16) if place.backdrop == "sea" else 0)
    if place.walled:
        edge = height * rng.uniform(0.2, 0.34)
    light = _light(rng, place)
    scene = Scene(seed, number, place, camera, light, edge, ())
    wanted = rng.choice([2, 3, 4, 5], p=[0.25, 0.35, 0.25, 0.15])
    placed: list[_Placed] = []
    tries = 0
    while len(placed) < 2 or (len(placed) < wanted and tries < 60):  # a crowded frame may hold fewer than wanted
        tries += 1
        new = _propose(rng, scene, [other.thing for other in placed])
        if new is not None:
            placed = _with_another(camera, placed, new)
    return replace(scene, things=tuple(_seen(placed)))


def thing_sprite(thing: Thing, camera: Camera, layers: slice = slice(None)) -> tuple[np.ndarray, int, int]:
    """A thing as its scene shows it: `layers` of its sprite's surface at its scale; the frame's column and row of their corner."""
    x, y, scale = camera.at(thing.x, thing.y)
    shown = sprite(thing.kind, thing.turn, camera.pitch)
    before = np.array(shown.surface.shape[1::-1])
    after = np.maximum(1, np.round(before * scale * SIZES[thing.size] / RESOLUTION).astype(int))
    left, top = np.round((x, y) - shown.foot * after / before).astype(int).tolist()
    surface = shown.surface[..., layers]
    few = (surface[..., first : first + 4] for first in range(0, surface.shape[2], 4))  # as OpenCV takes them
    return np.dstack([cv2.resize(part, after.tolist(), interpolation=cv2.INTER_AREA) for part in few]), left, top


def silhouette(thing: Thing, camera: Camera) -> tuple[np.ndarray, int]:
    """(H, W) bool: the pixels of a thing, were it alone; and their number, those outside of the frame included."""
    coverage, left, top = thing_sprite(thing, camera, slice(-1, None))
    covered = coverage[..., 0] > 0.5
    mask = np.zeros((camera.height, camera.width), bool)
    frame, part = overlap(mask.shape, left, top, covered.shape)
    mask[frame] = covered[part]
    return mask, int(np.count_nonzero(covered))


def overlap(
    frame: Sequence[int], left: int, top: int, part: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a part at (left, top) lies in a frame: as slices of the frame, and of the part."""
    y0, y1 = max(0, top), max(0, min(frame[0], top + part[0]))
    x0, x1 = max(0, left), max(0, min(frame[1], left + part[1]))
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _camera(width: int, height: int, pitch: float, focal: float) -> Camera:
    """A camera at such a height that the nearest big things, which stand near the lower edge, are as large as things get."""
    low = Camera(width, height, focal, pitch, 1.0)
    return replace(low, above=low.scale_at(height * NEAREST) / (LARGEST * SHORT))


def _light(rng: np.random.Generator, place: Place) -> Light:
    """From in front of the things or beside them, left or right: their seen sides are lit."""
    side = rng.choice([-1.0, 1.0])
    azimuth = math.radians(rng.uniform(15, 75))
    rise = math.radians(rng.uniform(22, 30) if place.time == "sunset" else rng.uniform(35, 62))
    direction = (side * math.sin(azimuth) * math.cos(rise), -math.cos(azimuth) * math.cos(rise), math.sin(rise))
    warmth = {"day": rng.uniform(-0.3, 0.6), "sunset": rng.uniform(0.8, 1.0), "night": rng.uniform(-1.0, -0.8)}[
        place.time
    ]
    return Light(direction, float(warmth), float(rng.uniform(0.5, 1.0)))


@dataclass(frozen=True)
class _Placed:
    thing: Thing
    mask: np.ndarray  # (H, W) bool, of the thing alone
    whole: int  # its pixels, those outside of the frame included


def _propose(rng: np.random.Generator, scene: Scene, others: Sequence[Thing]) -> Thing | None:
    """One more thing somewhere on the ground, or None where another stands."""
    again = bool(others) and rng.random() < 0.15  # two of a kind are worth counting
    kind = others[int(rng.integers(len(others)))].kind if again else KINDS[rng.integers(len(KINDS))]
    color = COLORS[rng.integers(len(COLORS))]
    size = "big" if rng.random() < 0.66 else "small"  # big ones find room less often: about as many come of it
    shiny, turns = bool(rng.random() < 0.4), SHAPES[kind].turns
    turn = float(turns[int(rng.integers(len(turns)))])
    camera = scene.camera
    farthest = max(camera.row_of_scale(SMALLEST * SHORT), scene.edge + 0.06 * camera.height)
    row = rng.uniform(farthest, NEAREST * camera.height)
    x, y = camera.ground_at(rng.uniform(0.06, 0.94) * camera.width, row)
    for other in others:
        if math.hypot(x - other.x, y - other.y) < APART * (SIZES[size] + SIZES[other.size]):
            return None
    return Thing(kind, color, size, shiny, turn, x, y, (0, 0, 0, 0), 0.0)


def _with_another(camera: Camera, placed: list[_Placed], thing: Thing) -> list[_Placed]:
    """What is placed, farthest first, and the new thing if it neither hides too much nor is hidden or cut off too much."""
    new = _Placed(thing, *silhouette(thing, camera))
    if np.count_nonzero(new.mask) < MIN_INSIDE * new.whole:
        return placed
    grown = sorted([*placed, new], key=lambda one: -one.thing.y)
    return grown if all(thing.visible >= MIN_VISIBLE for thing in _seen(grown)) else placed


def _seen(placed: Sequence[_Placed]) -> list[Thing]:
    """The things, farthest first, with their boxes and visible shares."""
    seen: list[Thing] = []
    taken = np.zeros_like(placed[0].mask)
    for one in reversed(placed):
        rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        seen.append(replace(one.thing, box=box, visible=float(np.count_nonzero(one.mask & ~taken) / one.whole)))
        taken = taken | one.mask
    return seen[::-1]
