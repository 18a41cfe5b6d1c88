"""One .npz an image, as MILVLG's bottom-up-attention.pytorch and the VQA code around it have them.

    x        (K, D) float32       features; (D, K) is read as well, told by `bbox`
    bbox     (K, 4) float32       XYXY in pixels
    num_bbox, image_h, image_w    integers
    info     a pickled dict with the classes: never read, as a pickle can run code
    objects_id, objects_conf, attrs_id, attrs_conf   (K,): the classes as plain arrays, which is how we write them

The file's path below the folder, without ".npz", is the image id: "a/b.jpg" is a/b.jpg.npz. Images come in the order of
their ids. Source: `utils/extract_utils.py` of MILVLG/bottom-up-attention.pytorch.
"""

import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.errors import PipelineError
from pipeline.files import read_json, replacing, write_json
from pipeline.interchange import common
from pipeline.store.reader import Store

SUFFIX = ".npz"
OTHER = "delete it, or choose another --output"
UNFINISHED = ".unfinished.json"  # in the target until the export is complete
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError, OverflowError,
              TypeError, SyntaxError, UnicodeError, zlib.error, zipfile.BadZipFile)  # fmt: skip
ARRAYS = {"x", "bbox", "num_bbox", *common.SIZE, *(theirs for theirs, _, _ in common.CLASS_COLUMNS)}


def read(source: Path, config: common.ImportFeaturesConfig) -> common.Source:
    """Open a folder of .npz files.

    Raises:
        PipelineError: none there, or an export that did not end. Its rows raise it for files that are damaged.
    """
    if (source / UNFINISHED).is_file():
        raise PipelineError(f"{source}: the export to it did not end", "run that again, it continues")
    files = {
        path.relative_to(source).as_posix().removesuffix(SUFFIX): path
        for path in source.rglob(f"*{SUFFIX}")
        if path.is_file()
    }
    if not files:
        raise PipelineError(f"{source}: no {SUFFIX} file found; expected one an image")
    names = sorted(files)
    notes = []
    if "info" in _load(files[names[0]])[1]:
        notes.append(
            "`info` of the .npz files (objects and attributes) is left out: it is a pickle, which can run code"
        )
    rows = (_row(name, files[name], config.images) for name in names)
    return common.Source(".npz files", source.resolve().name, rows, len(names), notes=notes)


def write(store: Store, target: Path, config: common.ExportFeaturesConfig) -> list[str]:
    """A store -> a folder of .npz files. Killed, the same call continues.

    Raises:
        PipelineError: ids that would be a file and a folder, or a folder that holds something else.
    """
    _check_nesting(store.image_ids, target)
    _claim(store, target)
    for image_id, arrays in common.published_rows(store, "x", "bbox"):
        path = target / f"{image_id}{SUFFIX}"
        if path.is_file() and zipfile.is_zipfile(path):  # a power failure may have left files without content
            continue
        with replacing(path, sync=False, folder=True) as file:
            np.savez(file, num_bbox=np.int64(len(arrays["x"])), **arrays)  # type: ignore[arg-type]
    os.sync()  # once, not for each of a hundred thousand files
    (target / UNFINISHED).unlink()
    if store.image_ids == sorted(store.image_ids):
        return []
    return ["not held by this format: the order of the images; they are read in the order of their ids"]


def _load(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of a file that this module knows, and the names of all. No other is decompressed, nor is one that is too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            known = {name: member for name, member in members.items() if name in ARRAYS}
            common.check_image_size(path, sum(_declared_size(archive, member) for member in known.values()))
            arrays = {}
            for name, member in known.items():
                with archive.open(member) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays, sorted(members)
    except PipelineError:
        raise
    except UNREADABLE as error:
        raise PipelineError(f"{path}: not readable as .npz ({error})", "make it again, or take it out") from error


def _declared_size(archive: zipfile.ZipFile, member: str) -> int:
    """Bytes of an array, from its header."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return math.prod(shape) * dtype.itemsize


def _row(name: str, path: Path, images: str) -> common.Row:
    arrays, members = _load(path)
    if "x" not in arrays:
        raise PipelineError(f"{path}: holds {', '.join(members) or 'nothing'}; expected x, the features")
    features, boxes = arrays["x"], arrays.get("bbox")
    if boxes is not None and features.shape[::-1][:1] == boxes.shape[:1] != features.shape[:1]:
        features = features.T
    found = features.shape[0] if features.ndim == 2 else 0
    count = _integer(arrays, "num_bbox", path, found)
    if found and count != found:
        raise PipelineError(f"{path}: num_bbox is {count}, x holds {found} regions")
    known = {"features": features, **({} if boxes is None else {"boxes": boxes})}
    known |= {ours: arrays[theirs] for theirs, ours, _ in common.CLASS_COLUMNS if theirs in arrays}
    height, width = (_integer(arrays, side, path, 0) for side in common.SIZE)
    return common.make_row(str(path), name, known, images, size=(height, width))


def _integer(arrays: dict[str, np.ndarray], name: str, path: Path, default: int) -> int:
    array = arrays.get(name)
    if array is None:
        return default
    if array.size != 1 or array.dtype.kind not in "iu":
        raise PipelineError(f"{path}: {name} of shape {array.shape} and type {array.dtype}; expected an integer")
    return int(array.reshape(())[()])


def cannot_hold(image_id: str) -> str | None:
    """Why no file can have this name below the folder."""
    path = PurePosixPath(image_id)
    if path.is_absolute() or ".." in path.parts:
        return "it leads out of the folder"
    if not path.parts or str(path) != image_id:
        return "it is no path that a file can have"
    return None


def _check_nesting(image_ids: list[str], target: Path) -> None:
    """ "a" becomes the file a.npz, and "a.npz/b" needs a folder of that name."""
    folders = {str(parent) for image_id in image_ids for parent in PurePosixPath(image_id).parents}
    for image_id in image_ids:
        if f"{image_id}{SUFFIX}" in folders:
            raise PipelineError(f"{target}: {image_id!r} would be a file and a folder", "choose another --format")


def _claim(store: Store, target: Path) -> None:
    """Make the folder, or find the one that this export had begun."""
    digest = hashlib.sha256()
    for shard in store.shards:
        digest.update(shard.mark.read_bytes())
    claim = {"store": digest.hexdigest()}
    if (target / UNFINISHED).is_file():
        if read_json(target / UNFINISHED, "an export's mark") != claim:
            raise PipelineError(f"{target}: holds part of another export", OTHER)
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PipelineError(f"{target}: exists already", OTHER)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / UNFINISHED, claim)
