"""HDF5 as the VQA code has it: bottom-up-attention-vqa's `trainval36.hdf5`, and BAN's with 10 to 100 regions an image.

    image_features     (N, K, D) float32     or (R, D): the regions of all images, one after the other
    image_bb           (N, K, 4) float32     or (R, 4); XYXY in pixels
    spatial_features   (N, K, 6) float32     x1, y1, x2, y2, width, height as fractions of the photos, where all their sizes are
                                           known; written, not read
    pos_boxes          (N, 2) integers       only with (R, …): first region of an image, and the one after its last
    image_ids          (N,) text             ours; the published files keep ids in a pickle, which is never read
    image_h, image_w   (N,) int64            ours
    objects_id, objects_conf, attrs_id, attrs_conf   (N, K): ours

Where a file has no `image_ids`, `--ids` names them: a JSON list in row order, a JSON object id -> row (what the pickle
`*_imgid2idx.pkl` holds), or text, one a line. Needs h5py. Source: `tools/detection_features_converter.py` of
hengyuan-hu/bottom-up-attention-vqa, `tools/adaptive_detection_features_converter.py` of jnhwkim/ban-vqa.
"""

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from configs.errors import first_line
from configs.files import parse_json
from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.interchange import common
from pipeline.store.reader import Store

MAGIC = b"\x89HDF\r\n\x1a\n"
OURS = {"image_features": "features", "image_bb": "boxes", **{theirs: ours for theirs, ours, _ in common.CLASS_COLUMNS}}
DATASETS = (*OURS, "pos_boxes", "image_ids", *common.SIZE)
BLOCK = 16  # images read or written at once: h5py is slow to start, and compressed files have blocks of their own
NAME_THE_IDS = (
    "name them with --ids FILE: a JSON list in row order, a JSON object id -> row, or text, one a line (the pickle beside the "
    "published files can run code and is not read)"
)


def read(source: Path, config: common.ImportFeaturesConfig) -> common.Source:
    """Open an HDF5 file.

    Raises:
        PipelineError: h5py missing, file damaged, datasets missing, or ids that do not fit. Its rows raise it for
            damaged data.
    """
    with _open(source) as file:
        if "image_features" not in file:
            raise PipelineError(f"{source}: holds {', '.join(file) or 'nothing'}; expected image_features")
        _refuse_other_files(source, file)
        ranges = _ranges(source, file)
        _check_size(source, file, ranges)
        ids = _ids(source, file, config.ids, len(ranges))
    return common.Source("VQA HDF5", source.stem, _rows(source, ranges, ids, config), len(ids))


def write(store: Store, target: Path, config: common.ExportFeaturesConfig) -> list[str]:
    """A store -> an HDF5 file.

    Raises:
        PipelineError: h5py missing, or a file that cannot be written.
    """
    _h5py()
    try:
        with replacing(target) as temporary:
            _fill(temporary, store, config)
    except (OSError, RuntimeError) as error:  # h5py's own carry no file name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PipelineError(f"{target}: cannot be written ({reason})") from error
    return []


def _fill(temporary: BufferedWriter, store: Store, config: common.ExportFeaturesConfig) -> None:
    h5py = _h5py()
    with h5py.File(temporary.name, "w") as file:
        numbers = len(store) * store.num_regions * (store.feature_dim + 16)
        _reserve(temporary.fileno(), 4 * numbers + sum(map(len, store.image_ids)) * 4 + 128 * len(store) + (1 << 20))
        ids = np.array([common.id_to_bytes(image_id) for image_id in store.image_ids], dtype=object)
        file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype("utf-8"))
        has_fractions = store.has_boxes and not common.without_size(store)
        rows = common.published_rows(store, "image_features", "image_bb")
        images = (_with_fractions(arrays) if has_fractions else arrays for _, arrays in rows)
        for start in range(0, len(store), BLOCK):
            block = list(islice(images, BLOCK))
            for name, first in block[0].items():
                if not start:
                    file.create_dataset(name, (len(store), *first.shape), first.dtype)
                file[name][start : start + len(block)] = np.stack([arrays[name] for arrays in block])
        file.flush()
        size = file.id.get_filesize()
    os.truncate(temporary.fileno(), size)  # the library leaves what it did not need of the room


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk first: the HDF5 library crashes the process when it runs out of it at close."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        # else a file system that cannot reserve


def spatial_features(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes as fractions of the photo of (height, width): (K, 4) XYXY -> (K, 6) x1, y1, x2, y2, width, height."""
    height, width = size
    x1, y1 = boxes[:, 0] / width, boxes[:, 1] / height
    wide, high = (boxes[:, 2] - boxes[:, 0]) / width, (boxes[:, 3] - boxes[:, 1]) / height
    return np.stack([x1, y1, x1 + wide, y1 + high, wide, high], axis=1).astype(np.float32)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise PipelineError("h5py is not installed, which HDF5 needs", "pip install 'scan-pipeline[hdf5]'") from error
    return h5py


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The open file; what h5py says of a damaged one becomes our error."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except PipelineError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise PipelineError(f"{path}: damaged or not HDF5 ({error})", "copy or download it again") from error


def _refuse_other_files(source: Path, file: Any) -> None:
    """Only datasets that lie in this file are read: a link, external storage or a virtual dataset names any file of the machine."""
    h5py = _h5py()
    for name in DATASETS:
        link = file.get(name, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise PipelineError(
                f"{source}: {name} is a link; expected a dataset in this file", "write it into one file"
            )
        found = file.get(name)
        if found is None:
            continue
        if not isinstance(found, h5py.Dataset):
            raise PipelineError(f"{source}: {name} is a {type(found).__name__.lower()}; expected a dataset")
        if found.external or found.is_virtual:
            raise PipelineError(
                f"{source}: {name} is stored in other files; expected a dataset in this file", "write it into one file"
            )


def _check_size(source: Path, file: Any, ranges: np.ndarray) -> None:
    """Refuse datasets that were not written in full, whose rest would be read as zeros, and images that share regions."""
    for dataset in (file[name] for name in DATASETS if name in file):
        if dataset.chunks:
            sides = zip(dataset.shape, dataset.chunks, strict=True)
            declared, written = math.prod(-(-side // chunk) for side, chunk in sides), dataset.id.get_num_chunks()
        else:
            declared, written = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
        if written < declared:
            raise PipelineError(
                f"{source}: {dataset.name.strip('/')} was written to {written / declared:.0%}; expected all of it",
                "make the file again",
            )
    features, counts = file["image_features"], ranges[:, 1] - ranges[:, 0]
    in_order = ranges[np.argsort(ranges[:, 0], kind="stable")]
    if not (in_order[1:, 0] >= in_order[:-1, 1]).all():
        raise PipelineError(f"{source}: pos_boxes give regions to several images; expected each to one")
    per_row = math.prod(features.shape[1:]) * features.dtype.itemsize
    common.check_image_size(source, int(counts.max(initial=0)) * per_row)


def _ranges(source: Path, file: Any) -> np.ndarray:
    """First region of every image, and the one after its last: (N, 2); for (N, K, D), rows 0..N as if K were 1."""
    features = file["image_features"]
    shape: tuple[int, ...] = getattr(features, "shape", ())
    if len(shape) == 3:
        starts = np.arange(shape[0])
        return np.stack([starts, starts + 1], axis=1)
    if len(shape) != 2 or "pos_boxes" not in file:
        raise PipelineError(
            f"{source}: image_features of shape {shape}; expected (N, K, D), or (R, D) with the dataset pos_boxes"
        )
    ranges = file["pos_boxes"][()]
    if ranges.ndim != 2 or ranges.shape[1] != 2 or ranges.dtype.kind not in "iu":
        raise PipelineError(
            f"{source}: pos_boxes of shape {ranges.shape} and type {ranges.dtype}; expected (N, 2) integers"
        )
    ranges = ranges.astype(np.int64)
    if not ((ranges[:, 0] >= 0) & (ranges[:, 0] < ranges[:, 1]) & (ranges[:, 1] <= shape[0])).all():
        raise PipelineError(f"{source}: pos_boxes point outside of the {shape[0]} regions of image_features")
    return ranges


def _ids(source: Path, file: Any, named: str | None, count: int) -> list[str]:
    if named:
        ids = _ids_from(Path(named), count)
    elif "image_ids" in file:
        shape = file["image_ids"].shape
        if shape != (count,):
            raise PipelineError(f"{source}: image_ids of shape {shape}; expected {count} ids for {count} images")
        ids = [
            common.id_from_bytes(value) if isinstance(value, bytes) else str(value) for value in file["image_ids"][()]
        ]
    else:
        raise PipelineError(f"{source}: holds no image_ids", NAME_THE_IDS)
    if len(ids) != count:
        raise PipelineError(f"{named or source}: {len(ids)} ids for {count} images")
    return ids


def _ids_from(path: Path, count: int) -> list[str]:
    """Ids of the rows, from JSON or text."""
    if path.suffix.lower() in {".pkl", ".pickle"}:
        raise PipelineError(f"{path}: a pickle can run code and is not read", NAME_THE_IDS)
    lines = common.read_lines(path)
    if path.suffix.lower() != ".json":
        return lines
    try:
        content = parse_json("\n".join(lines))
        if isinstance(content, dict):  # id -> row
            ids = {row: image_id for image_id, row in content.items()}
            if len(content) != count or sorted(ids) != list(range(count)) or bool in map(type, ids):
                raise ValueError(f"rows are not 0 to {count - 1}, once each")
            return [ids[row] for row in range(count)]
        if not isinstance(content, list) or not all(type(value) in (str, int) for value in content):
            raise ValueError("expected a list of ids, or an object id -> row")
        return [str(value) for value in content]
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PipelineError(f"{path}: not readable as image ids ({error})") from error


def _rows(
    source: Path, ranges: np.ndarray, ids: list[str], config: common.ImportFeaturesConfig
) -> Iterator[common.Row]:
    with _open(source) as file:
        found = [name for name in OURS if name in file]
        total = file["image_features"].shape[0]
        for name in found:
            if file[name].shape[:1] != (total,):
                raise PipelineError(f"{source}: {name} of shape {file[name].shape}; expected {total} rows")
        heights, widths = (file[name][()] if name in file else np.zeros(len(ids), np.int64) for name in common.SIZE)
        if any(sides.shape != (len(ids),) or sides.dtype.kind not in "iu" for sides in (heights, widths)):
            raise PipelineError(f"{source}: image_h and image_w; expected {len(ids)} integers each")
        flat = file["image_features"].ndim == 2
        size_of_block = 1 if flat else BLOCK  # the ranges of a flat file need not follow each other
        for start in range(0, len(ids), size_of_block):
            block = ranges[start : start + size_of_block]
            first, last = int(block.min()), int(block.max())
            values = {OURS[name]: file[name][first:last] for name in found}
            for index, (begin, end) in enumerate((block - first).tolist(), start=start):
                one = {name: value[begin:end] if flat else value[begin] for name, value in values.items()}
                size = (int(heights[index]), int(widths[index]))
                yield common.make_row(
                    f"{source}: row {index} ({ids[index]!r})", ids[index], one, config.images, size=size
                )


def _with_fractions(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of an image, with its boxes as fractions of the photo too."""
    size = (int(arrays["image_h"]), int(arrays["image_w"]))
    return {**arrays, "spatial_features": spatial_features(arrays["image_bb"], size)}
