"""Small stores with random content, and what it takes to compare them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.regions import Regions
from pipeline.store.reader import Store, open_store
from pipeline.store.writer import ShardRows, claim_store, commit_shard, write_summary

ARRAYS = ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores")


def make_store(
    folder: Path,
    image_ids: Sequence[str],
    *,
    num_regions: int = 3,
    feature_dim: int = 5,
    dtype: str = "float32",
    seed: int = 0,
    shard_size: int = 2,
    photo_sha256: Mapping[str, str] | None = None,
    failed: Sequence[str] = (),
    roots: Sequence[int] = (),
    has_photos: bool = False,
    **changes: object,
) -> Store:
    """A store of random regions with Visual Genome's classes; the photos that failed are in its first shard.

    has_photos: the images are photos below `image_roots`, called by their ids.
    """
    from pipeline.interchange.common import visual_genome_names

    rng = np.random.default_rng(seed)
    objects, attributes = visual_genome_names()
    known = {
        "num_regions": num_regions,
        "feature_dim": feature_dim,
        "dtype": dtype,
        "has_boxes": True,
        "extraction": {"imported": "by hand"},
        "image_roots": [],
        "object_names": objects,
        "attribute_names": attributes,
    } | changes
    manifest = claim_store(folder, known)
    shards = [image_ids[start : start + shard_size] for start in range(0, len(image_ids), shard_size)]
    for number, names in enumerate(shards):
        regions = [random_regions(rng, num_regions, feature_dim) for _ in names]
        checksums = {name: sha256 for name, sha256 in (photo_sha256 or {}).items() if name in names}
        where = roots[number * shard_size :][: len(names)] or [0] * len(names)
        paths = list(names) if has_photos else [None] * len(names)
        rows = ShardRows(list(names), paths, list(where), regions, photo_sha256=checksums)
        if number == 0:
            rows.failures += [{"image_id": name, "path": name, "reason": "truncated"} for name in failed]
        commit_shard(folder, number, rows, manifest)
    write_summary(folder, manifest, len(shards))
    return open_store(folder)


def import_any(source: Path | str, *, report: Callable[[str], None] = print, **options: Any) -> Store:
    """`scan-pipeline import-features SOURCE` with these options."""
    from pipeline.interchange.convert import ImportFeaturesConfig, import_features

    return import_features(ImportFeaturesConfig(source=str(source), **options), report=report)


def random_regions(rng: np.random.Generator, num_regions: int, feature_dim: int) -> Regions:
    return Regions(
        boxes=rng.uniform(0, 99, (num_regions, 4)).astype(np.float32),
        features=rng.normal(size=(num_regions, feature_dim)).astype(np.float32),
        object_ids=rng.integers(0, 1600, num_regions).astype(np.int32),
        object_scores=rng.uniform(size=num_regions).astype(np.float32),
        attribute_ids=rng.integers(0, 400, num_regions).astype(np.int32),
        attribute_scores=rng.uniform(size=num_regions).astype(np.float32),
        image_size=(int(rng.integers(1, 900)), int(rng.integers(1, 900))),
    )


def assert_same(found: Store, expected: Store, arrays: Sequence[str] = ARRAYS, *, sizes: bool = True) -> None:
    """The same images with the same arrays, bit for bit and in the same type."""
    assert sorted(found) == sorted(expected)
    for image_id in expected:
        left, right = found[image_id], expected[image_id]
        for name in arrays:
            one, other = getattr(left, name), getattr(right, name)
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes(), (image_id, name)
        assert not sizes or left.image_size == right.image_size
