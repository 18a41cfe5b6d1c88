"""Reading a store: a folder of shards with the regions of many images. The format is specified in README.md.

Letters: N images of a store, n of a shard, B of a request, K regions per image, D feature dimensions.
Opening a store reads no features; they are memory-mapped and paged in as they are asked for.
"""

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detector.regions import Regions
from pipeline.errors import PipelineError

FORMAT = "scan-pipeline/shards"
VERSION = 1
MANIFEST = "manifest.json"
DTYPES = {"F16": np.float16, "F32": np.float32, "I32": np.int32}
TENSORS = (  # every shard holds these, in this order
    "features",  # (n, K, D) float16 or float32
    "boxes",  # (n, K, 4) float32
    "object_ids",  # (n, K) int32
    "object_scores",  # (n, K) float32
    "attribute_ids",  # (n, K) int32
    "attribute_scores",  # (n, K) float32
    "image_sizes",  # (n, 2) int32: height, width
)
EXTRACT_AGAIN = "delete its .json and run the extraction again"


class Shard:
    """One committed shard: its rows and its memory-mapped tensors."""

    def __init__(self, mark: Path, roots: Sequence[str]):
        self.mark = mark
        self.path = mark.with_suffix(".safetensors")
        content = read_json(mark, "a shard's commit mark")
        try:
            self.image_ids: list[str] = content["image_ids"]
            self.failures: list[dict[str, str]] = content["failures"]
            self.sha256: str = content["sha256"]
            self._paths: list[str | None] = content["paths"]
            self._roots = [roots[index] if roots else "" for index in content["roots"]]
        except (KeyError, TypeError, IndexError) as error:
            raise PipelineError(f"{mark}: no {error} in it; expected a shard's commit mark; extract again") from error

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Memory maps by name, each (n, …)."""
        maps = map_safetensors(self.path)
        for name in TENSORS:
            if name not in maps or len(maps[name]) != len(self):
                found = f"{len(maps[name])} rows of" if name in maps else "no"
                raise PipelineError(f"{self.path}: {found} {name}, expected {len(self)} rows; {EXTRACT_AGAIN}")
        return maps

    def regions(self, row: int) -> Regions:
        """Everything about the image in a row, read from disk."""
        values = {name: np.array(self.tensors[name][row]) for name in TENSORS if name != "image_sizes"}
        height, width = self.tensors["image_sizes"][row].tolist()
        return Regions(**values, image_size=(height, width))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows: (B,) -> (B, K, D)."""
        return self.tensors["features"][rows]

    def image_path(self, row: int) -> Path | None:
        """The photo, if it is still where it was extracted from."""
        name = self._paths[row]
        path = None if name is None else Path(self._roots[row], name)
        return path if path is not None and path.is_file() else None


class _Images(Mapping[str, Regions]):
    """Images by id, in row order, over parts that hold a run of rows each: the shards of a store, or several stores."""

    num_regions: int
    feature_dim: int
    dtype: np.dtype[Any]

    def __init__(self, parts: Sequence["Shard | Store"], double: str):
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.image_ids: list[str] = [image_id for part in parts for image_id in part.image_ids]
        self._rows = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if len(self._rows) != len(self.image_ids):
            image_id = next(name for name, count in Counter(self.image_ids).items() if count > 1)
            raise PipelineError(f"image {image_id} is there twice: {double}")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.image_ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def __getitem__(self, image_id: str) -> Regions:
        return self.regions(self._rows[image_id])

    def row(self, image_id: str) -> int:
        """Row of an image id. KeyError where there is none."""
        return self._rows[image_id]

    def regions(self, row: int) -> Regions:
        """Everything about the image in a row, read from disk."""
        part, local = self._locate(row)
        return part.regions(local)

    def image_path(self, row: int) -> Path | None:
        """The photo in a row, if it is still where it was extracted from."""
        part, local = self._locate(row)
        return part.image_path(local)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows, in the stored type: (B,) -> (B, K, D). Reads nothing else."""
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.num_regions, self.feature_dim), self.dtype)
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(part_of):
            here = part_of == index
            out[here] = self._parts[index].gather(rows[here] - self._starts[index])
        return out

    def _locate(self, row: int) -> tuple["Shard | Store", int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[index], row - int(self._starts[index])


class Store(_Images):
    """The regions of many images. Cheap to open, cheap to send to another process."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = read_manifest(path)
        self.num_regions = self.manifest["num_regions"]
        self.feature_dim = self.manifest["feature_dim"]
        self.dtype = np.dtype(self.manifest["dtype"])
        self.extraction: dict[str, Any] = self.manifest["extraction"]
        self.object_names: list[str] = self.manifest["object_names"]
        self.attribute_names: list[str] = self.manifest["attribute_names"]
        self.has_boxes: bool = self.manifest["has_boxes"]
        self.shards = [Shard(mark, self.manifest["image_roots"]) for mark in commit_marks(path)]
        super().__init__(self.shards, f"in two shards of {path}; scan-pipeline inspect {path} says more")

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.path,)


class StoreCollection(_Images):
    """Several stores as one, in order."""

    def __init__(self, stores: Sequence[Store]):
        self.stores = list(stores)
        first = self.stores[0]
        self.num_regions, self.feature_dim, self.dtype = first.num_regions, first.feature_dim, first.dtype
        self.object_names, self.attribute_names = first.object_names, first.attribute_names
        self.extraction = first.extraction
        names = ", ".join(str(store.path) for store in self.stores)
        super().__init__(self.stores, f"in two stores of {names}; choose other stores with --features")

    def __reduce__(self) -> tuple[Any, ...]:
        return open_stores, ([store.path for store in self.stores],)


def open_store(path: Path | str) -> Store:
    """Open a store folder as a mapping from image id to `Regions`.

    Raises:
        PipelineError: no store there, or one that is damaged or of another version.
    """
    return Store(Path(path))


def open_stores(paths: Sequence[Path | str]) -> StoreCollection:
    """Open several stores as one.

    Raises:
        PipelineError: none given, a store without images, or stores whose features cannot be mixed.
    """
    from pipeline.config import differences

    stores = [open_store(path) for path in paths]
    if not stores:
        raise PipelineError("no store given; name one with --features")
    for store in stores:
        if not len(store):
            raise PipelineError(f"{store.path}: holds no image yet; run its extraction again, it continues")
        first = stores[0]
        keys = ("num_regions", "feature_dim", "extraction")
        changed = differences({k: first.manifest.get(k) for k in keys}, {k: store.manifest.get(k) for k in keys})
        if changed:
            raise PipelineError(
                f"{store.path} and {first.path}: their features cannot be mixed ({'; '.join(changed[:3])}); "
                "choose stores of one kind with --features"
            )
    return StoreCollection(stores)


def commit_marks(folder: Path) -> list[Path]:
    """The commit marks of a store's shards, in order."""
    return sorted(folder.glob("shard-[0-9]*.json"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        PipelineError: no manifest, or not one that this version reads.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PipelineError(f"{folder}: not a feature store (no {MANIFEST}); make one with scan-pipeline extract")
    manifest = read_json(path, "a store's manifest")
    if manifest.get("format") != FORMAT or manifest.get("format_version") != VERSION:
        found = f"{manifest.get('format')} {manifest.get('format_version')}"
        raise PipelineError(f"{path}: found format {found}, expected {FORMAT} {VERSION}; extract the photos again")
    return manifest


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        PipelineError: not there, or not JSON.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: not readable as {what} ({error}); run the extraction again") from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: found a {type(content).__name__}, expected {what}")
    return content


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Memory-map the tensors of a safetensors file: 8 bytes header length, a JSON header, then the numbers.

    Raises:
        PipelineError: missing, truncated, or with a header that does not fit the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        start = 8 + length
        return {name: _map(path, entry, start, size) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise PipelineError(f"{path}: damaged or truncated ({error}); {EXTRACT_AGAIN}") from error


def _map(path: Path, entry: Mapping[str, Any], start: int, size: int) -> np.ndarray:
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    if first < 0 or start + last > size or last - first != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"bytes {first} to {last} do not hold {shape} of {dtype} in a file of {size} bytes")
    if last == first:  # nothing to map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=shape)
