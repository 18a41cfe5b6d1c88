"""Which photos of an evaluation a run was trained on: recalls of these are not those of unseen photos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.files import read_json
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.splits import Split
from pipeline.runs import LEARNED, REMEDY, TrainedRun


@dataclass(frozen=True)
class Trained:
    """How many photos of a split a run was trained on."""

    count: int | None  # by content, or by name where the content of one is not known; None: it may be any
    named: int = 0  # others that have the name of one, and other content

    def notes(self, run: TrainedRun, images: int) -> Iterator[str]:
        """What a reader of the recalls of so many images has to know."""
        if self.count:
            yield (
                f"{run.folder} was trained on {self.count:,} of these {images:,} photos (by content, or by name where that is not "
                "known): these recalls are not those of unseen photos"
            )
        if self.named:
            yield (
                f"{self.named:,} of these {images:,} photos have names of photos that {run.folder} was trained on, and other "
                "content: other photos, or the same after an edit"
            )
        if self.count is None:
            trained = run.data.get("photos", "photos that it does not record")
            yield f"{run.name} was trained on {trained}: whether some are among these is not known"


def trained_among(run: TrainedRun, split: Split) -> Trained:
    """The photos of a split that a run was trained on."""
    file, ids = run.folder / LEARNED, list(run.splits.get("train", ()))
    learned = read_json(file, "checksums of photos", REMEDY) if file.is_file() else {}
    known = set(learned.values())
    checksums = list(map(split.stores.photo_sha256, split.images.rows.tolist()))
    trained, named = {row for row, checksum in enumerate(checksums) if checksum in learned}, set()
    for row, name in same_names(split.store_ids, ids):
        own = split.store_ids[row]
        if own != name and any(own in store and name in store for store in split.stores.stores):
            continue  # 1.jpg beside trip/1.jpg is another photo, and no form of its name
        named.add(row)
        if checksums[row] is None or name not in known:
            trained.add(row)
    # Numbers of rows and names never agree, as of features that were imported again with their names
    are_numbers = {all(map(str.isdecimal, names)) for names in (ids, split.store_ids)}
    is_told = trained or not ids or len(are_numbers) == 1 or (bool(learned) and None not in checksums)
    return Trained(len(trained) if run.splits and is_told else None, len(named - trained))


def same_names(ids: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Places in a list of image ids, and ids of another list that mean the same: 391895 is COCO_val2014_000000391895.jpg."""
    index, index_of_others = ImageIndex(ids), ImageIndex(others)
    for name in others:
        if (row := index.find(name)) is not None and not index.contradicts(name, row):
            yield row, name
    for row, image_id in enumerate(ids):
        place = index_of_others.find(image_id)
        if place is not None and not index_of_others.contradicts(image_id, place):
            yield row, others[place]
