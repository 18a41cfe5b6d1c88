"""What people call the things of the world, as they write it in captions and annotations."""

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
COLOR_NAMES = {
    "black": ("black",),
    "blue": ("blue",),
    "green": ("green",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "red": ("red",),
    "white": ("white",),
    "yellow": ("yellow",),
}
SIZE_NAMES = {"big": ("big", "large", "huge"), "small": ("small", "little", "tiny")}
SHINY_NAMES = ("shiny", "glossy")

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
STUFF_ATTRIBUTES = {
    "brick": ("brick", "bricks"),
    "dark": ("dark",),
    "patterned": ("patterned",),
    "plain": ("plain",),
    "stone": ("stone",),
    "tiled": ("tiled",),
    "wooden": ("wooden", "wood"),
}
GROUND_STUFF = {  # class, attribute
    "grass": ("grass", ""),
    "sand": ("sand", ""),
    "snow": ("snow", ""),
    "wood": ("floor", "wooden"),
    "tiles": ("floor", "tiled"),
    "carpet": ("carpet", "patterned"),
    "cobbles": ("pavement", "stone"),
}


def plural(name: str) -> str:
    """ "beach ball" -> "beach balls"."""
    return name + "s"
