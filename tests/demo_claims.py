"""Does a caption of the demo's world hold? Reads the claims back out of the words, with nothing of what wrote them.

Every word has to belong to a claim or to the few that claim nothing, and one way of telling which phrase means which thing has to
make all claims of the sentence true at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from pipeline.demo.scenes import Scene, Thing

KINDS = {
    "ball": "beach ball|ball", "car": "toy car|car", "cone": "traffic cone|cone", "donut": "donut|doughnut", "duck": "rubber duck|duck",
    "heart": "heart", "house": "house|cottage", "mug": "coffee mug|mug|cup", "mushroom": "mushroom|toadstool", "star": "star",
}  # fmt: skip
COLORS = {
    "black": "black", "blue": "blue", "green": "green", "orange": "orange", "purple": "purple", "red": "red", "violet": "purple",
    "white": "white", "yellow": "yellow",
}  # fmt: skip
SIZES = {"big": "big", "large": "big", "huge": "big", "small": "small", "little": "small", "tiny": "small"}
LOOKS = {"striped": {"ball", "cone"}, "frosted": {"donut"}, "spotted": {"mushroom"}}
COUNTS = {"two": 2, "a pair of": 2, "three": 3, "four": 4, "five": 5}
SILENT = r"a photo of|a picture of|there is|there's|here is|this is|you can see|we see|is placed|is|sits|stands|and|,"

NOUN = "|".join(KINDS.values())
ADJECTIVE = "|".join([*COLORS, *SIZES, *LOOKS, "shiny", "glossy"])
PHRASE = re.compile(
    rf"\b(?:something (?P<vague>{'|'.join(COLORS)})|an? (?P<adjectives>(?:(?:{ADJECTIVE}) )*)(?P<noun>{NOUN}))\b"
)
COUNTED = re.compile(
    rf"\b(?P<count>{'|'.join(COUNTS)}) (?:(?P<color>{'|'.join(COLORS)}) )?(?:(?P<kind>{NOUN})s|toys|things|objects)\b"
)
RELATION = re.compile(
    r"(?P<left>(?:(?:to|on) the )?left of)|(?P<right>(?:(?:to|on) the )?right of)|(?P<behind>behind|in back of)"
    r"|(?P<before>in front of|before)|(?P<beside>next to|beside|near)|(?P<between>between)"
)


def _at(**wanted: str) -> Callable[[Scene], bool]:
    return lambda scene: all(getattr(scene.place, key) in value.split("|") for key, value in wanted.items())


SURROUNDINGS: Mapping[str, Callable[[Scene], bool]] = {
    "on the grass|on a lawn|in a meadow|on green grass": _at(ground="grass"),
    "on the sand|on the beach|on a sandy beach": _at(ground="sand"),
    "in the snow|on snowy ground|on the snow": _at(ground="snow"),
    "on an? wooden floor|on the wooden floor|on wooden boards": _at(ground="wood"),
    "on a tiled floor|on the tiles|on kitchen tiles": _at(ground="tiles"),
    "on a carpet|on the rug|on a patterned rug": _at(ground="carpet"),
    "on the cobblestones|on a stone pavement|in the street": _at(ground="cobbles"),
    "in front of a brick wall|near a brick wall|by a wall of bricks": _at(backdrop="brick"),
    "near a plain wall|in a room|indoors": _at(backdrop="plaster"),
    "by the sea|with the sea in the background": _at(backdrop="sea"),
    "with hills in the background": _at(backdrop="hills"),
    "outdoors": _at(backdrop="hills|sea"),
    "under a blue sky": _at(backdrop="hills|sea", time="day"),
    "at sunset|in the evening|under an orange sky": _at(backdrop="hills|sea", time="sunset"),
    "at night|under the stars|under a dark sky": _at(backdrop="hills|sea", time="night"),
}


@dataclass(frozen=True)
class Meant:
    """What a noun phrase says of the thing that it means."""

    kind: str | None
    adjectives: Sequence[str]

    def fits(self, thing: Thing) -> bool:
        return self.kind in (None, thing.kind) and all(_has(thing, word) for word in self.adjectives)


def untrue(caption: str, scene: Scene) -> str:
    """What is wrong with a caption, or ""."""
    words = caption.lower().rstrip(".")
    for pattern, holds in SURROUNDINGS.items():
        words, found = re.subn(rf"\b(?:{pattern})(?![a-z])", ",", words)
        if found and not holds(scene):
            return f"not {pattern}"
    for match in COUNTED.finditer(words):
        if _count(match, scene) != COUNTS[match["count"]]:
            return f"not {match[0]}"
    words = COUNTED.sub(",", words)
    phrases = [_meant(match) for match in PHRASE.finditer(words)]
    words = PHRASE.sub("@", words)
    words = re.sub(rf"(?<![a-z])(?:{SILENT})(?![a-z])", " ", words)
    relations = [match.lastgroup or "" for match in RELATION.finditer(words)]
    left = RELATION.sub("", words).replace("@", "").split()
    if left:
        return f"nobody knows what {left} means"
    if len(relations) > 1 or (relations and len(phrases) != (3 if relations == ["between"] else 2)):
        return "more is related than can be told"
    for things in permutations(scene.things, len(phrases)):
        fits = all(phrase.fits(thing) for phrase, thing in zip(phrases, things, strict=True))
        if fits and all(_related(name, *things) for name in relations):
            return ""
    return "no things fit"


def _meant(match: re.Match[str]) -> Meant:
    if match["vague"]:
        return Meant(None, [match["vague"]])
    return Meant(_kind(match["noun"]), match["adjectives"].split())


def _kind(noun: str) -> str:
    return next(kind for kind, nouns in KINDS.items() if noun in nouns.split("|"))


def _has(thing: Thing, word: str) -> bool:
    if word in LOOKS:
        return thing.kind in LOOKS[word] and thing.color != "white"
    if word in ("shiny", "glossy"):
        return thing.shiny
    return (COLORS[word] == thing.color) if word in COLORS else (SIZES[word] == thing.size)


def _count(match: re.Match[str], scene: Scene) -> int:
    kind = _kind(match["kind"]) if match["kind"] else None
    color = COLORS[match["color"]] if match["color"] else None
    return sum(kind in (None, thing.kind) and color in (None, thing.color) for thing in scene.things)


def _related(name: str, *things: Thing) -> bool:
    """Looser than what the captions promise, as a reader would be: by middles and feet of boxes."""
    a, b = things[:2]
    (ax, ay), (bx, by) = (_middle_and_foot(thing) for thing in (a, b))
    if name == "between":
        cx, _ = _middle_and_foot(things[2])
        return min(bx, cx) < ax < max(bx, cx)
    if name == "beside":
        gap = max(a.box[0], b.box[0]) - min(a.box[2], b.box[2])
        return gap < max(a.box[2] - a.box[0], b.box[2] - b.box[0])
    return {"left": ax < bx, "right": ax > bx, "behind": ay < by, "before": ay > by}[name]


def _middle_and_foot(thing: Thing) -> tuple[float, float]:
    return (thing.box[0] + thing.box[2]) / 2, thing.box[3]
