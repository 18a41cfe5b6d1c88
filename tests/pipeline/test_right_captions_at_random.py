"""Captions that are marked as right, in random folders: each caption is the content of its photo, so that a wrong mark shows."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.regions import Regions
from pipeline.caption_ranking import RightCaptions
from pipeline.inputs.captions import Caption, read_captions
from pipeline.inputs.finding import image_index_of
from pipeline.photo_lookup import AskedPhoto
from pipeline.store.reader import StoreCollection, open_stores
from tests.stores import make_store

PLACES = [
    "data",
    "images/more",
    "images/less",
    "pics/a",
]  # none in another: of photos that are on no disk, those of the other would be left
KINDS = {  # folders of photos, the captions file of each, and what names begin with
    "beside": {"": ("captions.csv", "")},
    "above": {"images": ("captions.csv", "")},
    "above, by folder": {"images": ("captions.csv", "images/")},
    "classes": {"images/x": ("captions.csv", ""), "images/y": ("captions.csv", "")},
    "folders": {"x": ("captions.csv", "x/"), "y": ("captions.csv", "y/")},
    "folders below": {"images/x": ("captions.csv", "x/"), "images/y": ("captions.csv", "y/")},
    "splits": {"train": ("annotations/captions_train.csv", ""), "val": ("annotations/captions_val.csv", "")},
    "each": {"x": ("x/captions.csv", ""), "y": ("y/captions.csv", "")},
}


def lay_out(draw: st.DrawFn, root: Path) -> tuple[list[Path], list[Path]]:
    """Folders of photos, and captions files; of some photos there are captions alone."""
    folders: list[Path] = []
    rows: dict[Path, list[str]] = {}
    for place in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True)):
        kind, suffix = KINDS[draw(st.sampled_from(sorted(KINDS)))], draw(st.sampled_from([".jpg", ""]))
        first = 1
        for part, (file, prefix) in kind.items():
            folder, count = root / place / part, draw(st.integers(2, 4))
            folder.mkdir(parents=True, exist_ok=True)
            folders.append(folder)
            missing = draw(st.sets(st.integers(first, first + count - 1), max_size=count - 1))
            for number in range(first, first + count):
                photo = folder / f"{number}.jpg"
                if photo.exists():  # of another dataset
                    continue
                rows.setdefault(root / place / file, []).append(f"{prefix}{number}{suffix},{photo}")
                if number not in missing:
                    photo.write_text(str(photo))
            first += (
                count if part.startswith("images/") and not prefix else 0
            )  # names of one file are of one photo each
    for file, lines in rows.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["image,caption", *lines]))
    return [folder for folder in folders if any(folder.glob("*.jpg"))], list(rows)


def extract(draw: st.DrawFn, root: Path, folders: list[Path], features: Path) -> StoreCollection:
    """Stores of some folders, or of all in the root."""
    chosen = draw(st.one_of(st.just([root]), st.lists(st.sampled_from(folders), min_size=1, unique=True)))
    stores = []
    for number, folder in enumerate(chosen):
        found = sorted(folder.rglob("*.jpg"))
        sums = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
        store = make_store(
            features / str(number), list(sums), image_roots=[str(folder)], photo_sha256=sums, has_photos=True
        )
        stores.append(store.path)
    return open_stores(stores, tell_apart=True)


def change(draw: st.DrawFn, root: Path, folders: list[Path]) -> None:
    """Photos that go away, or to a folder in their own or beside all; and copies of folders. One photo of each folder stays."""
    for kind in draw(st.lists(st.sampled_from(["delete", "move", "copy"]), max_size=2)):
        folder = draw(st.sampled_from(folders))
        photos = sorted(folder.glob("*.jpg"))
        if kind == "copy":
            shutil.copytree(folder, root / "backup" / folder.relative_to(root), dirs_exist_ok=True)
        elif len(photos) > 1:
            photo = draw(st.sampled_from(photos))
            goal = draw(st.sampled_from([root, folder])) / "moved" / photo.name
            if kind == "delete":
                photo.unlink()
            elif not goal.exists():
                goal.parent.mkdir(exist_ok=True)
                photo.rename(goal)


def asked(root: Path, collection: StoreCollection) -> dict[str, list[AskedPhoto]]:
    """Every photo on the disk and in the stores, by its content, as `find_or_extract` finds it."""
    regions = cast(Regions, None)
    found: dict[str, list[AskedPhoto]] = {}
    rows = {path: row for row, path in enumerate(image_index_of(collection).paths)}
    for path, row in rows.items():
        here = path if os.path.isfile(path) else ""
        found.setdefault(path, []).append(AskedPhoto(collection.image_ids[row], regions, here))
    for path in map(str, sorted(root.rglob("*.jpg"))):
        if path not in rows:
            content = Path(path).read_text()
            equal = collection.rows_of_photo(hashlib.sha256(content.encode()).hexdigest())
            copies = [AskedPhoto(collection.image_ids[row], regions, collection.image_place(row)) for row in equal]
            found.setdefault(content, []).append(AskedPhoto(path, regions, path, tuple(copies)))
    return found


def check(data: st.DataObject, root: Path) -> None:
    folders, files = lay_out(data.draw, root)
    collection = extract(data.draw, root, folders, root.parent / "features")
    change(data.draw, root, folders)
    some = data.draw(st.one_of(st.just(files), st.lists(st.sampled_from(files), min_size=1, unique=True)))
    captions: list[Caption] = [caption for file in some for caption in read_captions(file)]
    for content, photos in asked(root, collection).items():
        for photo in photos:
            right = RightCaptions(captions, collection)
            marked = {one.text for one in captions for each in (photo, *photo.copies) if right.is_of(one, each)}
            wrong = marked - {content}
            assert not wrong, f"{photo.image} of {content}: {wrong}"
            if any(one.text == content for one in captions) and not marked:
                names = {photo.image, *(one.image for one in photo.copies)}
                stems = {os.path.basename(one.image).removesuffix(".jpg") for one in captions if one.text == content}
                is_renamed = Path(photo.path).stem not in stems
                assert right.doubts or names & right.elsewhere.keys() or is_renamed, f"nothing said of {photo.image}"
    right = RightCaptions(captions, collection)
    for caption in captions:
        if (name := right.image_of(caption)) in collection and name != caption.image:
            content = right.index.paths[collection.row(name)]
            home = right._home_of(caption.file)
            assert content == caption.text or (home is not None and home.note), f"{name}: {caption}"


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_no_caption_is_right_for_another_photo(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(data, Path(folder).resolve() / "root")


@pytest.mark.slow
@given(data=st.data())
@settings(deadline=None, max_examples=600, suppress_health_check=list(HealthCheck))
def test_no_caption_is_right_for_another_photo_at_length(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(data, Path(folder).resolve() / "root")
