"""Region features that others computed -> a store, row by row: nothing is held in memory as a whole.

Two layouts: the original SCAN code's `{split}_ims.npy`, `{split}_caps.txt`, `{split}_ids.txt`, and bottom-up attention's
TSV files, with Caffe's six columns or LXMERT's ten.
"""

import base64
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detector.regions import Regions
from pipeline.errors import PipelineError
from pipeline.images import SUFFIXES, UnreadableImage, read_image_size
from pipeline.marks import stays_inside
from pipeline.shard_writer import ShardRows, claim_store, commit_shard, replacing, shard_name, write_summary
from pipeline.shards import Store, open_store

SHARD_SIZE = 512
CAFFE_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
CAPTIONS_PER_IMAGE = 5  # of the original layout


@dataclass(frozen=True)
class Imported:
    """One image of a foreign file."""

    image_id: str
    regions: Regions
    path: str | None = None  # of the photo, below the folder of photos


def import_any(
    source: Path | str,
    *,
    split: str | None = None,
    output: str | None = None,
    images: str | None = None,
    boxes: str | None = None,
    dtype: str | None = None,
) -> Store:
    """Import a folder of the original layout (with `split`), or a TSV file."""
    source = Path(source)
    if source.is_dir():
        if not split:
            found = sorted(path.name.removesuffix("_ims.npy") for path in source.glob("*_ims.npy"))
            raise PipelineError(f"{source}: say which split with --split; there are: {', '.join(found) or 'none'}")
        target = Path(output or Path("features") / f"{source.resolve().name}_{split}")
        return import_precomputed(source, split, target, images=images, boxes=boxes, dtype=dtype)
    if not source.is_file():
        raise PipelineError(f"{source}: not there; expected a folder with SPLIT_ims.npy files, or a .tsv file")
    target = Path(output or Path("features") / source.stem)
    return import_tsv(source, target, images=images, dtype=dtype or "float32")


def import_precomputed(
    folder: Path,
    split: str,
    output: Path,
    *,
    images: str | None = None,
    boxes: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Store:
    """The original code's layout -> a store, with `captions.tsv` in it.

    Args:
        folder: holds `{split}_ims.npy` (N or 5 N, K, D), `{split}_caps.txt` (five lines an image), `{split}_ids.txt`
            (one line an image, or a caption; optional).
        output: store to write.
        images: folder of the photos, if they are at hand.
        boxes: .npy of (K, 4) fractions of a photo, or (N, K, 4) pixels; without it the store says it has none.
        dtype: of the stored features; None keeps what was found.

    Raises:
        PipelineError: files missing, or counts that do not fit each other.
    """
    features = _load_array(folder / f"{split}_ims.npy", 3)
    captions = _read_lines(folder / f"{split}_caps.txt")
    count, rest = divmod(len(captions), CAPTIONS_PER_IMAGE)
    if rest or len(features) not in (count, len(captions)):
        raise PipelineError(
            f"{folder}: {len(features)} feature rows and {len(captions)} captions; expected five captions an image, and "
            "one feature row per image or per caption"
        )
    every = len(features) // count  # 5 where rows are repeated for every caption
    names = _image_names(folder / f"{split}_ids.txt", count, every, images)
    fixed = None if boxes is None else _load_array(Path(boxes), None)

    def rows() -> Iterator[Imported]:
        for index in range(count):
            array = np.asarray(features[index * every])
            path = _photo(names[index], images)
            size = _size_of(Path(images) / path) if images and path else (0, 0)
            found = None if fixed is None else _boxes_of(fixed, index, len(array), size, Path(str(boxes)))
            yield Imported(names[index], _bare_regions(array, found, size), path)

    manifest = _manifest(
        features.shape[1], features.shape[2], dtype or _dtype_of(features.dtype), boxes is not None, images
    )
    manifest["extraction"] = {"imported": "original layout", "feature_dim": int(features.shape[2])}
    store = _write(output, manifest, rows(), count, progress)
    with replacing(output / "captions.tsv") as file:
        for index, caption in enumerate(captions):
            file.write(f"{names[index // CAPTIONS_PER_IMAGE]}\t{caption}\n".encode())
    return store


def import_tsv(
    path: Path, output: Path, *, images: str | None = None, dtype: str = "float32", progress: bool = True
) -> Store:
    """A bottom-up attention TSV, Caffe's six columns or LXMERT's ten -> a store.

    Raises:
        PipelineError: a row of other columns, or with another number of regions than the first.
    """
    rows = _tsv_rows(path, images)
    try:
        first = next(rows)
    except StopIteration:
        raise PipelineError(f"{path}: empty; expected rows of bottom-up attention features") from None
    num_regions, feature_dim = first.regions.features.shape
    manifest = _manifest(num_regions, feature_dim, dtype, True, images)
    manifest["extraction"] = {"imported": "bottom-up attention TSV", "feature_dim": feature_dim}
    manifest["object_names"], manifest["attribute_names"] = _visual_genome_names()

    def everything() -> Iterator[Imported]:
        yield first
        for row in rows:
            if row.regions.features.shape != (num_regions, feature_dim):
                raise PipelineError(
                    f"{path}: {row.image_id} has {len(row.regions)} regions, the first image {num_regions}; "
                    "a store holds the same number for every image: import a file of fixed size (such as trainval_36)"
                )
            yield row

    return _write(output, manifest, everything(), None, progress)


def _write(
    output: Path, manifest: dict[str, Any], rows: Iterator[Imported], count: int | None, progress: bool
) -> Store:
    """Shard after shard; those that are committed already are read past, not written again."""
    manifest = claim_store(output, manifest)
    number = 0
    with tqdm(total=count, unit="image", desc=output.name, disable=not progress) as bar:
        while batch := list(islice(rows, SHARD_SIZE)):
            if not (output / f"{shard_name(number)}.json").is_file():
                shard = ShardRows(
                    [row.image_id for row in batch],
                    [row.path for row in batch],
                    [0] * len(batch),
                    [row.regions for row in batch],
                )
                kinds = {key: manifest[key] for key in ("num_regions", "feature_dim", "dtype")}
                commit_shard(output, number, shard, **kinds)
            number += 1
            bar.update(len(batch))
    write_summary(output, manifest, number)
    return open_store(output)


def _manifest(num_regions: int, feature_dim: int, dtype: str, has_boxes: bool, images: str | None) -> dict[str, Any]:
    return {
        "num_regions": int(num_regions),
        "feature_dim": int(feature_dim),
        "dtype": dtype,
        "shard_size": SHARD_SIZE,
        "has_boxes": has_boxes,
        "image_roots": [str(Path(images).resolve())] if images else [],
        "object_names": [],
        "attribute_names": [],
    }


def _load_array(path: Path, dimensions: int | None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PipelineError(f"{path}: not readable as a NumPy array ({error})") from error
    if dimensions is not None and array.ndim != dimensions:
        raise PipelineError(f"{path}: array of shape {array.shape}; expected (images, regions, numbers)")
    return array


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not readable ({error})") from error
    lines = lines[:-1] if lines and not lines[-1] else lines
    return [" ".join(line.split()) for line in lines]


def _image_names(path: Path, count: int, every: int, images: str | None) -> list[str]:
    """Ids of the images; a name without suffix gets that of the photo where there is one."""
    lines = _read_lines(path) if path.is_file() else [str(index) for index in range(count)]
    if len(lines) == count * CAPTIONS_PER_IMAGE and count:
        lines = lines[::CAPTIONS_PER_IMAGE]
    if len(lines) != count:
        raise PipelineError(f"{path}: {len(lines)} ids for {count} images; expected one an image, or one a caption")
    return [_with_suffix(name, images) for name in lines]


def _with_suffix(name: str, images: str | None) -> str:
    for suffix in ("", *sorted(SUFFIXES)):
        if _photo(f"{name}{suffix}", images):
            return f"{name}{suffix}"
    return name


def _photo(name: str, images: str | None) -> str | None:
    """Path of a photo below its folder, None where it is not there, or would not be below that folder."""
    return name if images and stays_inside(name) and (Path(images) / name).is_file() else None


def _size_of(path: Path) -> tuple[int, int]:
    """(height, width) of a photo."""
    try:
        return read_image_size(path)
    except UnreadableImage as error:
        raise PipelineError(f"{path}: {error}; expected a photo: mend it, or move it away") from error


def _boxes_of(boxes: np.ndarray, index: int, count: int, size: tuple[int, int], path: Path) -> np.ndarray:
    found = boxes if boxes.ndim == 2 else boxes[index]
    if found.shape != (count, 4):
        raise PipelineError(f"{path}: boxes of shape {found.shape}; expected ({count}, 4)")
    height, width = size
    fractions = boxes.ndim == 2
    scale = np.array([width, height, width, height]) if fractions and width else np.ones(4)
    return np.asarray(found, dtype=np.float32) * scale.astype(np.float32)


def _bare_regions(features: np.ndarray, boxes: np.ndarray | None, size: tuple[int, int]) -> Regions:
    """Regions of which only features, and perhaps boxes, are known."""
    count = len(features)
    return Regions(
        boxes=np.zeros((count, 4), np.float32) if boxes is None else boxes,
        features=features,
        object_ids=np.zeros(count, np.int32),
        object_scores=np.zeros(count, np.float32),
        attribute_ids=np.zeros(count, np.int32),
        attribute_scores=np.zeros(count, np.float32),
        image_size=size,
    )


def _dtype_of(dtype: np.dtype[Any]) -> str:
    return "float16" if dtype == np.float16 else "float32"


def _tsv_rows(path: Path, images: str | None) -> Iterator[Imported]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Names need not be UTF-8, as those of files need not.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter="\t")
        number = 0
        try:
            for number, cells in enumerate(reader, start=1):
                columns = {6: CAFFE_COLUMNS, 10: LXMERT_COLUMNS}.get(len(cells))
                if columns is None:
                    raise PipelineError(
                        f"{path}: line {number} has {len(cells)} columns; expected 6 (Caffe) or 10 (LXMERT)"
                    )
                yield _tsv_row(dict(zip(columns, cells, strict=True)), images)
        except PipelineError:
            raise
        except (ValueError, KeyError, csv.Error) as error:
            raise PipelineError(f"{path}: line {max(number, reader.line_num)} is damaged ({error})") from error


def _tsv_row(cells: dict[str, str], images: str | None) -> Imported:
    count = int(cells["num_boxes"])
    size = (int(cells.get("img_h") or cells["image_h"]), int(cells.get("img_w") or cells["image_w"]))
    name = _with_suffix(cells.get("img_id") or cells["image_id"], images)
    features = _decode(cells["features"], np.float32, count)
    bare = _bare_regions(features, _decode(cells["boxes"], np.float32, count), size)
    if "objects_id" in cells:
        ids = {
            "object_ids": _decode(cells["objects_id"], np.int64, count)[:, 0].astype(np.int32),
            "object_scores": _decode(cells["objects_conf"], np.float32, count)[:, 0],
            "attribute_ids": _decode(cells["attrs_id"], np.int64, count)[:, 0].astype(np.int32),
            "attribute_scores": _decode(cells["attrs_conf"], np.float32, count)[:, 0],
        }
        bare = Regions(bare.boxes, bare.features, image_size=size, **ids)
    return Imported(name, bare, _photo(name, images))


def _decode(cell: str, dtype: type, count: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(cell, validate=True), dtype=dtype).reshape(count, -1)


def _visual_genome_names() -> Sequence[list[str]]:
    from detector.config import DetectorConfig
    from detector.vocabulary import default_names

    return default_names(DetectorConfig())
