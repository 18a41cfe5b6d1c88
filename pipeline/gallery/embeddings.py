"""Region embeddings of the photos to search, stored by shard, so that no query encodes a photo again.

    index/t2i_mean-1f3a…/            a generation: all that is derived from one model of one run
      run.json                       the run, and its model
      train2014-9c41…/               the parts of one store
        <sha256 of a shard>.safetensors

Parts are found by what they were made from, so a changed shard or another model never reads an old part. What a store no longer
has is removed, and so is a generation whose run has another model; who has opened one keeps its files until it closes them.

Letters: N images, n of a shard, K regions, E joint space.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matcher.checkpoint import model_sha256
from matcher.collection import EncodedImages
from matcher.errors import MatcherError
from matcher.fit import BEST
from pipeline.errors import PipelineError
from pipeline.files import disk_errors, read_json, remove_abandoned, write_json
from pipeline.gallery.parts import read_ahead, read_part, write_part
from pipeline.runs import SHIPPED, STARTER, TrainedRun
from pipeline.store.reader import Shard, Store, StoreCollection

INDEX = Path("index")  # of the workspace, beside features/ and runs/
RUN = "run.json"
ENCODE_BLOCK = 256  # photos
MANY = 2000  # photos to encode; fewer need no bar
SHORT = 12  # hexadecimal digits of a checksum in a folder's name


class StoredEmbeddings:
    """Region embeddings (N, K, E) of a collection: `matcher.similarity.RegionEmbeddings`. Made by `store_embeddings`."""

    def __init__(self, parts: Sequence[np.ndarray], device: torch.device):
        """parts: (n, K, E) float16 of every shard, in the collection's order."""
        self.parts, self.device = parts, device
        self._starts = np.cumsum([0, *map(len, parts)])
        self._addresses = np.array([part.__array_interface__["data"][0] for part in parts])
        self.rows = np.arange(self._starts[-1])  # (N,) of the collection

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, K, E)."""
        return len(self.rows), *self.parts[0].shape[1:]

    def __getitem__(self, images: slice) -> Tensor:
        """(n, K, E) float32 of consecutive images, on the model's device."""
        return self.gather(np.arange(len(self.rows))[images])

    def gather(self, images: np.ndarray) -> Tensor:
        """(B, K, E) float32 of some images, on the model's device."""
        out = np.empty((len(images), *self.shape[1:]), np.float16)
        part_of, own = self._places(self.rows[images])
        # one by one: scattered rows have a part each, and indexing with arrays takes 6 us a part
        for place, (part, row) in enumerate(zip(part_of.tolist(), own.tolist(), strict=True)):
            out[place] = self.parts[part][row]
        return torch.from_numpy(out).to(self.device).float()

    def among(self, rows: np.ndarray) -> "StoredEmbeddings":
        """Those of some rows of the collection, in their order."""
        some = copy(self)
        some.rows = rows
        return some

    def read_ahead(self) -> "StoredEmbeddings":
        """Have the disk read these images, scattered ones, before they are asked for; returns itself."""
        part_of, own = self._places(self.rows)
        size = self.parts[0].strides[0]
        read_ahead(self._addresses[part_of] + own * size, size)
        return self

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each row (n,), and its row there (n,)."""
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        return part_of, rows - self._starts[part_of]


def by_part(
    parts: Sequence[np.ndarray], starts: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each part that has some of the rows: the part, their places (n,) in `rows`, and in the part (n,).

    `starts` are the parts' first rows.
    """
    part_of = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(part_of, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(part_of[order])) + 1) if len(rows) else ():
        index = part_of[places[0]]
        yield parts[index], places, rows[places] - starts[index]


def generation(run: TrainedRun, root: Path) -> Path:
    """The folder of all that is derived from a run's model."""
    name = STARTER if run.folder == SHIPPED else _folder_name(run.folder, root)
    return root / f"{name}-{run.sha256[:SHORT]}"


def store_embeddings(
    run: TrainedRun,
    collection: StoreCollection,
    root: Path,
    *,
    verify: bool = True,
    report: Callable[[str], Any] = print,
) -> StoredEmbeddings:
    """Make the parts that are missing, remove those of shards that are gone, and open them all.

    Args:
        run, collection: the model, and stores that it can read.
        root: the index folder, made where it does not exist.
        verify: compare every part with its checksum, and make a damaged one again; else only truncated ones are noticed.
        report: takes a line that the user should see.

    Raises:
        DamagedShard: bytes of a shard are not those that were written.
        PipelineError: a disk that is full or cannot be written to.
    """
    folder = generation(run, root)
    parts: list[np.ndarray | None] = []
    missing: list[tuple[int, Path, Shard]] = []
    for store in collection.stores:
        for shard in store.shards:
            path = store_folder(run, root, store) / f"{shard.sha256}.safetensors"
            part = _read(run, collection, path, shard, verify)
            missing += [(len(parts), path, shard)] if part is None else []
            parts.append(part)
    if missing:
        with disk_errors(root):
            for path in {path.parent for _, path, _ in missing}:
                path.mkdir(parents=True, exist_ok=True)
        write_json(folder / RUN, {"run": os.path.relpath(run.folder, root), "model_sha256": run.sha256})
        photos = sum(len(shard) for *_, shard in missing)
        with tqdm(total=photos, unit="photo", desc="index", disable=photos < MANY, leave=False) as bar:
            for index, path, shard in missing:
                write_part(path, {"regions": _encode(run, collection, shard, bar)}, _source(run, shard))
                parts[index] = _read(run, collection, path, shard, False)
        _remove_generations(root, folder, report)
    for store in collection.stores:
        remove_files(store_folder(run, root, store), "*.*", _is_of({shard.sha256 for shard in store.shards}))
    made = [part for part in parts if part is not None]
    if len(made) < len(parts):  # photos would be taken for their neighbours
        raise PipelineError(
            f"{folder}: another process removed parts of it, which knows other shards of these stores",
            "run the same command again",
        )
    return StoredEmbeddings(made, run.model.device)


def store_folder(run: TrainedRun, root: Path, store: Store) -> Path:
    """The folder of all that is derived from a store and a run's model."""
    return generation(run, root) / _folder_name(store.path, root)


def remove_files(folder: Path, pattern: str, kept: Callable[[str], bool]) -> None:
    """Remove the files of a pattern whose names are not kept, and what killed processes left; not what others are writing."""
    with suppress(OSError):  # an index that can only be read is as good
        remove_abandoned(folder)
        for path in folder.glob(pattern):
            if path.name[0] != "." and not kept(path.name):
                path.unlink(missing_ok=True)


def _is_of(shards: Set[str]) -> Callable[[str], bool]:
    return lambda name: name.split(".")[0] in shards


def _source(run: TrainedRun, shard: Shard) -> dict[str, str]:
    return {"model_sha256": run.sha256, "shard_sha256": shard.sha256}


def _read(run: TrainedRun, collection: StoreCollection, path: Path, shard: Shard, verify: bool) -> np.ndarray | None:
    part = read_part(path, _source(run, shard), verify=verify) or {}
    regions = part.get("regions")
    expected = EncodedImages(run.model, collection, np.arange(len(shard))).shape
    fits = regions is not None and regions.shape == expected and regions.dtype == np.float16
    return regions if fits else None


def _encode(run: TrainedRun, collection: StoreCollection, shard: Shard, bar: tqdm) -> np.ndarray:
    """(n, K, E) float16 of a shard, whose bytes are compared with their checksum: what is stored outlives its repair."""
    shard.refuse_if_changed()
    first = collection.first_row(shard)
    encoded = EncodedImages(run.model, collection, np.arange(first, first + len(shard)))
    out = np.empty(encoded.shape, np.float16)
    for start in range(0, len(shard), ENCODE_BLOCK):
        block = encoded[start : start + ENCODE_BLOCK]
        out[start : start + len(block)] = block.half().cpu().numpy()
        bar.update(len(block))
    if not np.isfinite(out).all():
        raise PipelineError(f"{shard.path}: {run.folder} makes embeddings of it that are not finite numbers as float16")
    return out


def _remove_generations(root: Path, own: Path, report: Callable[[str], Any]) -> None:
    """Remove the generations, other than one's own, whose run has another model by now."""
    for path in set(root.glob(f"*/{RUN}")) - {own / RUN}:
        with suppress(OSError, PipelineError, MatcherError, KeyError, TypeError):
            about = read_json(path, "the run of an index")
            model = Path(os.path.normpath(root / about["run"])) / BEST
            if model.is_file() and model_sha256(model) != about["model_sha256"]:
                shutil.rmtree(path.parent)
                report(f"note: {path.parent}: removed, its run has another model by now")


def _folder_name(folder: Path, root: Path) -> str:
    """The name of a run or a store in the index; two of one name in different places are told apart."""
    place = os.path.relpath(folder.resolve(), root.resolve())
    return f"{folder.resolve().name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:SHORT]}"
