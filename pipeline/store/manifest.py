"""The manifest of a store: what its features are, of which photos, and how many there are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from configs.files import json_sha256
from pipeline.errors import PipelineError
from pipeline.files import read_json
from pipeline.store.format import FORMAT, MANIFEST, VERSION, repair_hint
from pipeline.store.roots import titled

SETTINGS = ("num_regions", "feature_dim", "dtype", "has_boxes", "extraction", "source")  # decide what the features are
PUBLISHED = "published"  # true in a manifest that `push` wrote
TYPES: dict[str, type] = {
    "num_regions": int,
    "feature_dim": int,
    "dtype": str,
    "has_boxes": bool,
    "extraction": dict,
    "image_roots": list,
    "relative_roots": list,
    "object_names": list,
    "attribute_names": list,
    "counts": dict,
    "complete": bool,
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        PipelineError: no manifest, or not one that this version reads.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PipelineError(
            f"{folder}: not a feature store (no {MANIFEST})", "make one with: scan-pipeline extract --images DIR"
        )
    manifest = read_json(path, "a store's manifest", repair_hint(folder))
    try:
        _check(manifest)
    except ValueError as error:
        raise PipelineError(f"{path}: {error}", repair_hint(folder)) from error
    return manifest


def settings_sha256(manifest: Mapping[str, Any]) -> str:
    """Checksum of everything in a manifest that decides what its features are."""
    return json_sha256({key: manifest.get(key) for key in SETTINGS})


def names_sha256(manifest: Mapping[str, Any]) -> str:
    """Checksum of what class ids mean."""
    return json_sha256([manifest["object_names"], manifest["attribute_names"]])


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay the same when a store grows. Photos may have moved, but not to a folder of another name."""
    roots = [os.path.basename(titled(root)) for root in manifest["image_roots"]]
    return {**{key: manifest.get(key) for key in SETTINGS}, "images": roots}


def counts(images: int, failures: int, shards: int) -> dict[str, int]:
    """What the manifest counts."""
    return {"images": images, "failures": failures, "shards": shards}


def made_elsewhere(manifest: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether a store was imported or fetched: then there is no plan, and no photo to extract again."""
    return manifest is not None and ("imported" in manifest["extraction"] or bool(manifest.get(PUBLISHED)))


def way_to_complete(manifest: Mapping[str, Any] | None) -> str:
    """What makes the shards of a store that are missing."""
    if manifest is not None and manifest.get(PUBLISHED):
        return "ask for it by its name, which fetches what is missing"
    return f"type the {'import-features' if made_elsewhere(manifest) else 'extract'} command that made this store again"


def _check(manifest: Mapping[str, Any]) -> None:
    found = f"{manifest.get('format')} {manifest.get('format_version')}"
    if found != f"{FORMAT} {VERSION}":
        raise ValueError(f"found format {found}, expected {FORMAT} {VERSION}")
    for name, kind in TYPES.items():
        if type(manifest.get(name)) is not kind:
            raise ValueError(f"{name} is of type {type(manifest.get(name)).__name__}, expected {kind.__name__}")
    for name in ("image_roots", "relative_roots", "object_names", "attribute_names"):
        if not all(isinstance(item, str) for item in manifest[name]):
            raise ValueError(f"{name} holds what is not text")
    if manifest.get("names_sha256", found := names_sha256(manifest)) != found:  # older stores have none
        raise ValueError("object_names or attribute_names changed since they were written")
    for name in counts(0, 0, 0):
        if type(manifest["counts"].get(name)) is not int:
            raise ValueError(f"counts has no integer {name}")
    for name in ("num_regions", "feature_dim"):
        if manifest[name] < 1:
            raise ValueError(f"{name} is {manifest[name]}, expected at least 1")
    if manifest["dtype"] not in ("float16", "float32"):
        raise ValueError(f"dtype is {manifest['dtype']!r}, expected float16 or float32")
