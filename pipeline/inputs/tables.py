"""Tables of images and captions: CSV, TSV, Flickr's token files and Flickr30k's results.csv.

A header names the columns. Without one a line is image, caption, or image, number, caption where every line is so; only
there may a caption hold delimiters without quotes. What can be read in two ways is refused, with its line.
"""

import ast
import csv
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.inputs.storage import SUFFIXES

DELIMITERS = ("\t", "|", ";", ",")
IMAGE_WORDS = (  # the first that is there: a file's name says more than the number of an image
    *("file_name", "filename", "image_name", "image_path", "filepath", "file"),
    *("image", "images", "img", "image_id"),
)
CAPTION_WORDS = ("caption", "captions", "sentence", "comment", "text", "description", "raw")  # the first that is there
IMAGE_NAME = rf"\s*\"?[^\t|;,\"]+(?:{'|'.join(map(re.escape, sorted(SUFFIXES, key=len, reverse=True)))})(?:#\d+)?\"?\s*"
NUMBERED = r"\s*\"?[^\s\"]*\d[^\s\"]*\"?\s*"  # images without a suffix: 391895, IMG_17
OBJECT = r"\[?\{\s*['\"].*\}\]?|\(['\"].*['\"],?\)"  # [{'raw': 'A dog'}], ('A dog', 'A cat')
UNREAD = "column "  # begins what is counted of columns that are not read
SPLIT_NAMES = ("split", "splits", "set", "subset", "partition", "fold")  # of a column; the first that is there
YES, NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f", "")
ITEM = r"\s*(?:[-*+\u2022]\s|\d+\s*[,;|.):])"  # of a list or a table without images: "- a dog", "1. a dog", "1,a dog"
LONGEST_FIELD = 1 << 31  # characters
SHOWN = 60  # characters of a line in a message
Record = tuple[int, list[str]]  # line number from 1, fields


@dataclass(frozen=True)
class TableRow:
    """One row."""

    image: str
    captions: tuple[str, ...]
    split: str = ""  # as the table has it


@dataclass(frozen=True)
class _Layout:
    """Which delimiter and which columns a table has."""

    delimiter: str
    header: bool
    columns: int
    image: int
    captions: tuple[int, ...]
    split: int | None = None
    folder: int | None = None  # of the image, as in tables made of Karpathy's files
    flags: dict[str, int] = field(default_factory=dict)  # columns of 0 and 1 that tell the split


def read_table(path: Path, text: str, split_words: Mapping[str, str], skipped: Counter[str]) -> Iterator[TableRow]:
    """The rows of a table, blank ones left out; `path` is named in errors. A column of `split_words` alone tells the splits.

    `skipped` takes the named columns that are not read, of which nobody knows what they would have changed.

    Raises:
        PipelineError: a line that is no row, or that can be read in two ways.
    """
    text = text.replace("\r\n", "\n")
    lines = text.replace("\r", " " if "\n" in text else "\n").split("\n")  # a caption may hold other line separators
    first = next((line for line in lines if line.strip()), "")
    layout = _layout(path, first)
    records = [(n, fields) for n, fields in _records(path, lines, layout) if any(field.strip() for field in fields)]
    if layout.header:
        (_, header), *records = records
        layout = _with_splits(layout, header, records, split_words)
        read = {layout.image, layout.split, layout.folder, *layout.captions, *layout.flags.values()}
        if unread := [name.strip() for column, name in enumerate(header) if name.strip() and column not in read]:
            skipped[f"columns: {', '.join(unread)}"] = len(unread)
    elif records and all(len(fields) > 2 for _, fields in records):
        if not all(fields[1].strip().isdecimal() for _, fields in records):
            raise PipelineError(
                f"{path}: every line has more than two columns, such as {str(records[0][1])[:SHOWN]}, and no header "
                "says what they are",
                "begin the file with a header, such as image,caption or image,caption,split",
            )
        layout = replace(layout, columns=3, captions=(2,))
    for number, fields in records:
        yield _row(path, number, lines[number - 1], fields, layout, split_words)


def is_table(text: str) -> bool:
    """Whether text begins as a table of images does, has tabs, which no sentence has, or numbers or dashes before every line."""
    first, *others = [line for line in text.splitlines() if line.strip()] or [""]
    if all(re.match(ITEM, line) for line in others or [first]):  # the first may be a header
        return True
    named = re.match(IMAGE_NAME + r"[|;,]", first, re.IGNORECASE)
    with suppress(PipelineError):  # a header, of other columns
        return "\t" in text or named is not None or _layout(Path(), first).header
    return True


def split_column(cells: Mapping[str, Sequence[str]], split_words: Mapping[str, str], least: int = 1) -> str | None:
    """The column that tells the splits, of some that hold neither images nor captions.

    It is called split; or set or the like, and holds a word for a split; or it holds nothing else, as everybody may call it.

    Args:
        cells: of each column.
        least: different splits that a column of any name has to hold.
    """
    named = {name.strip().lower(): name for name in reversed(list(cells))}
    for word in SPLIT_NAMES:
        name = named.get(word)
        known = () if name is None else cells[name]
        if any(known if word == "split" else (split_of_word(cell, split_words) for cell in known)):
            return name
    for name, column in cells.items():
        found = {split_of_word(cell, split_words) for cell in column}
        if len(found) >= least and "" not in found:
            return name
    return None


def split_flags(cells: Mapping[str, Sequence[str]], split_words: Mapping[str, str]) -> list[str]:
    """The columns of yes and no that tell splits: is_train, or several of train, val and test (one alone may be a vehicle)."""
    found = [name for name in cells if _flag(name) in split_words]
    all_told = {cell.strip().lower() for name in found for cell in cells[name]} <= {*YES, *NO}
    return found if all_told and (len(found) > 1 or any(map(_is_flag, found))) else []


def flagged(cells: Mapping[str, str], split_words: Mapping[str, str]) -> str:
    """The split of a row by its columns of yes and no: those that say yes; "not train" where none does and that of train says no."""
    told = {split_words[_flag(name)]: cell.strip().lower() for name, cell in cells.items()}
    found = [name for name, cell in told.items() if cell in YES]
    return " and ".join(found) or ("not train" if told.get("train") else "")


def splits_told(cells: Mapping[str, Sequence[str]], split_words: Mapping[str, str], skipped: Counter[str]) -> list[str]:
    """The split of each row of a part of a dataset, by its columns that hold neither images nor captions; "" where they tell none.

    `skipped` takes the columns that are not read and may tell splits, by their name or a word in them.
    """
    column = split_column(cells, split_words, least=2)  # of one class a part may hold nothing else: train, a vehicle
    flags = [] if column else split_flags(cells, split_words)
    for name in cells:
        may = tells_split(name, split_words) and any(cells[name])
        if name not in (column, *flags) and (may or any(split_of_word(one, split_words) for one in cells[name])):
            skipped[f"{UNREAD}{name}"] += 1
    if column:
        return list(cells[column])
    rows = zip(*(cells[name] for name in flags), strict=True)
    return [flagged(dict(zip(flags, row, strict=True)), split_words) for row in rows]


def split_of_word(word: str, split_words: Mapping[str, str]) -> str:
    """The split that a word means, such as "val2014", COCO's; "" where it is none."""
    return split_words.get(re.sub(r"20\d\d$", "", word.strip().lower()), "")


def tells_split(name: str, split_words: Mapping[str, str]) -> bool:
    """Whether a column or field of a name should tell splits."""
    return name.strip().lower() in SPLIT_NAMES or (_is_flag(name) and _flag(name) in split_words)


def _is_flag(name: str) -> bool:
    return name.strip().lower().startswith("is")


def _flag(name: str) -> str:
    """What a column of yes and no says something of: is_train, isTrain, train."""
    return re.sub(r"^is[_ ]?", "", name.strip().lower())


def _with_splits(
    layout: _Layout, header: Sequence[str], records: Sequence[Record], split_words: Mapping[str, str]
) -> _Layout:
    """The layout, with the columns that tell the splits."""
    if layout.split is not None:
        return layout
    own = {layout.image, layout.folder, *layout.captions}
    columns = {name: column for column, name in enumerate(header) if column not in own}
    cells = {name: ["".join(fields[column : column + 1]) for _, fields in records] for name, column in columns.items()}
    if name := split_column(cells, split_words):
        return replace(layout, split=columns[name])
    return replace(layout, flags={name: columns[name] for name in split_flags(cells, split_words)})


def _layout(path: Path, first: str) -> _Layout:
    """The layout that the header states, else the one of a row."""
    csv.field_size_limit(LONGEST_FIELD)  # of the process: every reader of CSV sets its own
    for delimiter in DELIMITERS:
        names = [
            name.strip().strip('"').lower().replace(" ", "_") for name in next(csv.reader([first], delimiter=delimiter))
        ]
        image = next((names.index(word) for word in IMAGE_WORDS if word in names), None)
        captions = next(filter(None, (_columns_of(word, names) for word in CAPTION_WORDS)), ())
        if image is None and captions and len(names) > 1 and not any("." in name for name in names):
            raise PipelineError(
                f"{path}: line 1 has the columns {', '.join(names)[:SHOWN]}; expected one of {', '.join(IMAGE_WORDS)}"
            )
        if image is None or len(names) < 2:
            continue
        if not captions and len(names) == 2 and image == 0 and names[1] != "split":
            captions = (1,)
        if not captions:
            raise PipelineError(
                f"{path}: line 1 has the columns {', '.join(names)[:SHOWN]}; expected one of {', '.join(CAPTION_WORDS)}"
            )
        split = names.index("split") if "split" in names else None
        folder = names.index("filepath") if "filepath" in names and names[image] in ("filename", "file_name") else None
        return _Layout(delimiter, True, len(names), image, captions, split, folder)
    named = (mark for mark in DELIMITERS if re.match(IMAGE_NAME + re.escape(mark), first, re.IGNORECASE))
    return _Layout("\t" if "\t" in first else next(named, ","), False, 2, 0, (1,))


def _columns_of(word: str, names: list[str]) -> tuple[int, ...]:
    """The columns of a word and of its numbers: caption, caption_2, … are captions of one photo."""
    return tuple(index for index, name in enumerate(names) if re.fullmatch(rf"{word}(?:_?\d+)?", name))


def _records(path: Path, lines: list[str], layout: _Layout) -> Iterator[Record]:
    """Every record. Quotes are CSV's where they can be read so, else plain characters."""
    if layout.delimiter == "\t" and not layout.header and not _is_quoted(lines, layout):
        yield from ((number, line.split("\t")) for number, line in enumerate(lines, start=1))
        return
    start = 0
    while start < len(lines):
        rest = (lines[number] + "\n" for number in range(start, len(lines)))
        reader = csv.reader(rest, delimiter=layout.delimiter, strict=True)
        before = 0
        try:
            for fields in reader:
                _check_lines(path, lines, start + before, start + reader.line_num, layout)
                yield start + before + 1, fields
                before = reader.line_num
            return
        except csv.Error as error:
            if reader.line_num - before > 1:
                raise PipelineError(
                    f"{path}: line {start + before + 1} opens a quote that is not closed as CSV closes it ({error})",
                    "quote the field properly, or separate image and caption by a tab",
                ) from error
            start += before  # one line whose quotes are not CSV's: they belong to the caption
            yield start + 1, lines[start].split(layout.delimiter)
            start += 1


def _is_quoted(lines: list[str], layout: _Layout) -> bool:
    """Whether the quotes of a table of tabs without header are CSV's. In Flickr's token files they are the captions'."""
    reader = csv.reader((line + "\n" for line in lines), delimiter=layout.delimiter, strict=True)
    try:
        before = 0
        for _ in reader:
            _check_lines(Path(), lines, before, reader.line_num, layout)
            before = reader.line_num
    except (csv.Error, PipelineError):
        return False
    return True


def _check_lines(path: Path, lines: list[str], start: int, end: int, layout: _Layout) -> None:
    """Refuse a quoted field over several lines of which one could be a row of its own, by the image it names."""
    is_first = layout.image < layout.captions[0]  # else the image of the record stands in its last line
    for number in range(start + is_first, end - (not is_first)):
        cells = lines[number].split(layout.delimiter)
        if len(cells) >= layout.columns and re.fullmatch(
            f"{IMAGE_NAME}|{NUMBERED}", cells[layout.image], re.IGNORECASE
        ):
            raise PipelineError(
                f"{path}: line {start + 1} opens a quote that goes on over line {number + 1}, which looks like a row",
                "close the quote in its line, or double quotes that belong to a caption",
            )


def _row(
    path: Path, number: int, line: str, fields: list[str], layout: _Layout, split_words: Mapping[str, str]
) -> TableRow:
    columns, caption = layout.columns, layout.captions[0]
    # Delimiters of a caption without quotes; a tab is in none, so what it separates is something else
    if len(fields) > columns and caption == columns - 1 and layout.delimiter != "\t":
        if f'{layout.delimiter}"' in line:
            raise PipelineError(
                f"{path}: line {number} is {line[:SHOWN]!r}: quoted and unquoted text side by side; expected {columns} columns",
                "quote the full caption and double the quotes in it",
            )
        fields = [*fields[:caption], layout.delimiter.join(fields[caption:])]
    if len(fields) == columns - 1 == 2 and (split := re.fullmatch(r"\s*(\d+)\s+(\S.*)", fields[1])):
        fields = [fields[0], *split.groups()]  # Flickr30k's results.csv lacks a delimiter in one row
    if len(fields) != columns or not fields[layout.image].strip():
        raise PipelineError(
            f"{path}: line {number} is {line[:SHOWN]!r}; expected "
            + (f"{columns} columns" if layout.header else "image<TAB>caption or image,caption")
        )
    for column in layout.captions:
        if re.fullmatch(OBJECT, fields[column].strip(), re.DOTALL):
            raise PipelineError(
                f"{path}: line {number} has the caption {fields[column].strip()[:SHOWN]!r}, which is an object of Python or JSON",
                "write the sentences alone",
            )
    split_name = flagged({name: fields[column] for name, column in layout.flags.items()}, split_words)
    split_name = split_name if layout.split is None else fields[layout.split].strip()
    captions = tuple(text for column in layout.captions for text in listed(fields[column].strip()))
    image, folder = fields[layout.image].strip(), "" if layout.folder is None else fields[layout.folder].strip()
    if folder and not f"/{folder}".endswith(f"/{image}"):  # and not the file's full path
        image = f"{folder}/{image}"
    return TableRow(image, captions, split_name)


def listed(field: str) -> list[str]:
    """The captions of a field: pandas writes a list of them as ['A dog', 'A cat'], and an array without the commas."""
    if field == "[]":
        return [""]  # an empty caption, which is counted
    if field.startswith(("['", '["')) and field.endswith("]"):
        with suppress(ValueError, SyntaxError, MemoryError, tokenize.TokenError):  # then it is one caption
            tokens = list(tokenize.generate_tokens(io.StringIO(field).readline))
            found = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
            others = {token.string.strip() for token in tokens if token.type != tokenize.STRING}
            if others <= {"[", "]", ",", ""} and all(isinstance(text, str) for text in found):
                return found
    return [field]
