"""What people call the things of the world, as they write it in captions and annotations."""

from pipeline.demo.scenes import PAINTS

NAMES = {  # of a kind; the first is the class
    "ball": ("ball", "beach ball"),
    "car": ("car", "toy car"),
    "cone": ("cone", "traffic cone"),
    "donut": ("donut", "doughnut"),
    "duck": ("duck", "rubber duck"),
    "heart": ("heart",),
    "house": ("house", "cottage"),
    "mug": ("mug", "cup", "coffee mug"),
    "mushroom": ("mushroom", "toadstool"),
    "star": ("star",),
}
COLOR_NAMES = {color: (color,) for color in PAINTS} | {"purple": ("purple", "violet")}
SIZE_NAMES = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
SHINY_NAMES = ("shiny", "glossy")

LOOKS = {"ball": "striped", "cone": "striped", "donut": "frosted", "mushroom": "spotted"}  # where not all white
TOYS = ("toys", "things", "objects")
COUNTS = {2: ("two", "a pair of"), 3: ("three",), 4: ("four",), 5: ("five",)}
OPENINGS = ("a photo of", "a picture of", "there is", "there's", "here is", "this is", "you can see", "we see")
RELATION_PHRASES = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "behind": ("behind", "in back of"),
    "before": ("in front of", "before"),
    "beside": ("next to", "beside", "near"),
}
SETTING_PHRASES = {  # by backdrop and time
    ("hills", "day"): ("under a blue sky", "with hills in the background", "outdoors"),
    ("hills", "sunset"): ("at sunset", "in the evening", "under an orange sky"),
    ("hills", "night"): ("at night", "under the stars", "under a dark sky"),
    ("sea", "day"): ("by the sea", "with the sea in the background", "under a blue sky"),
    ("sea", "sunset"): ("by the sea at sunset", "at sunset", "in the evening"),
    ("plaster", "day"): ("in a room", "near a plain wall", "indoors"),
    ("brick", "day"): ("in front of a brick wall", "near a brick wall", "by a wall of bricks"),
}

STUFF_NAMES = {  # of what is no thing: ground and backdrop; the first is the class
    "carpet": ("carpet", "rug"),
    "floor": ("floor", "ground"),
    "grass": ("grass", "lawn"),
    "pavement": ("pavement", "cobblestones", "street"),
    "sand": ("sand", "beach"),
    "sea": ("sea", "ocean", "water"),
    "sky": ("sky",),
    "snow": ("snow",),
    "wall": ("wall",),
}
GROUNDS = {  # class; what it is like, or ""; where things on it are
    "grass": ("grass", "", ("on the grass", "on a lawn", "in a meadow", "on green grass")),
    "sand": ("sand", "", ("on the sand", "on the beach", "on a sandy beach")),
    "snow": ("snow", "", ("in the snow", "on snowy ground", "on the snow")),
    "wood": ("floor", "wooden", ("on a wooden floor", "on the wooden floor", "on wooden boards")),
    "tiles": ("floor", "tiled", ("on a tiled floor", "on the tiles", "on kitchen tiles")),
    "carpet": ("carpet", "patterned", ("on a carpet", "on the rug", "on a patterned rug")),
    "cobbles": ("pavement", "stone", ("on the cobblestones", "on a stone pavement", "in the street")),
}
STUFF_ATTRIBUTES = ("brick", "dark", "patterned", "plain", "stone", "tiled", "wooden")


def plural(name: str) -> str:
    """ "beach ball" -> "beach balls"."""
    return name + "s"
