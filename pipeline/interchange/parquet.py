"""One parquet file: a row an image, as `datasets`, pandas and clip-retrieval's readers take it.

    image_id            string (binary, where a file name is not UTF-8)
    image_h, image_w    int32; 0, 0: not known
    features            list of K lists of D float16 or float32
    boxes               list of K lists of 4 float32, XYXY; none where the store has none
    object_ids, object_scores, attribute_ids, attribute_scores      lists of K; none where the store has no classes

Letters: K regions, D feature dimensions.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import first_line
from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.inputs.containers import pyarrow
from pipeline.interchange import common
from pipeline.store.reader import Store

MAGIC = b"PAR1"
BLOCK = 64  # images of a row group
SURROGATES = re.compile("[\ud800-\udfff]")  # how Python holds file names that are not UTF-8
CLASSES = tuple(ours for _, ours, _ in common.CLASS_COLUMNS)


def read(source: Path, config: common.ImportFeaturesConfig) -> common.Source:
    """Open a parquet file that `write` made, or one with the same columns.

    Raises:
        PipelineError: pyarrow missing, a damaged file, or columns missing. Its rows raise it for damaged data.
    """
    arrow, parquet = pyarrow()
    try:
        file = parquet.ParquetFile(source)
        names = file.schema_arrow.names
    except (arrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no text
        raise PipelineError(f"{source}: not readable as parquet ({first_line(error)})") from error
    if missing := {"image_id", "features"} - set(names):
        raise PipelineError(f"{source}: has no column {' or '.join(sorted(missing))}; found {', '.join(names[:8])}")
    return common.Source("parquet", source.stem, _rows(source, file, config), file.metadata.num_rows)


def _rows(source: Path, file: Any, config: common.ImportFeaturesConfig) -> Iterator[common.Row]:
    arrow, _ = pyarrow()
    known = [
        name for name in ("image_id", *common.SIZE, "features", "boxes", *CLASSES) if name in file.schema_arrow.names
    ]
    try:
        for batch in file.iter_batches(batch_size=BLOCK, columns=known):
            for row in range(len(batch)):
                values = {name: batch.column(name)[row] for name in known}
                yield _row(f"{source}: {values['image_id']}", values, config)
    except PipelineError:
        raise
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise PipelineError(f"{source}: damaged ({first_line(error)})") from error


def _row(where: str, values: dict[str, Any], config: common.ImportFeaturesConfig) -> common.Row:
    found = values.pop("image_id").as_py()
    if found is None:
        raise PipelineError(f"{where}: a row without an image_id")
    height, width = (int(values.pop(name).as_py() or 0) if name in values else 0 for name in common.SIZE)
    try:
        arrays = {name: _array(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError) as error:  # lists of different lengths, or no lists
        raise PipelineError(f"{where}: {error}; expected lists of numbers") from error
    name = common.id_from_bytes(found) if isinstance(found, bytes) else str(found)
    return common.make_row(where, name, arrays, config.images, size=(height, width))


def _array(value: Any) -> np.ndarray:
    """A list, or a list of lists of one length, as an array."""
    inner = value.values
    if not hasattr(inner, "flatten") or not str(inner.type).startswith(("list", "fixed_size_list", "large_list")):
        return inner.to_numpy(zero_copy_only=False)
    lengths = set(inner.value_lengths().to_pylist())
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"lists of {', '.join(map(str, lengths))} numbers in one image")
    return inner.flatten().to_numpy(zero_copy_only=False).reshape(len(inner), -1)


def write(store: Store, target: Path, config: common.ExportFeaturesConfig) -> list[str]:
    """A store -> a parquet file.

    Raises:
        PipelineError: pyarrow missing.
    """
    arrow, parquet = pyarrow()
    is_text = not SURROGATES.search("".join(store.image_ids))
    names = ["features", *(["boxes"] if store.has_boxes else []), *(CLASSES if store.object_names else ())]
    images, writer = common.rows_of(store), None
    with replacing(target) as file:
        while block := list(islice(images, BLOCK)):
            ids = [image_id if is_text else common.id_to_bytes(image_id) for image_id, _ in block]
            columns = {"image_id": arrow.array(ids, arrow.string() if is_text else arrow.binary())}
            for index, name in enumerate(common.SIZE):
                columns[name] = arrow.array([regions.image_size[index] for _, regions in block], arrow.int32())
            for name in names:
                columns[name] = _lists(np.stack([getattr(regions, name) for _, regions in block]))
            table = arrow.table(columns)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer:
            writer.close()
    return []


def _lists(array: np.ndarray) -> Any:
    """(n, K) or (n, K, D) as a column of lists."""
    arrow, _ = pyarrow()
    column = arrow.array(array.reshape(-1))
    for size in array.shape[:0:-1]:
        column = arrow.ListArray.from_arrays(np.arange(0, len(column) + 1, size, dtype=np.int32), column)
    return column
