"""Sentences that people would write under a scene. Every one is true of it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.demo.scenes import Scene, Thing, stream
from pipeline.demo.words import COLOR_NAMES, NAMES, SHINY_NAMES, SIZE_NAMES, plural

PER_IMAGE = 5
COUNTS = {2: ("two", "a pair of"), 3: ("three",), 4: ("four",), 5: ("five",)}
GROUNDS = {
    "grass": ("on the grass", "on a lawn", "in a meadow", "on green grass"),
    "sand": ("on the sand", "on the beach", "on a sandy beach"),
    "snow": ("in the snow", "on snowy ground", "on the snow"),
    "wood": ("on a wooden floor", "on the wooden floor", "on wooden boards"),
    "tiles": ("on a tiled floor", "on the tiles", "on kitchen tiles"),
    "carpet": ("on a carpet", "on the rug", "on a patterned rug"),
    "cobbles": ("on the cobblestones", "on a stone pavement", "in the street"),
}
SETTINGS = {  # by backdrop and time
    ("hills", "day"): ("under a blue sky", "with hills in the background"),
    ("hills", "sunset"): ("at sunset", "in the evening", "under an orange sky"),
    ("hills", "night"): ("at night", "under the stars", "under a dark sky"),
    ("sea", "day"): ("by the sea", "with the sea in the background", "under a blue sky"),
    ("sea", "sunset"): ("by the sea at sunset", "at sunset", "in the evening"),
    ("plaster", "day"): ("in a room", "near a plain wall", "indoors"),
    ("brick", "day"): ("in front of a brick wall", "near a brick wall", "by a wall of bricks"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "behind": ("behind", "farther back than"),
    "before": ("in front of", "closer than"),
    "beside": ("next to", "beside", "near"),
}
TOYS = ("toys", "things", "objects")
OPENINGS = ("a photo of", "a picture of", "there is", "here is", "this is", "you can see", "a close view of")


def left_of(a: Thing, b: Thing) -> bool:
    """Whether `a` is clearly left of `b`: the middle of each is outside of the other."""
    middle_a, middle_b = (a.box[0] + a.box[2]) / 2, (b.box[0] + b.box[2]) / 2
    return middle_a < b.box[0] and middle_b > a.box[2]


def behind(a: Thing, b: Thing) -> bool:
    """Whether `a` stands clearly farther away than `b`, and at least a third of the narrower one is above or below the other."""
    shared = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    narrow = min(a.box[2] - a.box[0], b.box[2] - b.box[0])
    return a.y > b.y + 0.3 and shared > narrow / 3


def beside(a: Thing, b: Thing) -> bool:
    """Whether two things stand side by side: about as far away, with less than a thing's width between them."""
    gap = max(a.box[0], b.box[0]) - min(a.box[2], b.box[2])
    wide = (a.box[2] - a.box[0] + b.box[2] - b.box[0]) / 2
    return (left_of(a, b) or left_of(b, a)) and abs(a.y - b.y) < 0.7 and gap < 0.7 * wide


def relations(a: Thing, b: Thing) -> list[str]:
    """All that hold from `a` to `b`."""
    held = {
        "left": left_of(a, b),
        "right": left_of(b, a),
        "behind": behind(a, b),
        "before": behind(b, a),
        "beside": beside(a, b),
    }
    return [name for name, holds in held.items() if holds]


def describe(scene: Scene) -> list[str]:
    """Five captions, as of five people: one names everything, others a part."""
    rng = stream(scene.seed, scene.number, 2)
    speakers = [_Speaker(rng, scene) for _ in range(PER_IMAGE)]
    makers = [_Speaker.all_things, _Speaker.pair, _Speaker.pair, _Speaker.one, _Speaker.counted]
    found: list[str] = []
    for speaker, maker in zip(speakers, makers, strict=True):
        for _ in range(20):
            sentence = speaker.finished(maker(speaker))
            if sentence not in found:
                break
        found.append(sentence)
    return [found[place] for place in rng.permutation(PER_IMAGE)]


class _Speaker:
    """One person's way of putting it."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng, self.scene = rng, scene
        self.formal = rng.random() < 0.6
        self.fond_of_color, self.fond_of_size = rng.uniform(0.7, 1.0), rng.uniform(0.1, 0.7)

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def finished(self, sentence: str) -> str:
        return sentence[0].upper() + sentence[1:] + "." if self.formal else sentence

    def adjectives(self, thing: Thing) -> list[str]:
        words = []
        if self.chance(self.fond_of_size):
            words.append(self.pick(SIZE_NAMES[thing.size]))
        if thing.shiny and self.chance(0.4):
            words.append(self.pick(SHINY_NAMES))
        if self.chance(self.fond_of_color):
            words.append(self.pick(COLOR_NAMES[thing.color]))
        return words

    def name(self, kind: str) -> str:
        return self.pick(NAMES[kind]) if self.chance(0.4) else NAMES[kind][0]

    def phrase(self, thing: Thing) -> str:
        """ "a big red ball"."""
        words = " ".join([*self.adjectives(thing), self.name(thing.kind)])
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def where(self) -> str:
        """ "on the grass at sunset"."""
        ground, place = self.pick(GROUNDS[self.scene.place.ground]), self.scene.place
        setting = self.pick(SETTINGS[place.backdrop, place.time])
        return self.pick((ground, ground, setting, f"{ground} {setting}"))

    def all_things(self) -> str:
        things = [self.scene.things[place] for place in self.rng.permutation(len(self.scene.things))]
        *most, last = [self.phrase(thing) for thing in things]
        listed = f"{', '.join(most)} and {last}" if most else last
        return f"{listed} {self.where()}" if self.chance(0.6) else listed

    def pair(self) -> str:
        things = self.scene.things
        held = [(a, b, name) for a in things for b in things if a is not b for name in relations(a, b)]
        if not held:
            return self.one()
        a, b, name = held[int(self.rng.integers(len(held)))]
        other = f"something {self.pick(COLOR_NAMES[b.color])}" if self.chance(0.12) else self.phrase(b)
        verb = self.pick(("", "", "is ", "sits ", "stands "))
        sentence = f"{self.phrase(a)} {verb}{self.pick(RELATIONS[name])} {other}"
        return f"{sentence} {self.where()}" if self.chance(0.3) else sentence

    def one(self) -> str:
        thing = self.scene.things[int(self.rng.integers(len(self.scene.things)))]
        opening = f"{self.pick(OPENINGS)} " if self.chance(0.4) else ""
        return f"{opening}{self.phrase(thing)} {self.where()}"

    def counted(self) -> str:
        kinds = Counter(thing.kind for thing in self.scene.things)
        several = [kind for kind, count in kinds.items() if count > 1]
        if several:
            kind = self.pick(several)
            return f"{self.pick(COUNTS[kinds[kind]])} {plural(self.name(kind))} {self.where()}"
        if self.chance(0.3):
            return f"{self.pick(COUNTS[len(self.scene.things)])} {self.pick(TOYS)} {self.where()}"
        return self.pair()
