"""Datasets as people have them, drawn at random: photos in folders, their captions and splits in files or in containers.

What is true of each photo is drawn first; what writes it down shares nothing with the readers that are tested.
"""

import csv
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

SPLITS = ("train", "dev", "test")
OTHER = "holdout"  # a split that training does not know; "" is none
SPELLED = {
    "train": ("train", "Train", "TRAIN", "training", "train2014", " train", "restval", "tr", "0"),
    "dev": ("val", "valid", "validation", "dev", "Val", "val2017", "eval", "development", "1"),
    "test": ("test", "Test", "testing", "test2015", "testall", "test-set", "2"),
    OTHER: ("holdout", "extra", "unlabeled", "train-dev", "excluded from train"),
    "": ("",),
}
SPLIT_COLUMNS = ("split", "Split", "SPLIT", "set", "subset", "partition", "fold", "usage", "data_split", "phase", "dataset")  # fmt: skip
FLAGS = (
    {"is_train": "train"}, {"is_training": "train"}, {"isTrain": "train"}, {"in_train": "train"}, {"for_training": "train"},
    {"is_test": "test"}, {"train": "train", "test": "test"}, {"is_train": "train", "is_test": "test"},
    {"is_train": "train", "is_val": "dev", "is_test": "test"}, {"train": "train", "val": "dev", "test": "test"},
)  # fmt: skip
YES_NO = ((1, 0), (True, False), ("yes", "no"), ("1", "0"), (1.0, 0.0), ("Y", "N"), ("x", ""), ("True", "False"))
FIELDS = {  # that tell no split
    "kind": ("train", "car", "dog"), "likes": (3, 1, 0), "set": ("indoor", "outdoor"), "label": (0, 1), "source": ("coco", "flickr"),
    "train": (0, 1), "fold": (0, 1, 2), "width": (640, 480), "license": (1, 2),
}  # fmt: skip
STEMS = (
    "1", "2", "3", "10", "IMG_0001", "IMG_0002", "COCO_val2014_000000391895", "COCO_train2014_000000000009", "000000000139",
    "café", "a b", "a,b", "a", "A", "dog#1", "dog#2", "x;y", "frame.001", "frame.002",
    "train", "Zoë's dog", "42_abc", "b.jpg", "IMG 5 (1)", "01", "50%", "caption", "dog#0", 'a "b" c', "a::b", "image", "12+3",
)  # fmt: skip
SUFFIXES = (".jpg", ".jpg", ".jpg", ".JPG", ".jpeg", ".png")
TEXTS = (
    "a dog", "A dog, running.", "Two dogs; a cat", 'A sign says "stop".', "It's a train", "un chien à la plage", "a man | a dog",
    "A dog\nruns", 'He said: "no', "a\ttab", "a dog;", "- a dog", "A dog,", "'a' dog", "train", "1", "a dog #2", "[a sign]", "test", "a 'big' dog", "photo.jpg of a dog",
)  # fmt: skip
FOLDERS = {  # in which a photo may be, by its split
    "flat": {},
    "splits": {"train": ("train/",), "dev": ("val/",), "test": ("test/",), OTHER: ("extra/",), "": ("extra/",)},
    "coco": {"train": ("train2014/",), "dev": ("val2014/",), "test": ("test2014/",), OTHER: ("unlabeled/",), "": ("new/",)},
    "years": dict.fromkeys((*SPLITS, OTHER, ""), ("2019/", "2020/", "", "2020/summer/")),
    "people": dict.fromkeys((*SPLITS, OTHER, ""), ("anna/photos/", "ben/photos/")),
    "classes": dict.fromkeys((*SPLITS, OTHER, ""), ("dog/", "cat/", "train/")),
}  # fmt: skip


FILE_OF_SPLIT = {"train": "train", "dev": "validation", "test": "test", OTHER: "extra", "": "unlabeled"}


@dataclass(frozen=True)
class Photo:
    """What is true of a photo."""

    path: str  # below the folder of the data
    split: str
    captions: tuple[str, ...]
    state: str = "here"  # or "gone", or "failed": it cannot be read

    @property
    def content(self) -> bytes:
        """What stands in its file."""
        return self.path.encode()


@dataclass(frozen=True)
class Beside:
    """What stands beside a photo, the split that it lets know, and the word for that."""

    cells: Mapping[str, Any]
    known: str = ""
    word: str = ""


@dataclass(frozen=True)
class Fields:
    """What stands beside each photo, by its path, and which fields of it tell the splits."""

    beside: Mapping[str, Beside]
    columns: Sequence[str] = ()


def is_in_its_folder(photo: Photo) -> bool:
    """Whether its first folder is called as its split."""
    return f"{photo.path.partition('/')[0]}/" in (*FOLDERS["splits"][photo.split], *FOLDERS["coco"][photo.split])


@st.composite
def photos(draw: st.DrawFn, layouts: Sequence[str] = tuple(FOLDERS)) -> list[Photo]:
    """Some photos, of which a few are gone or cannot be read."""
    some = draw(st.sampled_from([SPLITS, SPLITS[:2], SPLITS[::2], (*SPLITS, OTHER), (*SPLITS, ""), ("train", OTHER)]))
    splits = [*some, *draw(st.lists(st.sampled_from(some), min_size=1, max_size=5))]
    folders = FOLDERS[draw(st.sampled_from(layouts))]
    paths = [
        draw(st.sampled_from(folders.get(split, ("",))))
        + draw(st.sampled_from(STEMS))
        + draw(st.sampled_from(SUFFIXES))
        for split in splits
    ]
    if draw(st.booleans()):  # as Macs write them
        paths = [unicodedata.normalize("NFD", path) for path in paths]
    are_alike = draw(st.integers(0, 9)) == 0  # captions of several photos, else each tells its own
    found = {}
    for number, (path, split) in enumerate(zip(paths, splits, strict=True)):
        texts = draw(st.lists(st.sampled_from(TEXTS), min_size=number == 0, max_size=3))
        state = draw(st.sampled_from(["here"] * 8 + ["gone", "failed"])) if number else "here"
        own = texts if are_alike else [f"{text} {number}{mark}" for mark, text in zip("xyz", texts, strict=False)]
        found.setdefault(path, Photo(path, split, tuple(own), state))
    return list(found.values())


@st.composite
def words(draw: st.DrawFn, some: Sequence[Photo]) -> Fields:
    """A field of words, one for each split, or any of those that mean it."""
    name = draw(st.sampled_from(SPLIT_COLUMNS))
    word = {split: st.just(draw(st.sampled_from(spelled))) for split, spelled in SPELLED.items()}
    if draw(st.integers(0, 3)) == 0:
        word = {split: st.sampled_from(spelled) for split, spelled in SPELLED.items()}
    drawn = {one.path: draw(word[one.split]) for one in some}
    return Fields({one.path: Beside({name: drawn[one.path]}, one.split, drawn[one.path]) for one in some}, [name])


@st.composite
def flags(draw: st.DrawFn, some: Sequence[Photo]) -> Fields:
    """Fields of yes and no."""
    columns = draw(st.sampled_from(FLAGS))
    yes, no = draw(st.sampled_from(YES_NO))
    told = set(columns.values())
    rest = "not train" if "train" in told else ""
    beside = {
        one.path: Beside(
            {name: yes if split == one.split else no for name, split in columns.items()},
            one.split if one.split in told else rest,
        )
        for one in some
    }
    return Fields(beside, list(columns))


def no_fields(some: Sequence[Photo]) -> Fields:
    return Fields({one.path: Beside({}) for one in some})


def is_of_training(fields: Fields) -> bool:
    """Whether all photos are in training or kept from it, so that a file called train may hold them."""
    return bool(fields.columns) and all(one.known in ("train", OTHER, "not train") for one in fields.beside.values())


@st.composite
def fields(draw: st.DrawFn, some: Sequence[Photo]) -> Fields:
    """Fields that tell the splits, of most photos, or none; and some that tell none."""
    found = draw(st.one_of(words(some), words(some), flags(some), st.just(no_fields(some))))
    untold = (
        draw(st.sets(st.sampled_from(some), max_size=2)) if found.columns and draw(st.integers(0, 3)) == 0 else set()
    )
    names = [name for name in FIELDS if name not in found.columns]
    others = draw(st.lists(st.sampled_from(names), unique=True, max_size=2))
    beside = {}
    for number, one in enumerate(some):
        own = Beside(dict.fromkeys(found.columns)) if one in untold else found.beside[one.path]
        cells = {**own.cells, **{name: FIELDS[name][number % len(FIELDS[name])] for name in others}}
        beside[one.path] = replace(own, cells=cells)
    return Fields(beside, found.columns)


NOTHING = st.sampled_from([(), (), (), ("",), ("nan",), (" ",), ("NULL",)])

# How a captions file names a photo
NAMINGS = {
    "path": lambda path: path,
    "base": lambda path: path.rsplit("/", 1)[-1],
    "stem": lambda path: path.rsplit("/", 1)[-1].rpartition(".")[0],
    "below": lambda path: f"data/{path}",
    "here": lambda path: f"./{path}",
    "elsewhere": lambda path: f"/home/me/data/{path}",
    "windows": lambda path: path.replace("/", "\\"),
    "composed": lambda path: unicodedata.normalize("NFC", path),
    "without suffix": lambda path: path.rpartition(".")[0],
}


@st.composite
def names(draw: st.DrawFn, some: Sequence[Photo]) -> dict[str, str]:
    """What a captions file calls each of some photos, by its path; no two are called the same."""
    kinds = [kind for kind, name in NAMINGS.items() if len({name(one.path) for one in some}) == len(some)]
    kind = draw(st.sampled_from(kinds))
    return {one.path: NAMINGS[kind](one.path) for one in some}


@dataclass(frozen=True)
class Format:
    """How a captions file is written."""

    kind: str
    rows: str = "by photo"  # or "by turns", or "twice"
    has_ids: bool = True  # of images and captions
    delimiter: str = ","
    image: str = "image"
    caption: str = "caption"
    quoting: int = csv.QUOTE_MINIMAL
    end: str = "\n"
    encoding: str = "utf-8"
    is_reversed: bool = False  # of the columns
    quotes: str = "csv"  # or "spark", or "blanks" before each

    @property
    def has_fields(self) -> bool:
        return self.kind not in ("token", "results", "bare", "numbered")

    @property
    def suffix(self) -> str:
        return ".json" if self.kind in ("coco", "karpathy") else ".csv"


ROWS = st.sampled_from(["by photo", "by photo", "by turns", "twice"])
FORMATS = st.one_of(
    st.builds(Format, st.sampled_from(["coco", "karpathy", "token", "results"]), ROWS, st.booleans()),
    st.builds(
        Format,
        st.sampled_from(["table", "table", "table", "columns", "json list", "pandas list", "bare", "numbered"]),
        ROWS,
        st.booleans(),
        st.sampled_from(",,\t;|"),
        st.sampled_from(["image", "file_name", "filename", "Image Name", "img", "image_path"]),
        st.sampled_from(["caption", "captions", "Caption", "sentence", "text", "raw"]),
        st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]),
        st.booleans(),
        st.sampled_from(["csv", "csv", "spark", "blanks"]),
    ),
)


@dataclass(frozen=True)
class Entry:
    """What a captions file says of one photo."""

    number: int
    name: str
    photo: Photo
    cells: Mapping[str, Any]
    nothing: tuple[str, ...]  # where a caption is missing

    @property
    def texts(self) -> tuple[str, ...]:
        return self.nothing + self.photo.captions


@st.composite
def entries(draw: st.DrawFn, some: Sequence[Photo], beside: Mapping[str, Beside]) -> list[Entry]:
    """What a captions file says of some photos."""
    called = draw(names(some))
    return [
        Entry(number, called[one.path], one, beside[one.path].cells, draw(NOTHING)) for number, one in enumerate(some)
    ]


@st.composite
def files(draw: st.DrawFn, some: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Captions files by name: one, one for each split, or one and another that repeats it in part."""
    kind = draw(st.sampled_from(["one", "one", "one for each split", "two", "twice"]))
    if kind == "one for each split":
        found = {
            f"captions_{FILE_OF_SPLIT[split]}": [one for one in some if one.photo.split == split] for split in SPELLED
        }
        return {name: own for name, own in found.items() if any(one.photo.captions for one in own)}
    found = {"captions": list(some)}
    if kind == "twice":
        found["more"] = list(some)
    elif kind == "two":
        own = draw(st.lists(st.sampled_from(some), unique_by=id))
        found |= {"more": own} if any(one.photo.captions for one in own) else {}
    return found


def files_of_folders(some: Sequence[Entry], first: bool = False) -> dict[str, list[Entry]]:
    """A captions file in each folder of photos, which names those from there; `first`: beside each first folder, and named after it."""
    found: dict[str, list[Entry]] = {}
    for one in some:
        folder, _, base = one.photo.path.partition("/") if first else one.photo.path.rpartition("/")
        name = f"captions_{folder}" if first else f"{folder}/metadata"
        found.setdefault(name, []).append(replace(one, name=base))
    return {name: own for name, own in found.items() if any(one.photo.captions for one in own)}


def written(style: Format, entries: Sequence[Entry]) -> bytes:
    """A captions file."""
    if style.suffix == ".json":
        return json.dumps({"coco": _coco, "karpathy": _karpathy}[style.kind](style, entries)).encode()
    rows = list(_rows(style, entries))
    if style.rows == "by turns":
        rows = _by_turns(rows, style.image)
    rows *= 1 + (style.rows == "twice")
    if style.kind == "token":
        return "".join(
            f"{row[style.image]}#{row['number']}\t{in_one_line(row[style.caption])}\n" for row in rows
        ).encode()
    if style.kind == "results":
        lines = [f"{row[style.image]}| {row['number']}| {in_one_line(row[style.caption])}\n" for row in rows]
        return "".join(["image_name| comment_number| comment\n", *lines]).encode()
    text = io.StringIO()
    has_blanks = style.quotes == "blanks" and style.delimiter in ",;"
    quotes: dict[str, Any] = {"delimiter": style.delimiter, "quoting": style.quoting}
    if style.quotes == "spark" and not style.kind.endswith("list"):  # whose own backslashes it would double
        quotes |= {"escapechar": "\\", "doublequote": False, "quoting": csv.QUOTE_ALL}
    quotes |= {"delimiter": "\x1f", "quoting": csv.QUOTE_ALL} if has_blanks else {}
    writer = csv.writer(text, lineterminator=style.end, **quotes)
    has_header = style.kind not in ("bare", "numbered")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if has_header and style.is_reversed and style.kind != "columns":  # whose captions are in the order of their columns
        names.reverse()
    writer.writerows([names] if has_header else [])
    writer.writerows([row.get(name, "") for name in names] for row in rows)
    return text.getvalue().replace("\x1f", f"{style.delimiter} ").encode(style.encoding)


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def _by_turns(rows: Sequence[dict[str, Any]], image: str) -> list[dict[str, Any]]:
    """The first row of every image, the second of every image, …"""
    count = Counter[str]()
    turns = []
    for row in rows:
        turns.append(count[row[image]])
        count[row[image]] += 1
    return [rows[number] for number in sorted(range(len(rows)), key=turns.__getitem__)]


def _rows(style: Format, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        texts, image = entry.texts, {style.image: entry.name}
        if style.has_ids and style.has_fields:
            image = {"image_id": entry.number} | image
        if style.kind == "columns":
            yield image | {f"{style.caption}_{n}": text for n, text in enumerate(texts)} | entry.cells
        elif style.kind.endswith("list"):
            cell = json.dumps(texts) if style.kind == "json list" else str(list(texts))
            yield image | {style.caption: cell} | entry.cells
        elif style.kind == "bare":
            yield from (image | {style.caption: text} for text in texts)
        elif not style.has_fields:
            yield from (image | {"number": n, style.caption: text} for n, text in enumerate(texts))
        else:
            yield from (image | {style.caption: text} | entry.cells for text in texts)


def _coco(style: Format, entries: Sequence[Entry]) -> Any:
    count = 1 + (style.rows == "twice")
    texts = [(one.number, n, text) for one in entries for n, text in enumerate(one.texts)]
    if style.rows == "by turns":
        texts.sort(key=lambda one: one[1])
    return {
        "images": [{"id": one.number, "file_name": one.name, **one.cells} for one in entries] * count,
        "annotations": [{"id": 1000 * image + n, "image_id": image, "caption": text} for image, n, text in texts]
        * count,
    }


def _karpathy(style: Format, entries: Sequence[Entry]) -> Any:
    images = []
    for entry in entries:
        folder, _, base = entry.name.rpartition("/")
        sentences = [
            {"raw": text, "tokens": text.split()} | ({"sentid": 1000 * entry.number + n} if style.has_ids else {})
            for n, text in enumerate(entry.texts)
        ]
        ids = {"cocoid": entry.number} if style.has_ids else {}
        images.append({"filepath": folder, "filename": base, "sentences": sentences, **ids, **entry.cells})
    return {"images": images * (1 + (style.rows == "twice")), "dataset": "mine"}
