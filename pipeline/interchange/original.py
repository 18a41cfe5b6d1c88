"""The layout of the original SCAN code: three files for each split.

    {split}_ims.npy     (N, K, D), or (5 N, K, D) with every image repeated for each of its captions
    {split}_caps.txt    five lines an image, in the order of the images
    {split}_ids.txt     one line an image, or one a caption; absent: images are numbered

Features keep their type, as its code converts what it reads. Source: `data.py` and README of kuanghuei/SCAN.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.inputs.split_words import SPLIT_WORDS, split_of_name
from pipeline.interchange import common
from pipeline.store.reader import Store

if TYPE_CHECKING:
    from pipeline.inputs.splits import Split

CAPTIONS_PER_IMAGE = 5
MAPPED = 128  # images read through one memory map: what was read through it stays in memory as long as it does


def read(source: Path, config: common.ImportFeaturesConfig) -> common.Source:
    """Open one split of a folder.

    Raises:
        PipelineError: no split given, files missing, or counts that do not fit each other.
    """
    split = config.split
    if not split:
        found = sorted(path.name.removesuffix("_ims.npy") for path in source.glob("*_ims.npy"))
        raise PipelineError(f"{source}: holds the splits {', '.join(found) or '(none)'}", "choose one with --split")
    features = common.load_array(source / f"{split}_ims.npy", 3)
    captions = _read_captions(source / f"{split}_caps.txt")
    no_captions = f"no {split}_caps.txt: without captions; name them with --captions to train"
    notes = [no_captions] if captions is None else []
    count, every = _count(source, len(features), captions)
    ids = source / f"{split}_ids.txt"
    if config.images and not ids.exists():  # the number of a row may be that of another photo of COCO
        raise PipelineError(
            f"{ids}: not there: images are numbered, and nothing tells which photo in {config.images} each is of",
            "write it, a name a line, or import without --images",
        )
    names = _image_names(ids, count)
    boxes = _open_boxes(Path(config.boxes), count) if config.boxes else None
    rows = _rows(source / f"{split}_ims.npy", names, every, boxes, config)
    return common.Source("original layout", f"{source.resolve().name}_{split}", rows, count, captions or [], notes)


def write(store: Store, target: Path, config: common.ExportFeaturesConfig) -> list[str]:
    """A store, or one split of it, -> the three files in a folder. The features come last.

    Raises:
        PipelineError: no such split, captions that are not five an image, or files that are
            there already.
    """
    split, rows, captions, notes = _choose(store, config)
    files = {f"{split}_ids.txt": b"".join(common.id_to_bytes(store.image_ids[row]) + b"\n" for row in rows)}
    if captions:
        files[f"{split}_caps.txt"] = b"".join(caption.encode(errors="replace") + b"\n" for caption in captions)
    arrays = target / f"{split}_ims.npy"
    for path in [arrays, *(target / name for name in files)]:
        if path.exists() and (path == arrays or path.read_bytes() != files[path.name]):
            raise PipelineError(f"{path}: exists already", "delete it, or choose another --output or --split")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with replacing(target / name) as file:
            file.write(content)
    with replacing(arrays) as file:  # front to back: on a full disk an error, where a memory map ends the process
        shape = (len(rows), store.num_regions, store.feature_dim)
        header = {"descr": store.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for shard, row in common.shards_of(store, rows):
            file.write(shard.tensors["features"][row].tobytes())
    return notes


def _choose(store: Store, config: common.ExportFeaturesConfig) -> tuple[str, np.ndarray, list[str], list[str]]:
    """The images of a split in the order of their captions, or all where no captions are known.

    Returns:
        The split's name, rows of the store, captions (five an image, or none), and notes for the user.
    """
    from pipeline.inputs.dataset import load_dataset  # brings torch: only for this

    try:
        dataset = load_dataset([store.path], [config.captions] if config.captions else [])
    except PipelineError as error:
        if config.captions:
            raise
        split = config.split or split_of_name(store.path.name)
        if not split:
            raise PipelineError(f"{store.path}: no name for SPLIT_ims.npy", "give one with --split") from error
        return split, np.arange(len(store)), [], [f"without captions: {error}", _unsplit(len(store), split)]
    names = [name for name in dataset.splits if name]
    split = config.split or split_of_name(store.path.name) or (names[0] if len(names) == 1 else "")
    found = dataset.splits.get(SPLIT_WORDS.get(split, split))
    unsplit = []
    if found is None and split and not names:
        found = dataset.splits[""]
        unsplit = [_unsplit(len(found.store_ids), split)]
    if found is None:
        known = f"it has {', '.join(names)}" if names else "its images belong to none"
        what = f"no split {split}" if split else "no split is given"
        remedy = "choose one with --split" if names else "name the files, SPLIT_ims.npy, with --split"
        raise PipelineError(f"{store.path}: {what}; {known}", remedy)
    try:
        captions, notes = _five_each(found)
    except PipelineError as error:
        if config.captions:
            raise
        captions, notes = [], [f"without captions: {error}"]
    return split, found.images.rows, captions, [*dataset.notes, *notes, *unsplit]


def _unsplit(count: int, split: str) -> str:
    return f"nothing tells which images are {split}: all {count:,} are written"


def _five_each(split: "Split") -> tuple[list[str], list[str]]:
    """The first five captions of every image, and what was left out."""
    captions_of: list[list[str]] = [[] for _ in split.store_ids]
    for caption, image in zip(split.images.captions, split.images.image_of_caption.tolist(), strict=True):
        captions_of[image].append(caption)
    for image_id, captions in zip(split.store_ids, captions_of, strict=True):
        if len(captions) < CAPTIONS_PER_IMAGE:
            raise PipelineError(
                f"{image_id!r} has {len(captions)} captions; the original layout needs {CAPTIONS_PER_IMAGE} of every image",
                "name a file that has them with --captions",
            )
    more = sum(len(captions) - CAPTIONS_PER_IMAGE for captions in captions_of)
    notes = [f"{more:,} captions beyond the first {CAPTIONS_PER_IMAGE} of their image are left out"] if more else []
    return [caption for captions in captions_of for caption in captions[:CAPTIONS_PER_IMAGE]], notes


def cannot_hold(image_id: str) -> str | None:
    """Why a line of SPLIT_ids.txt cannot hold an id."""
    if image_id.startswith("\ufeff"):
        return "it begins with a byte order mark"
    return "it holds a line end" if "\n" in image_id or image_id.endswith("\r") else None


def _read_captions(path: Path) -> list[str] | None:
    if not path.exists():
        return None
    captions = [" ".join(line.split()) for line in common.read_lines(path)]
    for number, caption in enumerate(captions, start=1):
        if any("\udc80" <= character <= "\udcff" for character in caption):
            raise PipelineError(f"{path}: line {number} is not UTF-8", "convert the file to UTF-8")
    return captions


def _count(folder: Path, rows: int, captions: Sequence[str] | None) -> tuple[int, int]:
    """Number of images, and of feature rows that each of them takes."""
    if captions is None:
        return rows, 1
    count, rest = divmod(len(captions), CAPTIONS_PER_IMAGE)
    if rest or not count or rows not in (count, len(captions)):
        raise PipelineError(
            f"{folder}: {rows} feature rows and {len(captions)} captions; expected five captions an image, and "
            "one feature row per image or per caption"
        )
    return count, rows // count


def _image_names(path: Path, count: int) -> Sequence[str]:
    lines = common.read_lines(path) if path.exists() else [str(index) for index in range(count)]
    if len(lines) == count * CAPTIONS_PER_IMAGE:
        first = lines[::CAPTIONS_PER_IMAGE]
        if wrong := next((n for n, line in enumerate(lines) if line != first[n // CAPTIONS_PER_IMAGE]), None):
            raise PipelineError(f"{path}: line {wrong + 1} is another id than those of its image's other captions")
        lines = first
    if len(lines) != count:
        raise PipelineError(f"{path}: {len(lines)} ids for {count} images; expected one an image, or one a caption")
    return lines


def _open_boxes(path: Path, count: int) -> np.ndarray:
    boxes = common.load_array(path, None)
    if boxes.dtype.kind not in "fiu" or boxes.ndim not in (2, 3) or (boxes.ndim == 3 and len(boxes) != count):
        raise PipelineError(f"{path}: boxes of shape {boxes.shape} {boxes.dtype}; expected (K, 4), or ({count}, K, 4)")
    return boxes


def _rows(
    file: Path, names: Sequence[str], every: int, boxes: np.ndarray | None, config: common.ImportFeaturesConfig
) -> Iterator[common.Row]:
    for index, name in enumerate(names):
        if index % MAPPED == 0:
            features = common.load_array(file, 3)
        _, path = common.name_of_photo(name, config.images)
        size = common.size_of_photo(config.images, path)
        arrays = {"features": np.asarray(features[index * every])}
        if not all(np.array_equal(arrays["features"], features[index * every + more]) for more in range(1, every)):
            raise PipelineError(
                f"{file}: rows {index * every} to {index * every + every - 1} differ; expected those of one image, as there "
                "are five captions an image",
                "without five captions an image, move the captions file away, and name it to train with --captions",
            )
        if boxes is not None:
            arrays["boxes"] = _boxes_of(boxes, index, features.shape[1], size, config.boxes)
        yield common.make_row(f"{file}: row {index} ({name!r})", name, arrays, config.images, size=size)


def _boxes_of(boxes: np.ndarray, index: int, count: int, size: tuple[int, int], path: str) -> np.ndarray:
    """(K, 4) pixels; fractions where the size of the photo is not known."""
    fractions = boxes.ndim == 2
    found = boxes if fractions else boxes[index]
    if found.shape != (count, 4):
        raise PipelineError(f"{path}: boxes of shape {found.shape}; expected ({count}, 4)")
    if fractions and (found.min() < -common.NEARLY or found.max() > 1 + common.NEARLY):
        raise PipelineError(
            f"{path}: numbers from {found.min():g} to {found.max():g} in an array of shape {found.shape}; expected fractions, 0 to 1",
            f"boxes in pixels are of each photo: expected an array (images, {count}, 4)",
        )
    height, width = size
    scale = [width, height, width, height] if fractions and width else [1, 1, 1, 1]
    return found.astype(np.float32) * np.array(scale, np.float32)
