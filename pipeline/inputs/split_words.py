"""Which split of a dataset a word, the name of a file, or the fields beside its photos tell."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "restval": "train",  # Karpathy's name for the COCO val images that everyone trains on
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "dev": "dev",
    "test": "test",
    "testing": "test",
    "testall": "test",  # the original code's name for COCO's 5K test images
}
SPLIT_NAMES = ("split", "splits", "set", "subset", "partition", "fold")  # of a field; the first that is there
MISSING = (  # what programs write where there is no value, in lower case: \N is of databases, #NAME? of spreadsheets
    *("", "nan", "nat", "null", "(null)", "<null>", "none", "n/a", "#n/a", "na", "<na>", "undefined", r"\n"),
    *("#name?", "#ref!", "#value!"),
)
NOTHING = {*MISSING, "-"}  # cells that tell no split
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f", "")
ORDINARY = {  # fields of published datasets that everybody knows to tell no split
    *("id", "imgid", "sentids", "cocoid", "tokens", "width", "height", "original_width", "original_height", "license"),
    *("url", "coco_url", "flickr_url", "date_captured", "key", "__key__", "status", "error_message", "exif", "sha256"),
}
Cells = list[str] | None  # of a field, one for each photo; None: it cannot tell splits


def split_of_word(word: str) -> str:
    """The split that a word means, such as "val2014", COCO's; "" where it is none."""
    return SPLIT_WORDS.get(re.sub(r"20\d\d$", "", word.strip().lower()), "")


def split_of_name(name: str) -> str:
    """The one split that a file or folder name tells, or "": "train2014" -> "train", "flickr8k_dev" -> "dev", "train-dev" -> ""."""
    found = {SPLIT_WORDS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else ""


def cells_of(records: Sequence[Mapping[str, Any]], is_other: Callable[[str], bool]) -> dict[str, Cells]:
    """The cells of the fields of some photos, but those that are ordinary or something else."""
    names = dict.fromkeys(name for record in records for name in record)
    return {
        name: _cells(name, [record.get(name) for record in records])
        for name in names
        if not (name.lower() in ORDINARY or is_other(name))
    }


def _cells(name: str, values: Sequence[Any]) -> Cells:
    if not all(value is None or isinstance(value, str | int | float) for value in values):
        return None
    cells = ["" if value is None or value != value else str(value).strip() for value in values]  # nan is pandas'
    may = (
        not any(cells)
        or name.strip().lower() in SPLIT_NAMES
        or _flag(name) in SPLIT_WORDS
        or all(map(split_of_word, cells))
    )
    return cells if may else None


def splits_told(cells: Mapping[str, Cells], count: int) -> tuple[list[str], list[str]]:
    """The split of each of `count` photos by the fields beside them, "" where these tell none; and the fields that are not read.

    A field tells them that is called split; or set or the like, and holds a word for a split; or that holds nothing else,
    as everybody may call it, where it holds two splits or more: of one class, a part of a dataset may hold trains, the vehicles.
    Else fields of yes and no do: is_train, or several of train, val and test.
    """
    known = {
        name: ["" if cell.lower() in NOTHING else cell for cell in column]
        for name, column in cells.items()
        if column is not None
    }
    name = _field(known)
    flags = [] if name is not None else _flags(known)
    unread = [one for one, column in cells.items() if one not in (name, *flags) and (column is None or any(column))]
    if name is not None:
        return known[name], unread
    return [_flagged({flag: known[flag][row] for flag in flags}) for row in range(count)], unread


def _field(cells: Mapping[str, Sequence[str]]) -> str | None:
    """The field of words that tells the splits."""
    named = {name.strip().lower(): name for name in reversed(list(cells))}
    for word in SPLIT_NAMES:
        name = named.get(word)
        column = () if name is None else cells[name]
        if any(column if word == "split" else map(split_of_word, column)):
            return name
    for name, column in cells.items():
        found = set(map(split_of_word, column))
        if len(found) > 1 and "" not in found:
            return name
    return None


def _flags(cells: Mapping[str, Sequence[str]]) -> list[str]:
    """The fields of yes and no that tell splits; of is_train and train, the second is what is in the photo."""
    named = [name for name in cells if _flag(name) in SPLIT_WORDS]
    found = [name for name in named if name.strip().lower().startswith("is")] or (named if len(named) > 1 else [])
    return found if {cell.strip().lower() for name in found for cell in cells[name]} <= {*YES, *NO} else []


def _flagged(cells: Mapping[str, str]) -> str:
    """The split of a photo by its fields of yes and no: those that say yes; "not train" where none does and that of train says no."""
    told = [(SPLIT_WORDS[_flag(name)], cell.strip().lower()) for name, cell in cells.items()]
    found = dict.fromkeys(
        split for split, cell in told if cell in YES
    )  # of test and testall, train and restval, one says it
    return " and ".join(found) or ("not train" if any(split == "train" and cell for split, cell in told) else "")


def _flag(name: str) -> str:
    """What a field of yes and no says something of: is_train, isTrain, train."""
    return re.sub(r"^is[_ ]?", "", name.strip().lower())
