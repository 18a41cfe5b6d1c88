"""Reading a store: a folder of shards with the regions of many images. The format is specified in README.md beside this file.

Letters: N images of a store, n of a shard, B of a request, K regions per image, D feature dimensions.
Opening a store reads no features; they are memory-mapped and paged in as they are asked for.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, combinations, islice, product, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from configs.files import file_sha256, json_sha256
from detector.regions import Regions
from pipeline.errors import DamagedShard, PipelineError
from pipeline.store.format import commit_marks, repair_hint, stays_inside, tensor_shapes
from pipeline.store.manifest import read_manifest, settings_sha256
from pipeline.store.marks import read_mark
from pipeline.store.plan import planned_photos
from pipeline.store.roots import is_remote, place_of, split_place
from pipeline.store.tensors import map_safetensors

UNKNOWN = "0" * 64  # in place of the checksum of a photo that was not seen, as of imported features
COMPARED = 20  # photos that tell a copied project from other photos


class ClassNames(NamedTuple):
    """The names that a store's `object_ids` and `attribute_ids` index; both empty where it has no classes."""

    objects: list[str]
    attributes: list[str]
    least: float = 0.0  # score of an object below which its name says nothing


class Shard:
    """One committed shard: its rows and its memory-mapped tensors."""

    def __init__(self, mark: Path, manifest: Mapping[str, Any]):
        self.mark = mark
        self.path = mark.with_suffix(".safetensors")
        self._manifest = manifest
        self._mark_sha256 = file_sha256(mark)  # before it is read: then what was read is no older
        content = read_mark(mark)
        if content.settings_sha256 != settings_sha256(manifest):
            raise PipelineError(f"{mark}: made with other settings than its store", repair_hint(mark.parent))
        self.image_ids, self.failures = content.image_ids, content.failures
        self.sha256 = content.sha256  # of the tensors file, as it was written
        self._paths, self._roots, self._is_verified = content.paths, content.roots, False
        # Of each row's photo, 32 bytes a row, not text: those of a million photos fit into 32 MB.
        photos = content.photo_sha256
        self.photo_sha256 = b"".join(bytes.fromhex(photos.get(name, UNKNOWN)) for name in self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """Memory maps by name, each (n, …).

        Raises:
            PipelineError: they are damaged, or the shard was written again since its mark was read.
        """
        maps = map_safetensors(self.path)
        if file_sha256(self.mark) != self._mark_sha256:  # then its rows may be of other photos
            raise PipelineError(
                f"{self.path}: written again since the store was opened", "open it again, or run the same command again"
            )
        for name, (shape, dtype) in tensor_shapes(self._manifest).items():
            expected = (len(self), *shape), dtype
            found = (maps[name].shape, maps[name].dtype) if name in maps else None
            if found != expected:
                what = f"{name} {found[0]} {found[1]}" if found else f"no {name}"
                raise PipelineError(
                    f"{self.path}: found {what}, expected {expected[0]} {expected[1]}",
                    repair_hint(self.path.parent),
                )
        return maps

    def refuse_if_changed(self) -> None:
        """Compare the bytes of its tensors with their checksum. Reads them all, and once only where they are right.

        Raises:
            DamagedShard: they are not those that were written.
        """
        if not self._is_verified and file_sha256(self.path) != self.sha256:
            raise DamagedShard(f"{self.path}: changed since it was written", repair_hint(self.path.parent))
        self._is_verified = True

    def regions(self, row: int) -> Regions:
        """Everything about the image in a row, read from disk."""
        values = {name: np.array(array[row]) for name, array in self.tensors.items()}
        height, width = values.pop("image_sizes").tolist()
        return Regions(**values, image_size=(height, width))

    @property
    def class_names(self) -> ClassNames:
        """What its object and attribute ids index."""
        return ClassNames(self._manifest["object_names"], self._manifest["attribute_names"])

    def folders(self) -> Iterator[str]:
        """The folder of photos that each row is of; the store where it has one alone, or none."""
        roots = self._manifest["image_roots"]
        for root in self._roots:
            yield roots[root] if len(roots) > 1 and 0 <= root < len(roots) else str(self.path.parent)

    def recorded_places(self) -> Iterator[str]:
        """Where each photo of a known, absolute folder was when it was extracted."""
        roots = self._manifest["image_roots"]
        for name, root in zip(self._paths, self._roots, strict=True):
            if name is not None and 0 <= root < len(roots) and (is_remote(roots[root]) or os.path.isabs(roots[root])):
                yield place_of(roots[root], name)

    def image_place(self, row: int) -> str:
        """Where the photo was extracted from, or moved to together with the store, for `read_photo`; "" where it is gone.
        Never outside of its root. Of a URL, and of a photo in a container, nobody knows before it is read."""
        name, root = self._paths[row], self._roots[row]
        if name is None or not stays_inside(name):
            return ""
        folder = os.path.abspath(self.path.parent)
        for roots in (self._manifest["image_roots"], self._manifest["relative_roots"]):
            if 0 <= root < len(roots):
                place = place_of(roots[root], name, folder)
                if is_remote(place) or os.path.isfile(split_place(place)[0]):
                    return place
        return ""


class StoredImages(Mapping[str, Regions]):
    """The regions of many images by id, in row order: the rows of some shards, one after the other."""

    def __init__(self, shards: Sequence[Shard], *, num_regions: int, feature_dim: int, dtype: np.dtype[Any]):
        self.shards = list(shards)
        self.num_regions, self.feature_dim, self.dtype = num_regions, feature_dim, dtype
        self._starts = np.cumsum([0, *map(len, self.shards)])
        self._name([image_id for shard in self.shards for image_id in shard.image_ids])

    def _name(self, image_ids: list[str]) -> None:
        self.image_ids = image_ids
        self._rows = {image_id: row for row, image_id in enumerate(image_ids)}

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
        shard, local = self.locate(row)
        return shard.regions(local)

    def first_row(self, shard: Shard) -> int:
        """Row of a shard's first image; the others follow."""
        return int(self._starts[self.shards.index(shard)])

    def image_place(self, row: int) -> str:
        """Where the photo in a row is: a path, a URL, or CONTAINER::NAME; "" where it is gone."""
        shard, local = self.locate(row)
        return shard.image_place(local)

    def image_path(self, row: int) -> Path | None:
        """The file of the photo in a row; None where it is gone, or no file of its own."""
        place = self.image_place(row)
        return Path(place) if os.path.isfile(place) else None

    def photo_sha256(self, row: int) -> str | None:
        """Checksum of the photo in a row as it was extracted; None where nobody knows."""
        shard, local = self.locate(row)
        sha256 = shard.photo_sha256[32 * local : 32 * local + 32].hex()
        return None if sha256 == UNKNOWN else sha256

    def rows_of_photo(self, sha256: str) -> list[int]:
        """Rows of the photos that had this checksum when they were extracted."""
        wanted, rows = bytes.fromhex(sha256), list[int]()
        for start, shard in zip(self._starts.tolist(), self.shards, strict=False):
            known = shard.photo_sha256
            if wanted in known:
                rows += [start + local for local in range(len(shard)) if known[32 * local : 32 * local + 32] == wanted]
        return rows

    def names_of(self, row: int) -> ClassNames:
        """Class names of the store that the image in a row is in; stores of one collection may differ in them."""
        return self.locate(row)[0].class_names

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features of some rows, in the stored type: (B,) -> (B, K, D). Reads nothing else.

        Raises:
            IndexError: a row that is not there; negative ones are not.
        """
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.num_regions, self.feature_dim), self.dtype)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(shard_of).tolist():
            features = self.shards[index].tensors["features"]
            for place in np.flatnonzero(shard_of == index).tolist():
                out[place] = features[rows[place] - self._starts[index]]
        return out

    def locate(self, row: int) -> tuple[Shard, int]:
        """The shard of a row, and the row in it."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.shards[index], row - int(self._starts[index])

    def refuse_changed(self, rows: np.ndarray | None = None) -> None:
        """Compare the bytes of every shard of some rows (None: of all) with their checksums, four at a time, with a bar.

        Raises:
            DamagedShard: they are not those that were written.
        """
        used = range(len(self.shards)) if rows is None else np.unique(self._starts[1:].searchsorted(rows, side="right"))
        shards = [self.shards[index] for index in used]
        with ThreadPoolExecutor(4) as pool:
            checked = pool.map(Shard.refuse_if_changed, shards)
            for _ in tqdm(checked, "checksums", len(shards), unit="shard", delay=1, leave=False):
                pass

    @property
    def content_sha256(self) -> str:
        """Checksum of which image each row is of, and of all tensors as they were written."""
        return json_sha256([self.image_ids, [shard.sha256 for shard in self.shards]])

    def _duplicate(self) -> str | None:
        """An image id that two rows have."""
        if len(self._rows) == len(self.image_ids):
            return None
        return next(image_id for image_id, count in Counter(self.image_ids).items() if count > 1)


class Store(StoredImages):
    """One store. Cheap to open, cheap to send to another process."""

    def __init__(self, path: Path):
        self.path, marks = path, commit_marks(path)
        self.manifest = _as_copied(path, read_manifest(path))
        self.extraction: dict[str, Any] = self.manifest["extraction"]
        self.object_names: list[str] = self.manifest["object_names"]
        self.attribute_names: list[str] = self.manifest["attribute_names"]
        self.has_boxes: bool = self.manifest["has_boxes"]
        super().__init__(
            [Shard(mark, self.manifest) for mark in marks],
            num_regions=self.manifest["num_regions"],
            feature_dim=self.manifest["feature_dim"],
            dtype=np.dtype(self.manifest["dtype"]),
        )
        if image_id := self._duplicate():
            raise PipelineError(f"{path}: duplicate image id {image_id!r} in two shards", repair_hint(path))
        counted = self.manifest["counts"]["shards"]
        if self.manifest["complete"] and counted < len(self.shards):  # of photos that are gone, or of another store
            raise PipelineError(
                f"{path}: {len(self.shards):,} shards, and its manifest counts {counted:,}: some are left over",
                "copy the store again, into an empty folder or with rsync --delete",
            )

    @property
    def complete(self) -> bool:
        """Whether it was extracted to its end, and copied so."""
        return self.manifest["complete"] and self.manifest["counts"]["shards"] == len(self.shards)

    def recorded_places(self) -> set[str]:
        """Where its photos were when they were extracted, those of a known folder."""
        return {place for shard in self.shards for place in shard.recorded_places()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.content_sha256, open_store, self.path)


def _as_copied(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a store, with the photos that were copied together with it in place of those of the old project.

    A store that was copied alone may lie beside others' photos: the first ones of the plan decide, by their sizes.
    """
    roots, base = manifest["image_roots"], os.path.abspath(folder)
    near = [os.path.normpath(os.path.join(base, root)) for root in manifest["relative_roots"]]
    if near == roots or not all(map(os.path.isdir, near)) or not any(map(os.path.isdir, roots)):
        return manifest
    photos = [photo for photo in islice(planned_photos(folder), COMPARED) if photo.root < len(near)]
    places = (place_of(near[photo.root], photo.path) for photo in photos)
    sizes = [os.path.getsize(place) if os.path.isfile(place) else -1 for place in places]
    same = sum(size == photo.size for size, photo in zip(sizes, photos, strict=True))
    return {**manifest, "image_roots": near} if 2 * same > len(photos) else manifest


class StoreCollection(StoredImages):
    """Several stores of one kind of features as one, in order; made by `open_stores`."""

    def __init__(self, stores: Sequence[Store], tell_apart: bool = False):
        self.stores, self._told_apart = list(stores), tell_apart
        first = self.stores[0]
        self.extraction = first.extraction
        self.has_boxes = all(store.has_boxes for store in self.stores)
        super().__init__(
            [shard for store in self.stores for shard in store.shards],
            num_regions=first.num_regions,
            feature_dim=first.feature_dim,
            dtype=np.result_type(*(store.dtype for store in self.stores)),
        )
        if tell_apart and self._duplicate():
            self._tell_apart()
        if image_id := self._duplicate():
            names = " and ".join(str(store.path) for store in self.stores if image_id in store)
            raise PipelineError(
                f"{names}: duplicate image id {image_id!r}",
                "extract their folders with one command (extract --images A --images B), which names photos by their folder as "
                "well, or choose other stores with --features",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        paths = [store.path for store in self.stores]
        return _opened_again, (self.content_sha256, open_stores, paths, self._told_apart)

    def overlaps(self) -> Iterator[tuple[Store, Store, int]]:
        """Pairs of stores that hold the same photos, one of a folder and one of a folder in it, and how many photos."""
        for one, other in combinations(self.stores, 2):
            pairs = product(one.manifest["image_roots"], other.manifest["image_roots"])
            nested = any(f"{root}/".startswith(f"{above}/") for pair in pairs for root, above in (pair, pair[::-1]))
            if nested and (shared := len(one.recorded_places() & other.recorded_places())):
                yield one, other, shared

    def _tell_apart(self) -> None:
        """Put the store's name before ids that several stores have: cameras call every first photo IMG_0001.jpg.

        Changes nothing where two stores hold one and the same photo.
        """
        counts, own = Counter(self.image_ids), self.image_ids
        places = [place for row, one in enumerate(own) if counts[one] > 1 and (place := self.image_place(row))]
        if len(set(places)) < len(places):
            return
        for names in ([store.path.name for store in self.stores], [str(store.path) for store in self.stores]):
            stores = chain.from_iterable(
                repeat(name, len(store)) for name, store in zip(names, self.stores, strict=True)
            )
            ids = [f"{name}/{one}" if counts[one] > 1 else one for name, one in zip(stores, own, strict=True)]
            self._name(ids)
            if len(set(names)) == len(names) and not self._duplicate():  # a photo may be in a folder of a store's name
                return


def open_store(path: Path | str) -> Store:
    """Open a store folder as a mapping from image id to `Regions`.

    Raises:
        PipelineError: no store there, or one that is damaged or of another version.
    """
    return Store(Path(path))


def open_stores(paths: Sequence[Path | str], tell_apart: bool = False) -> StoreCollection:
    """Open several stores as one.

    With `tell_apart`, an image id that several stores have for different photos becomes STORE/ID; else it is refused.

    Raises:
        PipelineError: none given, a store without images, or stores whose features cannot be mixed.
    """
    from pipeline.config import config_diff

    stores = [open_store(path) for path in paths]
    if not stores:
        raise PipelineError("no store given", "name one with --features")
    for store in stores:
        if not len(store):
            raise PipelineError(f"{store.path}: holds no image yet", "run its extraction again, it continues")
        first = stores[0]
        keys = ("num_regions", "feature_dim", "extraction")
        kinds = [{key: one.manifest.get(key) for key in keys} for one in (first, store)]
        changed = config_diff(kinds[0], kinds[1], (str(first.path), str(store.path)))
        if changed:
            raise PipelineError(
                f"{store.path} and {first.path}: their features cannot be mixed ({'; '.join(changed[:3])})",
                "choose stores of one kind with --features",
            )
    return StoreCollection(stores, tell_apart)


def _opened_again(content_sha256: str, opened: Callable[..., StoredImages], *stores: Any) -> StoredImages:
    """What another process opened, whose numbers of rows are to mean the same images here."""
    images = opened(*stores)
    if images.content_sha256 != content_sha256:
        raise PipelineError(f"{stores[0]}: changed since another process opened it", "open it there again")
    return images
