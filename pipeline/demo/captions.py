"""Sentences that people would write under a scene. Every one is true of it."""

from collections.abc import Sequence

import numpy as np

from pipeline.demo.relations import RELATIONS, between
from pipeline.demo.scenes import Scene, Thing, stream
from pipeline.demo.words import (
    COLOR_NAMES,
    COUNTS,
    GROUNDS,
    LOOKS,
    NAMES,
    OPENINGS,
    RELATION_PHRASES,
    SETTING_PHRASES,
    SHINY_NAMES,
    SIZE_NAMES,
    TOYS,
    plural,
)

PER_IMAGE = 5


def describe(scene: Scene) -> list[str]:
    """Five captions, as of five people: one names everything, others a part."""
    rng = stream(scene.seed, scene.number, 2)
    sentences: list[str] = []
    for form in (_Speaker.everything, _Speaker.relation, _Speaker.relation, _Speaker.one, _Speaker.overall):
        speaker = _Speaker(rng, scene)
        sentence = speaker.sentence(form(speaker))
        while sentence in sentences:  # ends: there are always other words for one thing somewhere
            sentence = speaker.sentence(speaker.one())
        sentences.append(sentence)
    return [sentences[place] for place in rng.permutation(PER_IMAGE)]


class _Speaker:
    """One person's way of putting it."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng, self.scene = rng, scene
        self.punctuates = self.chance(0.6)
        self.colorful, self.measures = rng.uniform((0.75, 0.1), (1.0, 0.7))  # how often colour and size are said

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def shuffled(self) -> list[Thing]:
        return [self.scene.things[place] for place in self.rng.permutation(len(self.scene.things))]

    # --- parts

    def sentence(self, words: str) -> str:
        return f"{words[0].upper()}{words[1:]}." if self.punctuates else words

    def name(self, kind: str) -> str:
        return self.pick(NAMES[kind]) if self.chance(0.4) else NAMES[kind][0]

    def phrase(self, thing: Thing) -> str:
        """ "a big red ball"."""
        words = []
        if self.chance(self.measures):
            words.append(self.pick(SIZE_NAMES[thing.size]))
        if thing.shiny and self.chance(0.4):
            words.append(self.pick(SHINY_NAMES))
        if thing.kind in LOOKS and thing.color != "white" and self.chance(0.12):  # white on white does not show
            words.append(LOOKS[thing.kind])
        if self.chance(self.colorful):
            words.append(self.pick(COLOR_NAMES[thing.color]))
        words.append(self.name(thing.kind))
        return _with_article(" ".join(words))

    def vague(self, thing: Thing) -> str:
        """As `phrase`, now and then without saying what it is."""
        return f"something {self.pick(COLOR_NAMES[thing.color])}" if self.chance(0.12) else self.phrase(thing)

    def where(self) -> str:
        """ "on the grass at sunset"."""
        place = self.scene.place
        ground = self.pick(GROUNDS[place.ground][2])
        setting = self.pick(SETTING_PHRASES[place.backdrop, place.time])
        return self.pick((ground, ground, setting, f"{ground} {setting}"))

    def placed(self, words: str, probability: float) -> str:
        """Some words with where it is, before or behind."""
        if not self.chance(probability):
            return words
        return f"{self.where()}, {words}" if self.chance(0.15) else f"{words} {self.where()}"

    # --- whole captions

    def everything(self) -> str:
        """All things, in any order."""
        *most, last = [self.phrase(thing) for thing in self.shuffled()]
        return self.placed(f"{', '.join(most)} and {last}" if most else last, 0.6)

    def relation(self) -> str:
        """How two things stand to each other, or three."""
        things = self.shuffled()
        threes = [(a, b, c) for a in things for b in things for c in things if between(a, b, c)]
        if threes and self.chance(0.35):
            a, b, c = threes[0]
            ends = (b, c) if self.chance(0.5) else (c, b)
            words = f"{self.phrase(a)} {self._verb()}between {self.phrase(ends[0])} and {self.phrase(ends[1])}"
            return self.placed(words, 0.2)
        pairs = [(a, b) for a in things for b in things if a is not b]
        held = [(a, b, name) for a, b in pairs for name, holds in RELATIONS.items() if holds(a, b)]
        if not held:
            return self.one()
        a, b, name = held[int(self.rng.integers(len(held)))]
        return self.placed(f"{self.phrase(a)} {self._verb()}{self.pick(RELATION_PHRASES[name])} {self.vague(b)}", 0.3)

    def one(self) -> str:
        """One thing alone."""
        words = self.phrase(self.shuffled()[0])
        return f"{self.pick(OPENINGS)} {words} {self.where()}" if self.chance(0.45) else self.placed(words, 0.85)

    def overall(self) -> str:
        """How many there are of a kind, of a colour, or in all."""
        things = self.scene.things
        alike: list[tuple[int, str]] = []
        for kind in dict.fromkeys(thing.kind for thing in things):
            alike.append((sum(thing.kind == kind for thing in things), plural(self.name(kind))))
        for color in dict.fromkeys(thing.color for thing in things):
            count = sum(thing.color == color for thing in things)
            alike.append((count, f"{self.pick(COLOR_NAMES[color])} {self.pick(TOYS)}"))
        alike = [(count, words) for count, words in alike if count > 1]
        if len(things) > 1 and (self.chance(0.25) or not alike) and self.chance(0.6):
            alike = [(len(things), self.pick(TOYS))]
        if not alike:
            return self.relation()
        count, words = alike[int(self.rng.integers(len(alike)))]
        return self.placed(f"{self.pick(COUNTS[count])} {words}", 0.95)

    def _verb(self) -> str:
        return self.pick(("", "", "is ", "sits ", "stands ", "is placed "))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
