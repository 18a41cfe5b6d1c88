"""Tables of images and captions: CSV, TSV, Flickr's token files and Flickr30k's results.csv.

A header names the columns. Without one a line is image, caption, or image, number, caption where every line is so; only
there may a caption hold delimiters without quotes. What can be read in two ways is refused, with its line.
"""

import ast
import csv
import io
import os
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.inputs.split_words import NOTHING as TELLS_NOTHING
from pipeline.inputs.split_words import Cells, split_of_word, splits_told
from pipeline.inputs.storage import SUFFIXES

DELIMITERS = ("\t", "|", ";", ",")
IMAGE_WORDS = (  # the first that is there: a file's name says more than the number of an image
    *("file_name", "filename", "image_name", "image_path", "filepath", "file"),
    *("image", "images", "img", "image_id"),
)
NAME_WORDS = ("path", "name", "photo", "")  # of a column that names files where the images' has numbers
CAPTION_WORDS = ("caption", "captions", "sentence", "comment", "text", "description", "raw")  # the first that is there
NUMBER = "comment_number"  # Flickr30k's
SUFFIX = rf"(?:{'|'.join(map(re.escape, sorted(SUFFIXES, key=len, reverse=True)))})(?:#\d+)?"
IMAGE_NAME = rf"\s*(?:\"[^\"]+{SUFFIX}\"|\"?[^\t|;,\"]+{SUFFIX}\"?)\s*"  # within quotes with any delimiters
NUMBERED = r"\s*\"?[^\s\"]*\d[^\s\"]*\"?\s*"  # images without a suffix: 391895, IMG_17
OBJECT = (  # [{'raw': 'A dog'}], ('A dog', 'A cat'), ['A dog' ... 'A cat'], which NumPy cut
    r"\[?\{\s*['\"].*\}\]?|\(['\"].*['\"],?\)|\[['\"].*['\"],?\s+\.\.\.,?\s+['\"].*\]"
)
ITEM = r"\s*(?:[-*+\u2022]\s|\d+\s*[,;|.):])"  # of a list or a table without images: "- a dog", "1. a dog", "1,a dog"
LONGEST_FIELD = 1 << 31  # characters
NOTHING = {"None", "null", "nan", "NaN"}  # in a list, in place of a caption
SHOWN = 60  # characters of a line in a message
Record = tuple[int, list[str]]  # line number from 1, fields


@dataclass(frozen=True)
class TableRow:
    """One row."""

    image: str
    captions: tuple[str, ...]
    split: str = ""  # as the table has it
    number: str = ""  # of the caption among its image's, where the table has it


@dataclass(frozen=True)
class _Layout:
    """Which delimiter and which columns a table has."""

    delimiter: str
    header: bool
    columns: int
    image: int
    captions: tuple[int, ...]
    folder: int | None = None  # of the image, as in tables made of Karpathy's files
    number: int | None = None  # of the caption


def read_table(path: Path, text: str, skipped: Counter[str]) -> Iterator[TableRow]:
    """The rows of a table, blank ones left out; `path` is named in errors.

    `skipped` takes the columns that are not read, of which nobody knows what they would have changed.

    Raises:
        PipelineError: a line that is no row, or that can be read in two ways.
    """
    text = text.replace("\r\n", "\n")
    lines = text.replace("\r", " " if "\n" in text else "\n").split("\n")  # a caption may hold other line separators
    first = next((line for line in lines if line.strip()), "")
    layout, splits = _layout(path, first), [""]
    records = [(n, fields) for n, fields in _records(path, lines, layout) if any(field.strip() for field in fields)]
    if layout.header:
        (_, header), *records = records
        if not any(_columns_of(word, [_word(header[layout.captions[0]])]) for word in CAPTION_WORDS):
            skipped[f"line, taken for a header: {str(header)[:SHOWN]}"] = 1
        if len(layout.captions) == 1:
            layout = replace(layout, number=next((n for n, name in enumerate(header) if _word(name) == NUMBER), None))
        layout = _with_names(header, records, layout)
        splits = _splits(path, header, records, layout, skipped)
    elif records and all(len(fields) > 2 for _, fields in records):
        if not all(fields[1].strip().isdecimal() for _, fields in records):
            raise PipelineError(
                f"{path}: every line has more than two columns, such as {str(records[0][1])[:SHOWN]}, and no header "
                "says what they are",
                "begin the file with a header, such as image,caption or image,caption,split",
            )
        layout = replace(layout, columns=3, captions=(2,), number=1)
    for (number, fields), split in zip(records, cycle(splits)):
        yield _row(path, number, lines[number - 1], fields, layout, split)


def _column(records: list[Record], column: int) -> list[str]:
    return ["".join(fields[column : column + 1]).strip() for _, fields in records]


def _are_numbers(cells: list[str]) -> bool:
    return all(map(str.isdecimal, cells))


def _with_names(header: list[str], records: list[Record], layout: _Layout) -> _Layout:
    """The layout with the one column of files' names as its images, where it has numbers for these: image,path,caption."""
    name = re.compile(rf"(?!.*://).*{SUFFIX}", re.IGNORECASE | re.DOTALL)
    named = [
        column
        for column, title in enumerate(header)
        if _word(title) in NAME_WORDS and all(map(name.fullmatch, _column(records, column)))
    ]
    is_plain = layout.folder is None and len(named) == 1 and records
    return replace(layout, image=named[0]) if is_plain and _are_numbers(_column(records, layout.image)) else layout


def _splits(path: Path, header: list[str], records: list[Record], layout: _Layout, skipped: Counter[str]) -> list[str]:
    """The split of each row. `skipped` takes the columns that are not read.

    Raises:
        PipelineError: columns of one name that is read, as of tables that were joined side by side, which differ.
    """
    columns_of: dict[str, list[int]] = {}
    for column, name in enumerate(header):
        if column not in layout.captions:
            columns_of.setdefault(_word(name) or f"column {column + 1}", []).append(column)
    cells = {word: [_column(records, column) for column in columns] for word, columns in columns_of.items()}
    used = {
        word
        for word, columns in columns_of.items()
        if {layout.image, layout.folder, layout.number}.intersection(columns)
    }
    # What one column of a name leaves empty another one may say
    fields: dict[str, Cells] = {
        header[columns_of[word][0]].strip() or word: [next(filter(_says, row), "") for row in zip(*twins, strict=True)]
        for word, twins in cells.items()
        if word not in used
    }
    splits, others = splits_told(fields, len(records))
    for word in set(cells).difference(map(_word, others), others):
        _refuse_differing(path, word, cells[word], is_whole=word in used)
    # pandas writes the numbers of the rows before them, without a name
    numbers = {
        word for word, (first, *_) in columns_of.items() if not header[first].strip() and _are_numbers(cells[word][0])
    }
    if unread := [title for title in others if title not in numbers]:
        skipped[f"columns: {', '.join(unread)}"] = len(unread)
    return splits


def _refuse_differing(path: Path, word: str, columns: list[list[str]], *, is_whole: bool) -> None:
    """`is_whole`: one of them is read alone, and may leave nothing to another one."""
    for row in zip(*columns, strict=True) if len(columns) > 1 else ():
        said = set(row) if is_whole else {split_of_word(cell) or cell.lower() for cell in filter(_says, row)}
        if len(said) > 1:
            raise PipelineError(
                f"{path}: {len(columns)} columns are called {word}, and differ: {' and '.join(row)[:SHOWN]}",
                "leave one of them",
            )


def _says(cell: str) -> bool:
    """Whether a cell holds something."""
    return cell.lower() not in TELLS_NOTHING


def is_table(text: str) -> bool:
    """Whether text begins as a table of images does, has tabs, which no sentence has, or numbers or dashes before every line."""
    first, *others = [line for line in text.splitlines() if line.strip()] or [""]
    if all(re.match(ITEM, line) for line in others or [first]):  # the first may be a header
        return True
    named = re.match(IMAGE_NAME + r"[|;,]", first, re.IGNORECASE)
    with suppress(PipelineError):  # a header, of other columns
        return "\t" in text or named is not None or _layout(Path(), first).header
    return True


def _layout(path: Path, first: str) -> _Layout:
    """The layout that the header states, else the one of a row."""
    csv.field_size_limit(LONGEST_FIELD)  # of the process: every reader of CSV sets its own
    for delimiter in DELIMITERS:
        names = [_word(name) for name in next(csv.reader([first], delimiter=delimiter))]
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
        folder = names.index("filepath") if "filepath" in names and names[image] in ("filename", "file_name") else None
        return _Layout(delimiter, True, len(names), image, captions, folder)
    named = (mark for mark in DELIMITERS if re.match(IMAGE_NAME + re.escape(mark), first, re.IGNORECASE))
    return _Layout("\t" if "\t" in first else next(named, ","), False, 2, 0, (1,))


def _word(name: str) -> str:
    """What a header calls a column, as we spell it."""
    return name.strip().strip('"').lower().replace(" ", "_")


def _columns_of(word: str, names: list[str]) -> tuple[int, ...]:
    """The columns of a word and of its numbers: caption, caption_2, … are captions of one photo."""
    return tuple(index for index, name in enumerate(names) if re.fullmatch(rf"{word}(?:_?\d+)?", name))


def _records(path: Path, lines: list[str], layout: _Layout) -> Iterator[Record]:
    """Every record. Quotes are CSV's where they can be read so, else plain characters."""
    form = _as_csv(lines, layout)
    if form is None and layout.delimiter == "\t" and not layout.header:  # a token file of Flickr's
        yield from ((number, line.split("\t")) for number, line in enumerate(lines, start=1))
        return
    lines = form or lines
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


def _as_csv(lines: list[str], layout: _Layout) -> list[str] | None:
    """The lines of a table with the quotes of CSV: the first form in which all can be read; None where there is none.

    Before a quote some write a blank, and Spark writes a backslash before one within quotes.
    """
    if not any('"' in line for line in lines):
        return lines
    mark = re.escape(layout.delimiter)
    blank = rf'(?<={mark}) +"(?!"[^"{mark}])'  # not before "" within quotes
    moved = [re.sub(blank, '"', line) for line in lines] if layout.delimiter in (";", ",") else lines
    expected = [{layout.columns}] if layout.header else [{2}, {3}]
    for form, is_any in ((moved, moved == lines), (lines, True)):  # else `x.jpg,he said, "no"` has a third column
        for spelled in (form, [re.sub(r'\\(["\\])', _spelled, line) for line in form]):
            counts = _counts(spelled, layout)
            if counts and (is_any or counts - {0} in expected):
                return spelled
    return None


def _spelled(escaped: re.Match[str]) -> str:
    return '""' if escaped[1] == '"' else escaped[1]


def _counts(lines: list[str], layout: _Layout) -> set[int]:
    """The numbers of fields that the lines of a table have; none where its quotes are not CSV's."""
    reader = csv.reader((line + "\n" for line in lines), delimiter=layout.delimiter, strict=True)
    counts, before = set(), 0
    try:
        for fields in reader:
            _check_lines(Path(), lines, before, reader.line_num, layout)
            before = reader.line_num
            counts.add(len(fields))
    except (csv.Error, PipelineError):
        return set()
    return counts


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


def _row(path: Path, number: int, line: str, fields: list[str], layout: _Layout, split: str) -> TableRow:
    columns, caption = layout.columns, layout.captions[0]
    # Delimiters of a caption without quotes; a tab is in none, so what it separates is something else
    if len(fields) > columns and caption == columns - 1 and layout.delimiter != "\t":
        if f'{layout.delimiter}"' in line:
            raise PipelineError(
                f"{path}: line {number} is {line[:SHOWN]!r}: quoted and unquoted text side by side; expected {columns} columns",
                "quote the full caption and double the quotes in it",
            )
        fields = [*fields[:caption], layout.delimiter.join(fields[caption:])]
    if len(fields) == columns - 1 == 2 and (pair := re.fullmatch(r"\s*(\d+)\s+(\S.*)", fields[1])):
        fields = [fields[0], *pair.groups()]  # Flickr30k's results.csv lacks a delimiter in one row
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
    captions = tuple(text for column in layout.captions for text in listed(fields[column].strip()))
    image, folder = fields[layout.image].strip(), "" if layout.folder is None else fields[layout.folder].strip()
    if folder and not f"/{folder}".endswith(f"/{image}"):  # and not the file's full path
        image = os.path.join(folder.replace("\\", "/"), image)
    return TableRow(image, captions, split, "" if layout.number is None else fields[layout.number].strip())


def listed(field: str) -> list[str]:
    """The captions of a field: pandas writes a list of them as ['A dog', 'A cat'], and an array without the commas."""
    if field == "[]":
        return [""]  # an empty caption, which is counted
    if field.startswith(("['", '["')) and field.endswith("]"):
        with suppress(ValueError, SyntaxError, MemoryError, tokenize.TokenError):  # then it is one caption
            tokens = list(tokenize.generate_tokens(io.StringIO(field).readline))
            found = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
            others = {token.string.strip() for token in tokens if token.type != tokenize.STRING}
            if others <= {"[", "]", ",", "", *NOTHING} and all(isinstance(text, str) for text in found):
                return found + [""] * bool(others & NOTHING)
    return [field]
