"""What all formats share: a row, the source of rows, the options, and the checks that every row goes through.

A format is a module with two functions:

    read(source, config) -> Source       checks what can be checked at once; its rows come one by one
    write(store, target, config) -> list of notes, one for each thing of the store that the format does not hold

Letters: N images, K regions, D feature dimensions.
"""

import os
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from tqdm import tqdm

from configs.errors import first_line
from detector.config import DetectorConfig
from detector.regions import Regions
from detector.vocabulary import default_names
from pipeline.errors import PipelineError, UnreadableImage, printable
from pipeline.fields import CommandConfig, argument, option
from pipeline.inputs.photos import read_image_size
from pipeline.inputs.storage import SUFFIXES
from pipeline.store.reader import Shard, Store

# The field's names of the class columns (LXMERT's; also the keys of our .npz and HDF5 files), ours, and the published type
CLASS_COLUMNS = (
    ("objects_id", "object_ids", np.int64),
    ("objects_conf", "object_scores", np.float32),
    ("attrs_id", "attribute_ids", np.int64),
    ("attrs_conf", "attribute_scores", np.float32),
)
SIZE = ("image_h", "image_w")  # the field's names
NEARLY = 0.01  # by which fractions of a photo may leave it, as rounded ones do
# Bytes of one image's arrays: 1000 regions, the most that `extract` makes, of 16,000 float32 numbers
LARGEST_IMAGE = 1 << 26


@dataclass(frozen=True)
class ImportFeaturesConfig(CommandConfig):
    """What `scan-pipeline import-features` does."""

    source: str = argument()
    format: str = option(
        "", "Format of SOURCE.", choices=("", "original", "tsv", "npz", "hdf5", "parquet"), unset="told from SOURCE"
    )
    split: str = option("", "Of the original layout: reads SPLIT_ims.npy, SPLIT_caps.txt and SPLIT_ids.txt.")
    output: str = option("", "Store to write.", metavar="DIR", unset="features/<folder>_<split>, or SOURCE's name")
    images: str = option("", "Folder of the photos, to show and to measure them.", metavar="DIR")
    num_regions: int | None = option(None, "Take the first K regions of every image.", min=1, unset="all")
    dtype: str = option("", "Type of the stored features.", choices=("", "float16", "float32"), unset="as found")
    boxes: str = option("", "For the original layout: .npy, (K, 4) fractions or (N, K, 4) pixels.", metavar="FILE")
    ids: str = option("", "For HDF5 without image_ids: JSON list, JSON object id -> row, or text.", metavar="FILE")


@dataclass(frozen=True)
class ExportFeaturesConfig(CommandConfig):
    """What `scan-pipeline export-features` does."""

    store: str = argument()
    format: str = option(
        "", "tsv has Caffe's six columns, tsv10 LXMERT's ten.", required=True,
        choices=("", "original", "tsv", "tsv10", "npz", "hdf5", "parquet"),
    )  # fmt: skip
    output: str = option("", "File, or for original and npz folder, to write.", metavar="FILE|DIR", required=True)
    split: str = option("", "For the original layout: which images, and the files' names.", unset="the store's")
    captions: str = option("", "For the original layout.", metavar="FILE", unset="looked for beside the photos")


@dataclass(frozen=True)
class Row:
    """One image of a foreign file."""

    image_id: str
    regions: Regions
    path: str | None = None  # of the photo, below the folder of photos
    has_boxes: bool = True
    has_classes: bool = True  # objects and attributes, as indices into Visual Genome's names


@dataclass(frozen=True)
class Source:
    """A foreign file that was opened."""

    kind: str  # what the store will say that it was imported from
    name: str  # of the store, unless the user says another
    rows: Iterator[Row]
    total: int | None = None  # images, for the bar; about, where only the file's size is known
    captions: Sequence[str] = ()  # five an image in the order of the rows, or none
    notes: Sequence[str] = field(default_factory=list)  # what was found but cannot be kept


def make_row(
    where: str, name: str, arrays: Mapping[str, np.ndarray], images: str, *, size: tuple[int, int] = (0, 0)
) -> Row:
    """A row, after its arrays were found to fit each other.

    Args:
        where: file and place, for the error.
        name: of the image, as found.
        arrays: by our names: features (K, D); boxes (K, 4) and the class arrays (K,) where they are known.
        images: folder of the photos; "" where they are not at hand.
        size: (height, width); (0, 0) where it is not known, and boxes are fractions; it is measured for boxes in pixels.

    Raises:
        PipelineError: arrays of other shapes, no numbers, numbers that are not finite, or fractions in place of pixels.
    """
    image_id, path = name_of_photo(name, images)
    if not is_valid_id(image_id):
        raise PipelineError(f"{where}: an image id that is not valid text")
    features = arrays["features"]
    if features.ndim != 2 or not features.size:
        raise PipelineError(f"{where}: features of shape {features.shape}; expected (regions, numbers)")
    shapes = {"features": features.shape, "boxes": (len(features), 4)}
    for name, array in arrays.items():
        shape = shapes.get(name, (len(features),))
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise PipelineError(f"{where}: {name} of shape {array.shape} {array.dtype}; expected {shape} numbers")
        with np.errstate(over="ignore"):  # a store holds float32 at most
            if not np.isfinite(array.astype(np.float32)).all():
                raise PipelineError(f"{where}: {name} that are not finite numbers of float32")
    largest = float(arrays["boxes"].max()) if "boxes" in arrays else 0.0
    if size == (0, 0) and largest > 1 + NEARLY:
        size = size_of_photo(images, path)
    elif min(size) > 1 and 0 < largest <= 1:
        raise PipelineError(
            f"{where}: boxes up to {largest:g} in a photo of {size[1]} x {size[0]} pixels; expected pixels, not fractions",
            "multiply them by the photo's width and height",
        )
    has_classes = any(name in arrays for _, name, _ in CLASS_COLUMNS)
    if has_classes:
        _check_classes(where, arrays)
    if not all(0 <= side < 2**31 for side in size):
        raise PipelineError(f"{where}: a photo of {size[1]} x {size[0]} pixels; expected its width and height")
    regions = Regions(
        features=features,
        boxes=arrays.get("boxes", np.zeros(shapes["boxes"])).astype(np.float32),
        image_size=size,
        **{
            name: arrays.get(name, np.zeros(len(features))).astype(np.int32 if name.endswith("_ids") else np.float32)
            for _, name, _ in CLASS_COLUMNS
        },
    )
    return Row(image_id, regions, path, "boxes" in arrays, has_classes)


def visual_genome_names() -> tuple[list[str], list[str]]:
    """The names that published files index without saying so: 1600 objects, 400 attributes."""
    return default_names(DetectorConfig())


def _check_classes(where: str, arrays: Mapping[str, np.ndarray]) -> None:
    if missing := [theirs for theirs, ours, _ in CLASS_COLUMNS if ours not in arrays]:
        raise PipelineError(f"{where}: no {', '.join(missing)}; expected all of objects and attributes, or none")
    config = DetectorConfig()
    for name, limit in {"object_ids": config.num_objects, "attribute_ids": config.num_attributes}.items():
        ids = arrays[name]
        if not (ids.min() >= 0 and ids.max() < limit and (ids % 1 == 0).all()):
            raise PipelineError(
                f"{where}: {name} {ids.min()} to {ids.max()}; expected Visual Genome's, 0 to {limit - 1}"
            )


def name_of_photo(name: str, images: str) -> tuple[str, str | None]:
    """Image id and path of the photo that a foreign file's name means, below the folder of photos.

    A name without suffix becomes that of the photo, where there is one. COCO's numbers, as Caffe's files have them, stay.
    """
    if not images or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        return name, None
    if os.path.isfile(os.path.join(images, name)):
        return name, name
    found = [name + suffix for suffix in sorted(SUFFIXES) if os.path.isfile(os.path.join(images, name + suffix))]
    if len(found) > 1:
        raise PipelineError(f"--images {images}: image {name!r} can be {' or '.join(found)}", "keep one of them there")
    if found:
        return found[0], found[0]
    if name.isdecimal() and len(name) <= 12:
        for path in (f"COCO_{os.path.basename(os.path.abspath(images))}_{int(name):012}.jpg", f"{int(name):012}.jpg"):
            if os.path.isfile(os.path.join(images, path)):
                return name, path
    return name, None


def size_of_photo(images: str, path: str | None) -> tuple[int, int]:
    """(height, width) of a photo below the folder of photos; (0, 0) where there is none."""
    try:
        return read_image_size(os.path.join(images, path)) if path else (0, 0)
    except UnreadableImage as error:
        remedy = "take it out of the folder, or import without --images"
        raise PipelineError(f"{os.path.join(images, path or '')}: {error}", remedy) from error


def rows_of(store: Store) -> Iterator[tuple[str, Regions]]:
    """Image ids and regions of a store in order, with a bar."""
    for shard, row in shards_of(store, np.arange(len(store))):
        yield shard.image_ids[row], shard.regions(row)


def shards_of(store: Store, rows: np.ndarray) -> Iterator[tuple[Shard, int]]:
    """Rows of a store, each as its shard and the row in it, with a bar.

    A shard is opened for its rows and closed after them: the store's own memory maps would stay until the end.
    """
    opened: Shard | None = None
    for row in tqdm(rows.tolist(), unit="image", desc=printable(store.path.name)):
        shard, local = store.locate(row)
        if opened is None or opened.mark != shard.mark:
            opened = Shard(shard.mark, store.manifest)
        yield opened, local


def check_ids(image_ids: Iterable[str], target: Path, cannot_hold: Callable[[str], str | None]) -> None:
    """Refuse the first id that would not come back as it is; `cannot_hold` gives the format's own reason."""
    for image_id in image_ids:
        reason = "it holds a NUL character" if "\0" in image_id else cannot_hold(image_id)
        if not is_valid_id(image_id):
            reason = "it is not valid text"
        if reason:
            remedy = "rename the photo, or choose another --format"
            raise PipelineError(f"{target}: cannot hold the image id {image_id!r}: {reason}", remedy)


def is_valid_id(image_id: str) -> bool:
    """Whether an id survives being written: a lone surrogate, which JSON can hold, does not."""
    try:
        return id_from_bytes(id_to_bytes(image_id)) == image_id
    except UnicodeEncodeError:
        return False


def id_to_bytes(image_id: str) -> bytes:
    """UTF-8; file names that are not UTF-8 keep their bytes, as in the rest of Python."""
    return image_id.encode("utf-8", "surrogateescape")


def id_from_bytes(data: bytes) -> str:
    """The inverse of `id_to_bytes`."""
    return data.decode("utf-8", "surrogateescape")


def published_rows(store: Store, features: str, boxes: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Image ids and arrays of a store in order, in the types of the published files, with a bar.

    Features and boxes take the names of the format; the other arrays have the same names everywhere.
    """
    for image_id, regions in rows_of(store):
        arrays = {features: regions.features.astype(np.float32)}
        if store.has_boxes:
            arrays[boxes] = regions.boxes.astype(np.float32)
        arrays |= {name: np.array(side, np.int64) for name, side in zip(SIZE, regions.image_size, strict=True)}
        if store.object_names:
            arrays |= {theirs: getattr(regions, ours).astype(dtype) for theirs, ours, dtype in CLASS_COLUMNS}
        yield image_id, arrays


def without_size(store: Store) -> int:
    """Number of images whose photo's size is not known."""
    return sum(int((shard.tensors["image_sizes"] == 0).any(axis=1).sum()) for shard in store.shards)


def not_held(store: Store, held: Collection[str]) -> list[str]:
    """What of a store a format does not hold, in words. Every format forgets how the features were made.

    `held` has those of "boxes" (with photo sizes), "classes" and "dtype" (of the features) that the format holds.
    """
    notes = []
    if store.has_boxes and "boxes" not in held:
        notes.append("boxes and photo sizes")
    if store.object_names and "classes" not in held:
        notes.append("objects and attributes")
    elif store.object_names and (store.object_names, store.attribute_names) != visual_genome_names():
        notes.append("the names of objects and attributes (Visual Genome's are assumed)")
    notes.append("how the features were made (weights, settings), failures, and where the photos are")
    lines = [f"not held by this format: {'; '.join(notes)}"]
    if "boxes" in held and store.has_boxes and (count := without_size(store)):
        lines.append(f"the size of {count:,} photos is not known: it is written as 0, and boxes not as fractions of it")
    if store.dtype == np.float16 and "dtype" not in held:
        lines.append(
            "features are widened from float16 to float32; --dtype float16 at import makes them the same again"
        )
    return lines


def read_lines(path: Path) -> list[str]:
    """The lines of a text file as they are, without their ends. LF and CRLF end a line, nothing else does; a byte order
    mark, as editors write it, is none of the text.

    Raises:
        PipelineError: not readable.
    """
    try:
        lines = path.read_bytes().removeprefix(BOM_UTF8).split(b"\n")
    except OSError as error:
        raise PipelineError(f"{path}: not readable ({error.strerror})") from error
    lines = lines[:-1] if not lines[-1] else lines
    return [id_from_bytes(line.removesuffix(b"\r")) for line in lines]


def load_array(path: Path, dimensions: int | None) -> np.ndarray[Any, Any]:
    """A memory-mapped .npy.

    Raises:
        PipelineError: not readable, of objects, or with another number of dimensions.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # the last two of its header
        raise PipelineError(f"{path}: not readable as a NumPy array ({first_line(error)})") from error
    if dimensions is not None and array.ndim != dimensions:
        raise PipelineError(f"{path}: array of shape {array.shape}; expected (images, regions, numbers)")
    return array


def check_image_size(path: Path, size: int) -> None:
    """Refuse arrays of one image, in bytes, that no memory should have to hold: a small file may declare any size."""
    if size > LARGEST_IMAGE:
        raise PipelineError(f"{path}: declares {size:,} bytes for one image; expected at most {LARGEST_IMAGE:,}")
