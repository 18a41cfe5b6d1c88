"""Captions above folders of photos and in them: which photos their names mean, and what is said of those that are gone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from configs.files import file_sha256
from detector.regions import Regions
from pipeline.caption_ranking import RightCaptions
from pipeline.inputs.captions import read_captions
from pipeline.photo_lookup import AskedPhoto
from pipeline.store.reader import open_stores
from tests.pipeline.inputs.test_namesakes import captions_of
from tests.pipeline.test_caption_ranking import right_captions
from tests.stores import make_store


def lay_out(root: Path, *photos: str) -> None:
    """Photos of different content."""
    for photo in photos:
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        (root / photo).write_text(photo)


@pytest.mark.parametrize("named", ["{1}.jpg", "{0}/{1}.jpg", "{1}"])
def test_captions_above_folders_in_folders_are_of_no_photo_elsewhere(tmp_path: Path, named: str) -> None:
    """Be their own photo in a store, on the disk alone, or gone."""
    shop = {1: "shoes", 2: "shoes", 3: "hats"}
    lay_out(tmp_path, *(f"shop/images/{folder}/{number}.jpg" for number, folder in shop.items()), "phone/2.jpg")
    names = [named.format(folder, number) for number, folder in shop.items()]
    captions = read_captions(captions_of(tmp_path / "shop/captions.csv", names))
    features, asked = tmp_path / "features", tmp_path / "phone/2.jpg"
    ids = [f"images/{folder}/{number}.jpg" for number, folder in shop.items()]
    own = make_store(features / "shop", ids, image_roots=[str(tmp_path / "shop")]).path
    phone = make_store(features / "phone", ["2.jpg"], image_roots=[str(tmp_path / "phone")]).path
    photo = tmp_path / "shop" / ids[1]
    assert right_captions(open_stores([own, phone]), ids[1], photo, captions) == [f"of {names[1]}"]
    for stores in ([phone], [own, phone]):
        assert right_captions(open_stores(stores), "2.jpg", asked, captions) == []
    photo.unlink()
    assert right_captions(open_stores([own, phone]), ids[1], "", captions) == [f"of {names[1]}"]
    less = make_store(features / "less", [ids[0], ids[2]], image_roots=[str(tmp_path / "shop")]).path
    right, found = (
        RightCaptions(captions, open_stores([less, phone])),
        AskedPhoto("2.jpg", cast(Regions, None), str(asked)),
    )
    assert not any(right.is_of(caption, found) for caption in captions)
    (said,) = right.elsewhere["2.jpg"]
    assert said.endswith(f"captions.csv are of a photo that is not in {tmp_path}/shop")


def test_a_name_with_its_folder_means_the_photo_there_and_none_deeper(tmp_path: Path) -> None:
    """Of a dataset of which a part alone is on the disk, so that most names have no photo."""
    lay_out(tmp_path, "train/1.jpg", "train/2.jpg", "extra/train/1.jpg", "extra/train/3.jpg")
    names = [f"train/{number}.jpg" for number in range(1, 9)]
    captions = read_captions(captions_of(tmp_path / "captions.csv", names))
    roots = {"train": ["1.jpg", "2.jpg"], "extra": ["train/1.jpg", "train/3.jpg"]}
    stores = [
        make_store(tmp_path / f"features/{name}", ids, image_roots=[str(tmp_path / name)]).path
        for name, ids in roots.items()
    ]
    for collection in (open_stores(stores), open_stores(stores[1:])):
        for image in roots["extra"]:
            assert right_captions(collection, image, tmp_path / "extra" / image, captions) == []
    for collection in (open_stores(stores), open_stores(stores[:1])):
        assert right_captions(collection, "1.jpg", tmp_path / "train/1.jpg", captions) == ["of train/1.jpg"]


@pytest.mark.parametrize("named", ["train/{}.jpg", "{}.jpg"])
def test_of_two_photos_below_that_a_name_can_mean_none_has_its_captions(tmp_path: Path, named: str) -> None:
    """The photo that is left of two of one name has them, and a note says what it is taken for."""
    photos = [f"{folder}/train/{number}.jpg" for folder in ("extra", "images") for number in (1, 2)]
    lay_out(tmp_path, *photos[:-1])
    captions = read_captions(captions_of(tmp_path / "captions.csv", [named.format(number) for number in (1, 2)]))
    collection = open_stores([make_store(tmp_path / "store", photos[:2], image_roots=[str(tmp_path)]).path])
    right = RightCaptions(captions, collection)
    marked = {
        image: [
            right.is_of(caption, AskedPhoto(image, cast(Regions, None), str(tmp_path / image))) for caption in captions
        ]
        for image in photos[:2]
    }
    assert marked == {photos[0]: [False, False], photos[1]: [False, True]}
    below = "/train" if named == "{}.jpg" else ""
    assert list(right.doubts) == [
        f"{tmp_path}/extra/train/1.jpg and {tmp_path}/images/train/1.jpg are both called {captions[0].image}: which of them "
        f"{tmp_path}/captions.csv means is not known, and none of its captions is marked as theirs",
        f"no photo that {tmp_path}/captions.csv names is beside it: it is taken for those of these names in "
        f"{tmp_path}/extra{below} and {tmp_path}/images{below}",
    ]
    (tmp_path / photos[2]).write_text(photos[0])  # a copy
    assert right_captions(collection, photos[0], tmp_path / photos[0], captions) == [f"of {captions[0].image}"]


def test_captions_named_after_a_split_are_not_taken_for_another_without_a_word(tmp_path: Path) -> None:
    lay_out(tmp_path, "train/1.jpg")
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "train")]).path])
    for split, notes in (("val", 1), ("train", 0)):
        (caption,) = read_captions(captions_of(tmp_path / f"annotations/captions_{split}.json", ["1.jpg"]))
        right = RightCaptions([caption], collection)
        assert right.is_of(caption, AskedPhoto("1.jpg", cast(Regions, None), str(tmp_path / "train/1.jpg")))
        assert len(right.doubts) == notes
    lay_out(tmp_path, "images/1.jpg")  # it may be of these, and of train/ it is not
    (caption,) = read_captions(captions_of(tmp_path / "annotations/captions_val.json", ["1.jpg"]))
    assert right_captions(collection, "1.jpg", tmp_path / "train/1.jpg", [caption]) == []


def test_a_folder_with_too_many_files_marks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "home/1.jpg", "home/more/2.jpg")
    monkeypatch.setattr("pipeline.inputs.homes.MOST_LISTED", 2)
    captions = read_captions(captions_of(tmp_path / "home/captions.csv", ["1.jpg"]))
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "home")]).path])
    right = RightCaptions(captions, collection)
    assert not right.is_of(captions[0], AskedPhoto("1.jpg", cast(Regions, None), str(tmp_path / "home/1.jpg")))
    (doubt,) = right.doubts
    assert doubt.startswith(f"{tmp_path}/home has too many files to know which photos")


def test_names_of_a_folder_that_is_not_there_are_of_no_photo_in_another(tmp_path: Path) -> None:
    """As of a year that was archived; where all are, as of COCO's folders that were put into one, a note says so."""
    lay_out(tmp_path, *(f"photos/{year}/{number}.jpg" for year in (2020, 2024) for number in (1, 2)))
    ids = [f"{year}/{number}.jpg" for year in (2020, 2024) for number in (1, 2)]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path / "photos")]).path])
    photo = AskedPhoto("2024/1.jpg", cast(Regions, None), str(tmp_path / "photos/2024/1.jpg"))
    for place in (tmp_path / "photos/captions.csv", tmp_path / "apart/captions.csv"):
        for names in (["2019/1.jpg", "2020/1.jpg"], ["2019/1.jpg", "2020/2.jpg"], ["2019/may/1.jpg", "2020/2.jpg"]):
            captions = read_captions(captions_of(place, names))
            right = RightCaptions(captions, collection)
            assert not any(right.is_of(caption, photo) for caption in captions)
        one = open_stores([make_store(tmp_path / "one", ids[2:], image_roots=[str(tmp_path / "photos")]).path])
        shutil.rmtree(tmp_path / "one")
        shutil.move(tmp_path / "photos/2020", tmp_path / "2020")
        captions = read_captions(captions_of(place, ["2019/1.jpg", "2019/2.jpg"]))
        right = RightCaptions(captions, one)
        assert [right.is_of(caption, photo) for caption in captions] == [True, False]
        said = f"no photo that {place} names is beside it: its captions are marked by the names alone, of stored photos"
        assert list(right.doubts) == [said]
        shutil.move(tmp_path / "2020", tmp_path / "photos/2020")


def test_a_photo_of_the_name_of_one_that_is_gone_below_is_not_marked_without_a_word(tmp_path: Path) -> None:
    """As in an inbox beside the folder of all others."""
    photos = [f"photos/IMG_{number}.jpg" for number in range(1, 7)]
    lay_out(tmp_path, *photos)
    captions = read_captions(captions_of(tmp_path / "captions.csv", [Path(photo).name for photo in photos]))
    (tmp_path / photos[3]).unlink()
    ids = [photo for photo in photos if photo != photos[3]]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)]).path])
    for inbox, notes in ((False, []), (True, ["photos"])):
        if inbox:
            lay_out(tmp_path, "inbox/IMG_4.jpg")
        right = RightCaptions(captions, collection)
        assert right.is_of(captions[0], AskedPhoto(ids[0], cast(Regions, None), str(tmp_path / ids[0])))
        assert list(right.doubts) == [
            f"no photo that {tmp_path}/captions.csv names is beside it: it is taken for those of these names in {tmp_path}/inbox and "
            f"{tmp_path}/{folder}"
            for folder in notes
        ]


def test_of_two_names_one_photo_has_the_captions_of_the_better(tmp_path: Path) -> None:
    """Of an album on another disk, and of two splits in one folder, where neither is better."""
    lay_out(tmp_path, "lib/1.jpg", "lib/2.jpg", "flat/images/1.jpg")
    collection = open_stores(
        [make_store(tmp_path / "store", ["1.jpg", "2.jpg"], image_roots=[str(tmp_path / "lib")]).path]
    )
    captions = read_captions(captions_of(tmp_path / "lib/captions.csv", ["1.jpg", "2.jpg", "2019/1.jpg", "2019/3.jpg"]))
    assert right_captions(collection, "1.jpg", tmp_path / "lib/1.jpg", captions) == ["of 1.jpg"]
    captions = read_captions(captions_of(tmp_path / "flat/captions.csv", ["train/1.jpg", "val/1.jpg"]))
    assert right_captions(collection, "flat", tmp_path / "flat/images/1.jpg", captions) == []


def test_a_photo_of_another_suffix_is_another_one_where_others_have_theirs(tmp_path: Path) -> None:
    """As a telephone's pictures of its screen; where all were converted, a note says so."""
    lay_out(tmp_path, "IMG_1.png", "IMG_2.JPG", "IMG_3.JPG")
    collection = open_stores([make_store(tmp_path / "store", ["IMG_1.png"], image_roots=[str(tmp_path)]).path])
    path = tmp_path / "IMG_1.png"
    for names, right in (
        (["IMG_1.JPG", "IMG_2.jpg"], []),
        (["IMG_1.JPG", "IMG_2.png"], ["of IMG_1.JPG"]),
        (["IMG_1"], ["of IMG_1"]),
    ):
        captions = read_captions(captions_of(tmp_path / "captions.csv", names))
        assert right_captions(collection, "IMG_1.png", path, captions) == right


def test_where_names_are_paths_all_of_them_are(tmp_path: Path) -> None:
    lay_out(tmp_path, "1.jpg", "2019/2.jpg", "2020/1.jpg")
    collection = open_stores([make_store(tmp_path / "store", ["2019/2.jpg"], image_roots=[str(tmp_path)]).path])
    captions = read_captions(captions_of(tmp_path / "captions.csv", ["1", "2", "3", "4", "2020/1", "2020/2", "2020/3"]))
    assert right_captions(collection, "2019/2.jpg", tmp_path / "2019/2.jpg", captions) == []


def test_a_name_of_a_folder_that_is_gone_is_of_no_photo_above(tmp_path: Path) -> None:
    lay_out(tmp_path, *(f"{number}.jpg" for number in range(1, 5)))
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path)]).path])
    captions = read_captions(captions_of(tmp_path / "captions.csv", ["3.jpg", "4.jpg", "trip/1.jpg", "trip/2.jpg"]))
    assert right_captions(collection, "1.jpg", tmp_path / "1.jpg", captions) == []


@pytest.mark.parametrize("is_captioned", [True, False])
def test_captions_of_photos_that_were_culled_are_of_no_album_below(tmp_path: Path, is_captioned: bool) -> None:
    """Which has a captions file of its own; or the same numbers."""
    album = [f"rome/{number}.jpg" for number in range(1, 13)]
    lay_out(tmp_path, *(f"{number}.jpg" for number in (1, 4, 7, 10)), *album)
    captions = read_captions(captions_of(tmp_path / "captions.csv", [f"{number}.jpg" for number in range(1, 11)]))
    own = captions_of(tmp_path / "rome/captions.csv", [Path(photo).name for photo in album])
    captions += [replace(one, text="Rome") for one in read_captions(own)]
    if not is_captioned:
        own.unlink()
        captions = captions[:10]
    collection = open_stores([make_store(tmp_path / "store", album, image_roots=[str(tmp_path)]).path])
    for image in album[1:6]:
        assert right_captions(collection, image, tmp_path / image, captions) == ["Rome"] * is_captioned


def test_marks_by_the_name_alone_are_said(tmp_path: Path) -> None:
    """As of annotations apart, which may also be those of a folder whose photos are all gone."""
    lay_out(tmp_path, "photos/1.jpg")
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "photos")]).path])
    captions = read_captions(captions_of(tmp_path / "text/captions.csv", ["1.jpg", "2.jpg"]))
    right = RightCaptions(captions, collection)
    assert right.is_of(captions[0], AskedPhoto("1.jpg", cast(Regions, None), str(tmp_path / "photos/1.jpg")))
    assert list(right.doubts) == [
        f"no photo that {tmp_path}/text/captions.csv names is beside it: its captions are marked by the names alone, of stored photos"
    ]


def test_an_id_with_the_path_of_its_store_means_that_image(tmp_path: Path) -> None:
    """As two stores of equal names have, whose photos have equal names as well."""
    lay_out(tmp_path, "0/x/1.jpg", "1/x/1.jpg")
    stores = [
        make_store(tmp_path / f"features/{n}/x", ["1.jpg"], image_roots=[str(tmp_path / f"{n}/x")]).path for n in (0, 1)
    ]
    both = open_stores(stores, tell_apart=True)
    captions = read_captions(captions_of(tmp_path / "captions.csv", both.image_ids))
    for number, image in enumerate(both.image_ids):
        assert image == f"{stores[number]}/1.jpg"
        assert right_captions(both, image, tmp_path / f"{number}/x/1.jpg", captions) == [f"of {image}"]


def test_captions_of_a_folder_with_few_photos_left_are_of_none_above(tmp_path: Path) -> None:
    """Of the one that the file is named after; the folder around has all of the names."""
    lay_out(tmp_path, "val/1.jpg", *(f"{number}.jpg" for number in range(1, 7)))
    ids = ["1.jpg", "2.jpg", "val/1.jpg"]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)]).path])
    captions = read_captions(captions_of(tmp_path / "captions_val.json", [f"{number}.jpg" for number in range(1, 7)]))
    right = RightCaptions(captions, collection)
    for image in ids:
        found = AskedPhoto(image, cast(Regions, None), str(tmp_path / image))
        assert not any(right.is_of(caption, found) for caption in captions)
    assert right.elsewhere.keys() == {"2.jpg"}
    (doubt,) = right.doubts
    assert doubt.startswith(f"{tmp_path}/1.jpg and {tmp_path}/val/1.jpg are both called 1.jpg")


def test_a_stored_copy_of_a_stored_photo_has_its_captions(tmp_path: Path) -> None:
    lay_out(tmp_path, "a/1.jpg", "b/1.jpg")
    shutil.copy(tmp_path / "a/1.jpg", tmp_path / "b/9.jpg")
    ids = ["a/1.jpg", "b/1.jpg", "b/9.jpg"]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)]).path])
    captions = read_captions(captions_of(tmp_path / "a/captions.csv", ["1.jpg"]))
    for image, right in zip(ids, (["of 1.jpg"], [], ["of 1.jpg"]), strict=True):
        assert right_captions(collection, image, tmp_path / image, captions) == right


@pytest.mark.parametrize("named", ["../photos/{}", "{root}/photos/{}"])
def test_names_that_tell_one_place_mean_the_photo_there_alone(tmp_path: Path, named: str) -> None:
    lay_out(tmp_path, "photos/1.jpg", "photos/photos/2.jpg")
    ids = ["1.jpg", "photos/2.jpg"]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path / "photos")]).path])
    names = [named.format(f"{number}.jpg", root=tmp_path) for number in (1, 2)]
    for place in ("text/captions.csv", "photos/captions.csv"):
        if place.startswith("photos") and named.startswith(".."):
            continue
        captions = read_captions(captions_of(tmp_path / place, names))
        assert right_captions(collection, "1.jpg", tmp_path / "photos/1.jpg", captions) == [f"of {names[0]}"]
        assert right_captions(collection, "photos/2.jpg", tmp_path / "photos/photos/2.jpg", captions) == []


def test_a_single_folder_below_is_taken_without_a_word_only_beside_and_for_photos(tmp_path: Path) -> None:
    """Not deeper, not called topics, and not where the folder that the names tell is there, and empty."""
    for place, name, more, notes in (
        ("images", "1.jpg", "", []),
        ("topics", "1.jpg", "", [1]),
        ("a/images", "1.jpg", "", [1]),
        ("images", "1.jpg", "3.jpg", [1]),
        ("old_photos/2019", "2019/1.jpg", "2019/", None),
        ("images", "1.jpg", "val2017/", None),
    ):
        root = tmp_path / place.replace("/", "_") / f"{more}{name}".replace("/", "_")
        lay_out(root, f"{place}/1.jpg")
        if more.endswith("/"):
            (root / more).mkdir()
        elif more:
            lay_out(root, more)
        (caption,) = read_captions(captions_of(root / "annotations/captions_val2017.csv", [name]))
        store = make_store(root / "store", ["1.jpg"], image_roots=[str(root / place)])
        right = RightCaptions([caption], open_stores([store.path]))
        photo = AskedPhoto("1.jpg", cast(Regions, None), str(root / place / "1.jpg"))
        assert right.is_of(caption, photo) == (notes is not None)
        assert len(right.doubts) == len(notes or [])
        assert bool(right.elsewhere) == (notes is None)


def test_a_photo_with_the_bytes_of_one_that_was_overwritten_by_it_has_not_its_captions(tmp_path: Path) -> None:
    """They were written for the photo that was there when it was extracted."""
    lay_out(tmp_path, "a/1.jpg", "b/9.jpg")
    ids = ["a/1.jpg", "b/9.jpg"]
    sums = {one: file_sha256(tmp_path / one) for one in ids}
    store = make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)], photo_sha256=sums)
    captions = read_captions(captions_of(tmp_path / "a/captions.csv", ["1.jpg"]))
    shutil.copy(tmp_path / "b/9.jpg", tmp_path / "a/1.jpg")
    assert right_captions(open_stores([store.path]), "b/9.jpg", tmp_path / "b/9.jpg", captions) == []


@pytest.mark.parametrize(
    ("file", "folder", "others", "notes"),
    [
        ("captions_val.csv", "val2014", [], 0),
        ("captions_val2017.csv", "val2014", [], 1),
        ("captions_dev.csv", "val", [], 0),
        ("captions_dev.csv", "val", ["captions_val.csv"], 1),
    ],
)
def test_a_folder_of_another_year_or_with_a_file_of_its_name_is_not_taken_without_a_word(
    tmp_path: Path, file: str, folder: str, others: list[str], notes: int
) -> None:
    lay_out(tmp_path, f"{folder}/1.jpg")
    store = make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / folder)])
    for other in others:
        captions_of(tmp_path / "annotations" / other, ["1.jpg"])
    (caption,) = read_captions(captions_of(tmp_path / "annotations" / file, ["1.jpg"]))
    right = RightCaptions([caption], open_stores([store.path]))
    assert right.is_of(caption, AskedPhoto("1.jpg", cast(Regions, None), str(tmp_path / folder / "1.jpg")))
    assert len(right.doubts) == notes


def test_a_path_out_of_annotations_begins_there(tmp_path: Path) -> None:
    lay_out(tmp_path, "images/1.jpg", "coco/images/1.jpg")
    ids = ["coco/images/1.jpg", "images/1.jpg"]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)]).path])
    captions = read_captions(captions_of(tmp_path / "coco/annotations/captions.csv", ["../images/1.jpg"]))
    for image, right in zip(ids, (["of ../images/1.jpg"], []), strict=True):
        assert right_captions(collection, image, tmp_path / image, captions) == right


def test_captions_of_equal_names_in_several_files_are_shown_with_the_ids_of_their_photos(tmp_path: Path) -> None:
    ids = ["1.jpg", "trip/1.jpg"]
    lay_out(tmp_path, *ids)
    files = [captions_of(tmp_path / folder / "captions.csv", ["1.jpg", "9.jpg"]) for folder in ("", "trip")]
    captions = [caption for file in files for caption in read_captions(file)]
    store = make_store(tmp_path / "features/s", ids, image_roots=[str(tmp_path)])
    right = RightCaptions(captions, open_stores([store.path]))
    assert list(map(right.image_of, captions)) == ["1.jpg", "9.jpg", "trip/1.jpg", "9.jpg"]
    own = read_captions(captions_of(store.path / "captions.csv", ["trip/1.jpg", "5.jpg"]))
    right = RightCaptions(own, open_stores([store.path]))
    assert list(map(right.image_of, own)) == ["trip/1.jpg", "5.jpg"]


def test_captions_are_not_shown_with_the_id_of_another_photo(tmp_path: Path) -> None:
    """Names of photos that are elsewhere, in no store, copies, or in a place that is only assumed."""
    ids = ["1.jpg", "2.jpg", "3.jpg"]
    lay_out(tmp_path, *(f"d/{split}/{one}" for split in ("train", "val") for one in ids))
    shutil.copytree(tmp_path / "d/val", tmp_path / "best")
    shutil.move(tmp_path / "best/3.jpg", tmp_path / "best/1.jpg")
    sums = {one: file_sha256(tmp_path / "d/val" / one) for one in ids}
    store = make_store(tmp_path / "features/val", ids, image_roots=[str(tmp_path / "d/val")], photo_sha256=sums)
    other = make_store(tmp_path / "features/other", ids, image_roots=[str(tmp_path / "d/train")], seed=1)
    files = {
        "d/captions_train.csv": ["1.jpg of captions_train.csv", "2.jpg of captions_train.csv"],
        "d/captions_val.csv": ["1.jpg", "2.jpg"],
        "best/captions.csv": ["3.jpg", "2.jpg"],
        "d/captions_test.csv": ["1.jpg of captions_test.csv", "2.jpg of captions_test.csv"],
        "far/annotations/captions.csv": ["1.jpg", "2.jpg"],
        str(other.path / "captions.csv"): ["1.jpg of captions.csv", "2.jpg of captions.csv"],
    }
    captions = [one for file in files for one in read_captions(captions_of(tmp_path / file, ids[:2]))]
    right = RightCaptions(captions, open_stores([store.path]))
    assert list(map(right.image_of, captions)) == [name for names in files.values() for name in names]


def test_captions_in_a_place_that_is_only_assumed_have_no_id_of_another_photo(tmp_path: Path) -> None:
    lay_out(tmp_path, *(f"d/{city}/day1/{number}.jpg" for city in ("oslo", "rome") for number in (1, 2)))
    (tmp_path / "gone").mkdir()
    stores = [
        make_store(tmp_path / "features" / place, ids, image_roots=[str(tmp_path / "d" / place)], seed=seed).path
        for seed, (place, ids) in enumerate(
            {"rome/day1": ["1.jpg", "2.jpg"], "oslo": ["day1/1.jpg", "day1/2.jpg"]}.items()
        )
    ]
    for file, expected in (
        ("d/captions_oslo.csv", ["1.jpg of captions_oslo.csv", "2.jpg of captions_oslo.csv"]),
        ("d/captions.csv", ["1.jpg of captions.csv", "2.jpg of captions.csv"]),
        ("gone/captions.csv", ["1.jpg", "2.jpg"]),
    ):
        captions = read_captions(captions_of(tmp_path / file, ["1.jpg", "2.jpg"]))
        right = RightCaptions(captions, open_stores(stores))
        assert list(map(right.image_of, captions)) == expected, file
        assert bool(right.doubts) == file.startswith("gone")


def test_a_copy_of_a_stored_photo_has_the_captions_in_the_store_of_that(tmp_path: Path) -> None:
    lay_out(tmp_path, "one/1.jpg", "one/2.jpg")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    sums = {name: file_sha256(tmp_path / "one" / name) for name in ("1.jpg", "2.jpg")}
    one = make_store(tmp_path / "features/one", list(sums), image_roots=[str(tmp_path / "one")], photo_sha256=sums)
    named = {f"two/{name}": sha256 for name, sha256 in sums.items()}
    two = make_store(tmp_path / "features/two", list(named), image_roots=[str(tmp_path)], photo_sha256=named, seed=1)
    captions = read_captions(captions_of(one.path / "captions.csv", ["1.jpg", "2.jpg"]))
    collection = open_stores([two.path, one.path])
    for image in ("two/1.jpg", "1.jpg"):
        assert right_captions(collection, image, tmp_path / "one" / image, captions) == ["of 1.jpg"]
