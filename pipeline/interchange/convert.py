"""Any known format -> a store, and a store -> any of them. Image by image, so that memory does not grow with the store."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from detector.regions import Regions
from pipeline.errors import PipelineError, printable
from pipeline.files import remove_abandoned, write_json
from pipeline.inputs.sources import photo_sha256
from pipeline.inputs.split_words import split_of_name
from pipeline.interchange import hdf5, npz, original, parquet, tsv
from pipeline.interchange.common import (
    NEARLY,
    ExportFeaturesConfig,
    ImportFeaturesConfig,
    Row,
    Source,
    check_ids,
    not_held,
    visual_genome_names,
)
from pipeline.store.format import CAPTIONS, FEATURES, MANIFEST, commit_marks
from pipeline.store.reader import Store, open_store
from pipeline.store.writer import ShardRows, claim_store, commit_shard, is_committed, write_summary

SHARD_SIZE = 128  # images; 38 MB at 36 x 2048 float32


@dataclass(frozen=True)
class Format:
    """A format by its two functions."""

    read: Callable[[Path, ImportFeaturesConfig], Source]
    write: Callable[[Store, Path, ExportFeaturesConfig], list[str]]
    holds: Collection[str]  # of "boxes", "classes" and "dtype" (of the features)
    is_folder: bool = False  # what is written is a folder, or goes into one
    cannot_hold: Callable[[str], str | None] = lambda _: None  # the reason why an image id would not come back


FORMATS = {
    "original": Format(original.read, original.write, {"dtype"}, True, original.cannot_hold),
    "tsv": Format(tsv.read, tsv.write, {"boxes"}),
    "tsv10": Format(tsv.read, tsv.write, {"boxes", "classes"}),
    "npz": Format(npz.read, npz.write, {"boxes", "classes"}, True, npz.cannot_hold),
    "hdf5": Format(hdf5.read, hdf5.write, {"boxes", "classes"}),
    "parquet": Format(parquet.read, parquet.write, {"boxes", "classes", "dtype"}),
}


def import_features(config: ImportFeaturesConfig, *, report: Callable[[str], None] = print) -> Store:
    """A file or folder of any known format -> a store. Killed, the same call continues.

    `report` is called with each line about what cannot be kept.

    Raises:
        PipelineError: an unknown format, damage (file and place are named), images that differ in their number of
            regions, or an output that holds something else.
    """
    source = Path(config.source)
    format = config.format or detect(source)
    _refuse_options(config, format, {"split": "original", "boxes": "original", "ids": "hdf5"})
    opened = FORMATS[format].read(source, config)
    for note in opened.notes:
        report(note)
    target = Path(config.output or FEATURES / opened.name)
    rows = _check_uniform(source, opened.rows, config.num_regions)
    first = next(rows, None)
    if first is None:
        raise PipelineError(f"{source}: holds no image")
    others = _write(target, _manifest(first, opened, config), chain([first], rows), opened.total)
    if others:
        report(
            f"{len(others):,} photos in {config.images} are others than at the first import, such as {others[0]}: their features "
            "stay those of the photos before, and they are marked as changed; another --output takes them as they are"
        )
    if opened.captions:
        _write_captions(target, open_store(target).image_ids, opened.captions, split_of_name(config.split))
    else:  # those of an earlier import are not of this one
        (target / CAPTIONS).unlink(missing_ok=True)
    store = open_store(target)
    _report_boxes(store, report)
    if config.images and (missing := len(store) - len(store.recorded_places())):
        report(f"no photo of {missing:,} of the {len(store):,} images is in {config.images}")
    return store


def _report_boxes(store: Store, report: Callable[[str], None]) -> None:
    """Say where boxes cannot be corners in pixels of their photos."""
    backward = beyond = unsized = 0
    for shard in store.shards:
        boxes, sizes = shard.tensors["boxes"], shard.tensors["image_sizes"][:, None, ::-1]  # (n, K, 4), (n, 1, 2)
        backward += int((boxes[..., 2:] < boxes[..., :2]).any(axis=(1, 2)).sum())
        unsized += int(((boxes > 1 + NEARLY).any(axis=2, keepdims=True) & (sizes == 0)).any(axis=(1, 2)).sum())
        beyond += int(((boxes[..., 2:] > sizes * (1 + NEARLY) + 1) & (sizes > 0)).any(axis=(1, 2)).sum())
    if unsized:
        report(
            f"boxes of {unsized:,} images are in pixels, and the sizes of their photos are not known: they stay pixels, and can be "
            "shown in no photo; --images DIR measures the photos"
        )
    if backward:  # as width and height in place of right and bottom are, mostly
        report(f"boxes of {backward:,} images end before they begin; they are read as left, top, right, bottom")
    if beyond:  # as those of a photo that was made smaller, or whose sides were exchanged
        report(f"boxes of {beyond:,} images end beyond their photo; they are read as pixels of the photo's own size")


def export_features(config: ExportFeaturesConfig, *, report: Callable[[str], None] = print) -> None:
    """A store -> one of the formats. The output takes its name when it is complete.

    `report` is called with each line about what the format does not hold.

    Raises:
        PipelineError: ids or a kind of store that the format cannot hold, or an output that is there already.
    """
    store, target, format = open_store(config.store), Path(config.output), FORMATS[config.format]
    _refuse_options(config, config.format, {"split": "original", "captions": "original"})
    if not len(store):
        raise PipelineError(f"{store.path}: holds no image yet", "run its extraction again, it continues")
    if not store.complete:
        report(f"{store.path} is not complete: these are the {len(store):,} images that it holds so far")
    if not format.is_folder and target.exists():
        raise PipelineError(f"{target}: exists already", "delete it, or choose another --output")
    if format.is_folder and target.is_file():
        raise PipelineError(f"{target}: a file; expected a folder")
    check_ids(store.image_ids, target, format.cannot_hold)
    store.refuse_changed()
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in {target, target.parent}:
        if folder.is_dir():
            remove_abandoned(folder)
    for note in (*format.write(store, target, config), *not_held(store, format.holds)):
        report(note)


def detect(source: Path) -> str:
    """The format of a file or folder, from what it holds.

    Raises:
        PipelineError: nothing there, or nothing that is known.
    """
    wanted = "expected a folder with SPLIT_ims.npy files or with one .npz an image, a .tsv, HDF5 or parquet file"
    if source.is_dir():
        if (source / MANIFEST).is_file():
            raise PipelineError(f"{source}: a store already; {wanted}")
        if next(source.glob("*_ims.npy"), None):
            return "original"
        if (source / npz.UNFINISHED).is_file() or next(source.rglob(f"*{npz.SUFFIX}"), None):
            return "npz"
        raise PipelineError(f"{source}: a folder without SPLIT_ims.npy and .npz files; {wanted}")
    if not source.is_file():
        raise PipelineError(f"{source}: not there; {wanted}")
    with source.open("rb") as file:
        start = file.read(8)
    if start == hdf5.MAGIC or source.suffix.lower() in {".h5", ".hdf5"}:
        return "hdf5"
    if start.startswith(parquet.MAGIC):
        return "parquet"
    if start.startswith((b"PK\x03\x04", b"\x93NUMPY")):
        raise PipelineError(f"{source}: a single NumPy file; {wanted}")
    return "tsv"


def _refuse_options(config: Any, format: str, belongs_to: dict[str, str]) -> None:
    """An option that would silently do nothing is a misunderstanding."""
    for option, expected in belongs_to.items():
        if (value := getattr(config, option)) and format != expected:
            raise PipelineError(f"--{option} {value}: is for the {expected} format; this is {format}")


def _check_uniform(source: Path, rows: Iterator[Row], num_regions: int | None) -> Iterator[Row]:
    """The rows, cut to K regions, after checking that they can share a store."""
    first: Row | None = None
    seen: set[str] = set()
    for found in rows:
        row = found if num_regions is None else _cut(source, found, num_regions)
        first = first or row
        shape, expected = row.regions.features.shape, first.regions.features.shape
        if shape[0] != expected[0]:
            raise PipelineError(
                f"{source}: {row.image_id!r} has {shape[0]} regions, the first image {expected[0]}; a store holds the same "
                "number for every image",
                "import a file of fixed size (such as trainval_36), or take the first K with --num-regions K",
            )
        if shape != expected:
            raise PipelineError(
                f"{source}: {row.image_id!r} has features of {shape[1]} numbers, the first image {expected[1]}"
            )
        if empty := shape[0] - int(row.regions.features.any(axis=1).sum()):  # they would be looked at as the others are
            raise PipelineError(
                f"{source}: {row.image_id!r} has {empty} of {shape[0]} regions whose features are all 0, as padding has",
                "take the first K, which are no padding, with --num-regions K, or leave the image out",
            )
        if (row.has_boxes, row.has_classes) != (first.has_boxes, first.has_classes):
            raise PipelineError(
                f"{source}: {row.image_id!r} has other columns than the first image", "import them apart"
            )
        if row.image_id in seen:
            raise PipelineError(f"{source}: duplicate image id {row.image_id!r}; a store holds every image once")
        seen.add(row.image_id)
        yield row


def _cut(source: Path, row: Row, count: int) -> Row:
    """The first K regions, in the order of the file."""
    regions = row.regions
    if len(regions) < count:
        raise PipelineError(
            f"{source}: {row.image_id!r} has {len(regions)} regions; --num-regions {count} needs that many of every image"
        )
    names = [name for name in Regions.__dataclass_fields__ if name != "image_size"]
    return replace(row, regions=replace(regions, **{name: getattr(regions, name)[:count] for name in names}))


def _manifest(first: Row, opened: Source, config: ImportFeaturesConfig) -> dict[str, Any]:
    num_regions, feature_dim = map(int, first.regions.features.shape)
    objects, attributes = visual_genome_names() if first.has_classes else ([], [])
    return {
        "num_regions": num_regions,
        "feature_dim": feature_dim,
        "dtype": config.dtype or ("float16" if first.regions.features.dtype == np.float16 else "float32"),
        "shard_size": SHARD_SIZE,
        "has_boxes": first.has_boxes,
        "image_roots": [str(Path(config.images).resolve())] if config.images else [],
        "object_names": objects,
        "attribute_names": attributes,
        "extraction": {"imported": opened.kind, "feature_dim": feature_dim},
        "source": opened.name,
    }


def _write(output: Path, manifest: dict[str, Any], rows: Iterator[Row], total: int | None) -> list[str]:
    """Shard after shard; those that are committed already are compared, not written again.

    Returns:
        Ids of the photos that are others than when their shard was written.
    """
    manifest = claim_store(output, manifest)
    number, others = 0, []
    with tqdm(total=total, unit="image", desc=printable(output.name)) as bar:
        while batch := list(islice(rows, manifest["shard_size"])):
            ids, regions = [row.image_id for row in batch], [row.regions for row in batch]
            shard = ShardRows(ids, [row.path for row in batch], [0] * len(batch), regions)
            for row in batch:  # as they are now: what features were made from, nobody else can tell
                if row.path and (sha256 := photo_sha256(manifest["image_roots"][0], row.path)):
                    shard.photo_sha256[row.image_id] = sha256
            now = dict(shard.photo_sha256)
            if not is_committed(output, number, shard, manifest):
                commit_shard(output, number, shard, manifest)
            others += [image_id for image_id, sha256 in now.items() if shard.photo_sha256[image_id] != sha256]
            number += 1
            bar.update(len(batch))
    if (stored := len(commit_marks(output))) > number:
        raise PipelineError(
            f"{output}: holds {stored:,} shards, of more images than what is imported",
            f"choose another folder with --output, or delete {output}",
        )
    write_summary(output, manifest, number)
    return others


def _write_captions(folder: Path, image_ids: Sequence[str], captions: Sequence[str], split: str) -> None:
    """The captions beside the shards, in Karpathy's layout: JSON holds every image id."""
    every = len(captions) // len(image_ids)
    images = []
    for index, name in enumerate(image_ids):
        texts = enumerate(captions[index * every : (index + 1) * every])
        sentences = [{"raw": text, "sentid": f"{name}#{n}"} for n, text in texts]
        images.append({"filename": name, "split": split, "sentences": sentences})
    write_json(folder / CAPTIONS, {"images": images})
