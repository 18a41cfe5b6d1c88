"""Where things stand to each other, strictly enough that nobody who sees the picture would object."""

from pipeline.demo.scenes import Thing


def middle(thing: Thing) -> float:
    """Column of the middle of its box."""
    return (thing.box[0] + thing.box[2]) / 2


def left_of(a: Thing, b: Thing) -> bool:
    """The middle of each is outside of the other's columns."""
    return middle(a) < b.box[0] and middle(b) > a.box[2]


def behind(a: Thing, b: Thing) -> bool:
    """`a` is clearly farther away, and at least a third of the narrower one shares columns with the other."""
    shared = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    narrow = min(a.box[2] - a.box[0], b.box[2] - b.box[0])
    return a.y > b.y + 0.3 and shared > narrow / 3


def beside(a: Thing, b: Thing) -> bool:
    """One is left of the other, about as far away, with less than two thirds of their mean width between them."""
    gap = max(a.box[0], b.box[0]) - min(a.box[2], b.box[2])
    width = (a.box[2] - a.box[0] + b.box[2] - b.box[0]) / 2
    return (left_of(a, b) or left_of(b, a)) and abs(a.y - b.y) < 0.7 and gap < width * 2 / 3


def between(a: Thing, b: Thing, c: Thing) -> bool:
    """`b` is left of `a`, `a` left of `c`, and all are about as far away."""
    depths = (a.y, b.y, c.y)
    return left_of(b, a) and left_of(a, c) and max(depths) - min(depths) < 1.2


RELATIONS = {
    "left": left_of,
    "right": lambda a, b: left_of(b, a),
    "behind": behind,
    "before": lambda a, b: behind(b, a),
    "beside": beside,
}
