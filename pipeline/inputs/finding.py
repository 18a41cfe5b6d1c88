"""What belongs to stores: their own files of captions, and the photo that a name means.

Stores and files of captions that nobody named are looked for where `extract` and the datasets put them.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from detector.hub import fetch_folder, hub_name
from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.image_index import ImageIndex
from pipeline.store.format import FEATURES, MANIFEST
from pipeline.store.reader import Store, StoreCollection
from pipeline.store.roots import is_remote, titled

CAPTION_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".token")  # of files that nobody named


def find_stores(paths: Sequence[str | Path]) -> list[Path]:
    """The given store folders, fetched where they are names of the hub, or every store under `features/`; each once.

    Raises:
        PipelineError: a path that is no store, or none at all.
    """
    if paths:
        asked = [hub_name(str(path)) for path in paths]
        stores = [
            fetch_folder(name, "--features", kind="dataset") if name else Path(path)
            for path, name in zip(paths, asked, strict=True)
        ]
        return distinct(stores)
    found = sorted(path.parent for path in FEATURES.glob(f"*/{MANIFEST}"))
    if not found:
        raise PipelineError(
            f"{FEATURES.resolve()}: no feature store found (looked for {FEATURES}/*/{MANIFEST})",
            "make one with: scan-pipeline extract --images DIR, or name it with --features",
        )
    return distinct(found)


def distinct(paths: Sequence[Path]) -> list[Path]:
    """Stores or files, each once, however it is spelled and linked."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]


def find_captions(store: Store, notes: list[str] | None = None) -> list[Path]:
    """The captions file that belongs to a store: in its folder, or where COCO and Karpathy put theirs; without one, those in the
    folders of its photos, such as the hub's train/metadata.csv and test/metadata.csv.

    Files of such a name that are no captions are skipped; `notes` takes a line for each.

    Raises:
        PipelineError: none found; the message lists where it looked.
    """
    patterns = [store.path / "captions*"]
    # What is nearest first: captions.csv in the parent may be those of another folder
    for root in map(Path, _roots(store)):
        name = glob.escape(root.name)
        patterns += [*_among_photos(root), root.parent / f"{name}_captions.*"]
        for folder in (root.parent, root.parent / "annotations"):
            patterns += [folder / "dataset*.json", folder / f"captions_{name}.json"]
        patterns.append(root.parent / "captions.*")
    index = ImageIndex(store.image_ids)
    said: list[str] = []
    if first := _first_captions(patterns, index, said):
        found = [first]
    else:
        folders = dict.fromkeys(os.path.dirname(path) for path in _full_paths(store))
        found = [path for one in folders if (path := _first_captions(_among_photos(Path(one)), index, said))]
    if found:
        if notes is not None:
            notes += said
        return found
    looked = ", ".join(str(pattern) for pattern in patterns)
    reasons = "".join(f"; {reason}" for reason in said)
    raise PipelineError(
        f"{store.path}: no captions found for its images; looked for {looked}, and in the folders of its photos{reasons}",
        "name the file with --captions",
    )


def _among_photos(folder: Path) -> list[Path]:
    """Patterns of the captions files in a folder of photos."""
    return [folder / "captions.*", folder / "metadata.csv"]


def _first_captions(patterns: Iterable[Path], index: ImageIndex, said: list[str]) -> Path | None:
    """The first file that has captions of some images; `said` takes a line for what is skipped and one for what is not taken."""
    found = (sorted(pattern.parent.glob(pattern.name)) for pattern in patterns)
    files = list(dict.fromkeys(path for paths in found for path in paths if path.is_file()))
    for number, path in enumerate(files, start=1):
        if path.suffix.lower() not in CAPTION_SUFFIXES:  # captions.bak comes before captions.csv
            said.append(f"skipped {path}: expected {', '.join(CAPTION_SUFFIXES)}")
            continue
        try:
            captions = read_captions(path)
        except PipelineError as error:
            said.append(f"skipped {error.message}")
            continue
        if any(index.candidates(caption.image) for caption in captions):
            others = [other.name if other.parent == path.parent else str(other) for other in files[number:]]
            if others:
                said.append(f"{path} is taken, and not {', '.join(others)}")
            return path
        said.append(f"skipped {path}: none of its captions is of these images, such as that of {captions[0].image!r}")
    return None


def find_all_captions(stores: Sequence[Store], notes: list[str]) -> list[Path]:
    """The captions files of some stores. One without is noted, as photos to search need none; raises where all lack them."""
    found: dict[Path, None] = {}
    errors = []
    for store in stores:
        try:
            found |= dict.fromkeys(find_captions(store, notes))
        except PipelineError as error:
            errors.append(error)
            notes.append(f"{store.path}: no captions found for its {len(store):,} images")
    if not found:
        raise errors[0]
    return list(found)


def _roots(store: Store) -> list[str]:
    """The folders of a store's photos, where they are now: a project may have moved as one."""
    roots, relative = (list(map(titled, store.manifest[key])) for key in ("image_roots", "relative_roots"))
    moved = [os.path.normpath(store.path.resolve() / root) for root in relative]
    return [
        root if is_remote(root) or os.path.exists(root) else near
        for root, near in zip(roots, moved or roots, strict=False)
    ]


def _full_paths(store: Store) -> list[str]:
    """What is known of each photo's path: its id, below its root, or beside it where the store has several, whose names ids begin with."""
    now = dict(zip(store.manifest["image_roots"], _roots(store), strict=False))
    if len(now) < 2:
        return _paths(store, store.image_ids)
    roots = (root for shard in store.shards for root in shard.folders())
    return [f"{os.path.dirname(now[root])}/{one}" for root, one in zip(roots, store.image_ids, strict=True)]


def _paths(store: Store, image_ids: Sequence[str]) -> list[str]:
    roots = _roots(store)
    return [f"{roots[0]}/{image_id}" for image_id in image_ids] if len(roots) == 1 else list(image_ids)


def folders(collection: StoreCollection) -> list[str]:
    """What a user named for each photo: its store, or its folder where the store has several."""
    return [folder for store in collection.stores for shard in store.shards for folder in shard.folders()]


def image_index_of(collection: StoreCollection) -> ImageIndex:
    """Finds the photos of some stores by name, and knows those that could not be read."""
    failures = [
        (store, [failure["image_id"] for shard in store.shards for failure in shard.failures])
        for store in collection.stores
    ]
    failed = [image_id for _, image_ids in failures for image_id in image_ids]
    paths = [path for store in collection.stores for path in _full_paths(store)]
    paths += [path for store, image_ids in failures for path in _paths(store, image_ids)]
    return ImageIndex(collection.image_ids, paths, failed)
