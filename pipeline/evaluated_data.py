"""The data that a run is evaluated on: its own splits, or other stores and captions; and what is not as the run knew it."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from configs.errors import UserError
from pipeline.errors import PipelineError
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.finding import find_stores
from pipeline.inputs.splits import Dataset, Split, all_splits, unrecorded, with_recorded_splits
from pipeline.runs import TrainedRun, captions_sums, features_sha256, store_sha256
from pipeline.store.reader import StoreCollection

T = TypeVar("T")


def choose_split(
    run: TrainedRun, wanted: str, features: Sequence[str], captions: Sequence[str]
) -> tuple[Split, list[Path], list[str]]:
    """The split to evaluate a run on.

    Args:
        wanted: its name; "": test or dev where there is one, else all; "all": all splits as one.
        features, captions: stores and captions files; none: those of the run.

    Returns:
        The split, the stores and captions files that are not simply the run's, and notes for the user.

    Raises:
        PipelineError: stores or captions that are not there, or no such split.
    """
    dataset, own_stores, own_captions = _read(run, features, captions)
    wanted = wanted or next((name for name in ("test", "dev") if name in dataset.splits), "all")
    if wanted != "all" and wanted not in dataset.splits:
        known = ", ".join(sorted(name for name in dataset.splits if name))
        message = f"--split {wanted}: the data has no such split; it has {known or 'none of a name'}"
        raise PipelineError(message, "" if known else "use --split all")
    stores, files = [store.path for store in dataset.stores.stores], dataset.caption_files
    # Some of the run's stores or captions alone are easier than all of them.
    all_stores = own_stores and (not features or _are_among(_if_there(run.stores), stores))
    all_captions = own_captions and (not captions or _are_among(_if_there(run.captions), files))
    origins = [] if all_stores else stores
    origins += files if captions and not all_captions else []
    split = all_splits(dataset) if wanted == "all" else dataset.splits[wanted]
    notes = list(dataset.notes)
    gone = {image_id for ids in run.splits.values() for image_id in ids} - set(dataset.stores.image_ids)
    new = sum(len(split.store_ids) for name, split in dataset.splits.items() if name not in run.splits)
    if own_stores and gone and new:
        notes.append(
            f"{len(gone):,} images of {run.folder} are not in these stores, and {new:,} are new to it: photos that got other "
            "names count as unseen"
        )
    sums = captions_sums(dataset) if all_stores and all_captions else {}
    changed = {
        "features": changed_stores(run, dataset.stores, own_stores, all_stores),
        "captions": (files or stores) if any(run.data.get(key, now) != now for key, now in sums.items()) else [],
    }
    if any(changed.values()):
        what = " and ".join(name for name, paths in changed.items() if paths)
        notes.append(f"{what} are others than {run.folder} was trained with")
    origins += [path for paths in changed.values() for path in paths if path not in origins]
    copied = [f"{run.folder} was copied: taking {taken}, not {before}" for taken, before in run.left_behind()]
    return split, origins, [*notes, *([] if features else copied)]


def changed_stores(run: TrainedRun, stores: StoreCollection, are_own: bool, are_all: bool) -> list[Path]:
    """Of some stores, the run's own where `are_own`, those with other features than it was trained with, or of other images."""
    own = {path.resolve() for path in _if_there(run.stores)}
    if "features_of_stores" not in run.data:  # of an earlier version, which knows all of its stores together
        is_changed = are_all and run.data.get("features_sha256") not in (None, features_sha256(stores))
        return [store.path for store in stores.stores] if is_changed else []
    return [
        store.path
        for store in stores.stores
        if (are_own or store.path.resolve() in own) and store_sha256(store) not in run.data["features_of_stores"]
    ]


def _read(run: TrainedRun, features: Sequence[str], captions: Sequence[str]) -> tuple[Dataset, bool, bool]:
    """The splits that a run recorded, or those of other stores.

    Returns:
        The dataset, whether its stores are the run's, and whether its captions are as well.
    """
    stores = find_stores(features) if features else run.stores()
    own_stores = not features or _are_among(stores, _if_there(run.stores))
    own_captions = own_stores and (not captions or _are_among(captions, _if_there(run.captions)))
    dataset = load_dataset(stores, captions or (run.captions() if own_stores else []))
    is_same = run.data.get("features_sha256") == features_sha256(dataset.stores)
    if is_same and not _if_there(run.stores):  # the store was moved, or run and store were fetched
        own_stores, own_captions = True, not captions
    if not own_stores:
        return dataset, own_stores, own_captions
    recorded = {image_id: name for name, ids in run.splits.items() for image_id in ids}
    told = {image_id: name for name, split in dataset.splits.items() if name for image_id in split.store_ids}
    is_held_out = ("train", "" if "dev" in dataset.splits else "dev")  # by the run, where nothing tells a split dev
    pairs = {
        image_id: (name, recorded.get(image_id) or unrecorded(name, run.splits)) for image_id, name in told.items()
    }
    moved = {image_id: pair for image_id, pair in pairs.items() if pair[0] != pair[1] and pair != is_held_out}
    for image_id, (name, own) in islice(moved.items(), 1):
        dataset.notes.append(
            f"{len(moved):,} images are in other splits by {run.folder}, whose splits are taken, than by their captions, such "
            f"as {image_id}: {own}, not {name}"
        )
    return with_recorded_splits(dataset, run.splits), own_stores, own_captions


def _are_among(paths: Sequence[str | Path], known: Sequence[Path]) -> bool:
    return {Path(path).resolve() for path in paths} <= {path.resolve() for path in known}


def _if_there(find: Callable[[], Sequence[T]]) -> Sequence[T]:
    """Stores or captions of a run; none where they are not on this machine."""
    try:
        return find()
    except UserError:
        return []
