"""Bottom-up attention TSV files: Caffe's six columns, or LXMERT's ten. Arrays are base64 of their bytes.

    image_id  image_w  image_h  num_boxes  boxes  features
    img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf  num_boxes  boxes  features

No header; lines end in CR LF, as Python's csv module has written the published files. Boxes, features and confidences are
float32, ids int64. An image id that holds a tab, a line end or a quote is quoted as csv does it: any id comes back as
it was. Sources: `tools/generate_tsv.py` of Anderson et al.'s bottom-up-attention; LXMERT's data preparation.
"""

import base64
import csv
from collections.abc import Iterator
from io import StringIO
from itertools import chain
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.interchange import common
from pipeline.store.reader import Store

CAFFE_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = ("img_id", "img_h", "img_w", *(theirs for theirs, _, _ in common.CLASS_COLUMNS), *CAFFE_COLUMNS[3:])
LARGE = 1e9
UNLIKELY = 0.05  # of float16 or float64 read as float32, a larger share of the numbers is beyond 1 / LARGE to LARGE
MAX_LINE = 1 << 27  # bytes; 100 regions of 2048 numbers are 1.1 million


def read(source: Path, config: common.ImportFeaturesConfig) -> common.Source:
    """Open a TSV of six or ten columns.

    Raises:
        PipelineError: empty. Its rows raise it for other columns and for cells that do not fit each other.
    """
    rows = _rows(source, config.images)
    first = next(rows, None)
    if first is None:
        raise PipelineError(f"{source}: empty; expected rows of bottom-up attention features")
    with source.open("rb") as file:  # rows of one K are of nearly the same length: enough for a bar
        total = round(source.stat().st_size / len(file.readline(MAX_LINE)))
    return common.Source("bottom-up attention TSV", source.stem, chain([first], rows), total)


def write(store: Store, target: Path, config: common.ExportFeaturesConfig) -> list[str]:
    """A store -> a TSV of Caffe's six columns, or of LXMERT's ten.

    Raises:
        PipelineError: a store without boxes; for LXMERT's, without objects and attributes.
    """
    if config.format == "tsv10" and not store.object_names:
        raise PipelineError(f"{store.path}: has no objects and attributes, which {target} needs", "choose --format tsv")
    if not store.has_boxes:
        raise PipelineError(
            f"{store.path}: has no boxes, which {target} needs",
            "choose --format original, npz or hdf5, or import it again with --boxes",
        )
    columns = LXMERT_COLUMNS if config.format == "tsv10" else CAFFE_COLUMNS
    with replacing(target) as file:
        for image_id, arrays in common.published_rows(store, "features", "boxes"):
            cells = _cells(image_id, arrays)
            file.write(b"\t".join(cells[name] for name in columns) + b"\r\n")
    return []


def _rows(path: Path, images: str) -> Iterator[common.Row]:
    for number, cells in _records(path):
        columns = {6: CAFFE_COLUMNS, 10: LXMERT_COLUMNS}.get(len(cells))
        where = f"{path}: line {number}"
        if columns is None:
            raise PipelineError(f"{where} has {len(cells)} columns; expected 6 (Caffe) or 10 (LXMERT)")
        try:
            yield _row(where, dict(zip(columns, cells, strict=True)), images)
        except PipelineError:
            raise
        except ValueError as error:  # base64, integers, lengths
            raise PipelineError(f"{where} is damaged ({error})") from error


def _records(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Number of the last line, and cells, of every record.

    csv looks at every character, of which a row has 400,000; only a line with a quote in it needs that.
    """
    csv.field_size_limit(MAX_LINE)
    number = 0

    def lines() -> Iterator[bytes]:
        nonlocal number
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise PipelineError(
                    f"{path}: line {number} is longer than {MAX_LINE:,} bytes; expected rows of features"
                )
            yield line

    with path.open("rb") as file:
        rest = lines()
        for line in rest:
            if not line.strip():
                continue
            if b'"' not in line:
                yield number, line.rstrip(b"\r\n").split(b"\t")
                continue
            try:
                cells = next(csv.reader(map(common.id_from_bytes, chain([line], rest)), delimiter="\t"))
            except csv.Error as error:
                raise PipelineError(f"{path}: line {number} is damaged ({error})") from error
            yield number, [common.id_to_bytes(cell) for cell in cells]


def _row(where: str, cells: dict[str, bytes], images: str) -> common.Row:
    caffe = "image_id" in cells
    count = int(cells["num_boxes"])
    size = (int(cells["image_h" if caffe else "img_h"]), int(cells["image_w" if caffe else "img_w"]))
    name = common.id_from_bytes(cells["image_id" if caffe else "img_id"])
    arrays = {column: _decode(cells[column], np.float32, count) for column in ("features", "boxes")}
    sizes = np.abs(arrays["features"])
    sizes = sizes[(sizes > 0) & (sizes < np.inf)]
    if len(sizes) and np.mean((sizes < 1 / LARGE) | (sizes > LARGE)) > UNLIKELY:
        raise ValueError("features that are no float32; expected base64 of float32")
    if not caffe:
        arrays |= {ours: _decode(cells[theirs], dtype, count, 1)[:, 0] for theirs, ours, dtype in common.CLASS_COLUMNS}
    return common.make_row(f"{where} ({name!r})", name, arrays, images, size=size)


def _decode(cell: bytes, dtype: type, count: int, numbers: int = -1) -> np.ndarray:
    """(count, numbers), -1: any; ValueError where the cell holds no such array, as of numbers of twice the size."""
    return np.frombuffer(base64.b64decode(cell, validate=True), dtype=dtype).reshape(count, numbers)


def _cells(image_id: str, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The cells of both layouts."""
    cells = {name: base64.b64encode(array.tobytes()) for name, array in arrays.items()}
    cells["image_id"] = cells["img_id"] = _quoted(image_id)
    cells["num_boxes"] = b"%d" % len(arrays["boxes"])
    for side in "hw":
        cells[f"image_{side}"] = cells[f"img_{side}"] = b"%d" % arrays[f"image_{side}"]
    return cells


def _quoted(image_id: str) -> bytes:
    """As csv writes it: in quotes where it has to be."""
    line = StringIO(newline="")
    csv.writer(line, delimiter="\t").writerow([image_id, ""])
    return common.id_to_bytes(line.getvalue().removesuffix("\t\r\n"))
