"""Captions that are marked as right were written for the photo asked with."""

import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from detector.regions import Regions
from pipeline.caption_ranking import RightCaptions, caption_hits
from pipeline.inputs.captions import Caption, read_captions
from pipeline.photo_lookup import FoundPhoto
from pipeline.store.reader import StoreCollection, open_stores
from tests.pipeline.inputs.test_namesakes import LOST, LOWER, REST, TOP, captions_of
from tests.stores import make_store


class NothingIsWeak:
    """What ranking asks a run."""

    def is_weak(self, score: float, count: int) -> bool:
        return False


def test_captions_of_a_photo_that_is_gone_are_not_right_for_its_namesake(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", REST, image_roots=[str(tmp_path / "photos")])
    collection = open_stores([store.path])
    captions = read_captions(captions_of(tmp_path / "photos/captions.csv", TOP + LOWER))
    assert right_captions(collection, LOWER[2], "", captions) == [f"of {LOWER[2]}"]


def right_captions(collection: StoreCollection, image: str, path: Path | str, captions: list[Caption]) -> list[str]:
    run: Any = NothingIsWeak()
    photo, scores = FoundPhoto(image, cast(Regions, None), str(path)), np.zeros(len(captions))
    hits = caption_hits(run, photo, captions, RightCaptions(captions, collection), scores, len(captions))
    return [hit.caption for hit in hits if hit.right]


@pytest.mark.parametrize("named", ["{}.jpg", "{}"])
def test_captions_beside_photos_are_of_no_photo_of_another_folder(tmp_path: Path, named: str) -> None:
    """Of anna's photos one is gone; ben's and a downloaded one have its name."""
    captions: list[Caption] = []
    for folder in ("anna", "ben", "downloads"):
        (tmp_path / folder).mkdir()
        for name in TOP:
            (tmp_path / folder / name).write_text(f"{folder}'s {name}")
        rows = [f"{named.format(Path(name).stem)},{folder} took {name}\n" for name in TOP]
        (tmp_path / folder / "captions.csv").write_text("".join(["image,caption\n", *rows]))
        if folder != "downloads":
            captions += read_captions(tmp_path / folder / "captions.csv")
    (tmp_path / "anna" / LOST).unlink()
    below = [f"anna/{name}" for name in TOP if name != LOST] + [f"ben/{name}" for name in TOP]
    collection = open_stores([make_store(tmp_path / "store", below, image_roots=[str(tmp_path)]).path])
    path = tmp_path / "ben" / LOST
    assert right_captions(collection, f"ben/{LOST}", path, captions) == [f"ben took {LOST}"]
    (tmp_path / "link").symlink_to("ben")
    assert right_captions(collection, f"ben/{LOST}", tmp_path / "link" / LOST, captions) == [f"ben took {LOST}"]
    anna = open_stores([make_store(tmp_path / "anna's", below[:5], image_roots=[str(tmp_path)]).path])
    assert right_captions(anna, str(path), path, captions[: len(TOP)]) == []
    downloaded = tmp_path / "downloads" / LOST
    assert right_captions(anna, str(downloaded), downloaded, captions[: len(TOP)]) == []


def test_captions_in_the_folder_of_a_photo_stay_its_own_when_it_is_gone(tmp_path: Path) -> None:
    """As after it was moved, of which the copy has the bytes; the other folder has a photo of its name."""
    captions: list[Caption] = []
    for folder in ("2019", "2020"):
        (tmp_path / folder).mkdir()
        captions += read_captions(captions_of(tmp_path / folder / "captions.csv", ["1.jpg", "2.jpg"]))
    ids = ["2019/1.jpg", "2019/2.jpg", "2020/1.jpg", "2020/2.jpg"]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path)]).path])
    run: Any = NothingIsWeak()
    photo = FoundPhoto("2019/1.jpg", cast(Regions, None), "")
    right = RightCaptions(captions, collection)
    for asked in (photo, replace(photo, image="moved.jpg", copies=(photo,))):
        hits = caption_hits(run, asked, captions, right, np.zeros(4), 4)
        assert [hit.right for hit in hits] == [True, False, False, False]


def test_captions_of_a_folder_that_got_another_name_stay_those_of_its_photos(tmp_path: Path) -> None:
    """Which are in the store under their names of before, and gone there."""
    captions = read_captions(captions_of(tmp_path / "holidays/captions.csv", ["1.jpg", "2.jpg"]))
    (tmp_path / "holidays/1.jpg").write_text("1")
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "cam")]).path])
    run: Any = NothingIsWeak()
    asked = FoundPhoto("holidays/1.jpg", cast(Regions, None), str(tmp_path / "holidays/1.jpg"))
    photo = replace(asked, copies=(replace(asked, image="1.jpg", path=""),))
    hits = caption_hits(run, photo, captions, RightCaptions(captions, collection), np.zeros(2), 2)
    assert [hit.right for hit in hits] == [True, False]


def test_captions_above_a_folder_of_photos_are_of_these_alone(tmp_path: Path) -> None:
    """As Kaggle has Flickr8k; another folder numbers its photos as well."""
    for folder in ("flick/images", "holiday"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (tmp_path / folder / name).write_text(folder + name)
    captions = read_captions(captions_of(tmp_path / "flick/captions.csv", ["1.jpg", "2.jpg"]))
    own, other = tmp_path / "flick/images", tmp_path / "holiday"
    ids, features = ["1.jpg", "2.jpg"], tmp_path / "features"
    stores = [make_store(features / root.name, ids, image_roots=[str(root)]).path for root in (own, other)]
    both = open_stores(stores, tell_apart=True)
    assert right_captions(open_stores(stores[1:]), "1.jpg", other / "1.jpg", captions) == []
    assert right_captions(open_stores(stores[:1]), "1.jpg", own / "1.jpg", captions) == ["of 1.jpg"]
    for root, right in ((own, ["of 1.jpg"]), (other, [])):
        (image,) = (name for name in both if name.endswith(f"{root.name}/1.jpg"))
        assert right_captions(both, image, root / "1.jpg", captions) == right


@pytest.mark.parametrize("place", ["annotations", "."])
def test_captions_named_after_a_folder_are_right_for_its_photos_alone(tmp_path: Path, place: str) -> None:
    """As COCO names them; the photos of both folders are called 1.jpg and 2.jpg."""
    names = ["1.jpg", "2.jpg"]
    captions, stores = {}, {}
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(folder + name)
        file = captions_of(tmp_path / place / f"captions_{folder}.json", names)
        captions[folder] = [replace(one, text=f"{folder} {one.image}") for one in read_captions(file)]
        root = str(tmp_path / folder)
        stores[folder] = make_store(tmp_path / "features" / folder, names, image_roots=[root]).path
    both = open_stores(list(stores.values()), tell_apart=True)
    below = [f"{folder}/{name}" for folder in stores for name in names]
    whole = open_stores([make_store(tmp_path / "features/whole", below, image_roots=[str(tmp_path)]).path])
    for folder, path in stores.items():
        photo, everything = tmp_path / folder / "1.jpg", [*captions["train"], *captions["val"]]
        (image,) = (name for name in both if name.endswith(f"{folder}/1.jpg"))
        for collection, called in ((open_stores([path]), "1.jpg"), (both, image), (whole, f"{folder}/1.jpg")):
            assert right_captions(collection, called, photo, everything) == [f"{folder} 1.jpg"]
        (other,) = captions.keys() - {folder}
        assert right_captions(open_stores([path]), "1.jpg", photo, captions[other]) == []
        (tmp_path / folder / "2.jpg").unlink()
        assert right_captions(open_stores([path]), "2.jpg", "", everything) == [f"{folder} 2.jpg"]


@pytest.mark.parametrize(
    ("folders", "files"),
    [
        (("train", "val"), ("train.csv", "val.csv")),
        (
            ("images/train2017", "images/val2017"),
            ("annotations/captions_train2017.json", "annotations/captions_val2017.json"),
        ),
        (("train", "Validation"), ("captions_train.csv", "captions_val.csv")),
        (("train_images", "val_images"), ("captions/train.csv", "labels/captions_val.csv")),
    ],
)
def test_captions_named_after_a_split_are_right_for_its_folder_alone(
    tmp_path: Path, folders: tuple[str, str], files: tuple[str, str]
) -> None:
    """Be the photo in a store, alone or beside the others, or in none."""
    captions = []
    for folder, file in zip(folders, files, strict=True):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_text(folder)
        captions += [replace(one, text=folder) for one in read_captions(captions_of(tmp_path / file, ["1.jpg"]))]
    stores = [
        make_store(tmp_path / f"features/{n}", ["1.jpg"], image_roots=[str(tmp_path / one)]).path
        for n, one in enumerate(folders)
    ]
    both = open_stores(stores, tell_apart=True)
    for number, folder in enumerate(folders):
        path = tmp_path / folder / "1.jpg"
        assert right_captions(open_stores([stores[number]]), "1.jpg", path, captions) == [folder]
        assert right_captions(open_stores([stores[1 - number]]), str(path), path, captions) == [folder]
        assert right_captions(both, both.image_ids[number], path, captions) == [folder]


def test_captions_in_a_store_are_right_for_its_photos_alone(tmp_path: Path) -> None:
    """As those of a tar, or of an import, whose photos have names such as 000003.jpg again and again."""
    captions, stores = [], []
    for name, ids in (("train", ["000003.jpg"]), ("val", ["000003.jpg", "000004.jpg"])):
        stores.append(make_store(tmp_path / name, ids, image_roots=[f"{tmp_path}/{name}.tar"]).path)
        file = captions_of(stores[-1] / "captions_of_photos.json", ids)
        captions += [replace(one, text=name) for one in read_captions(file) if one.image == "000003.jpg"]
    both = open_stores(stores, tell_apart=True)
    for number, store in enumerate(stores):
        place = f"{tmp_path}/{store.name}.tar::000003.jpg"
        assert right_captions(open_stores([store]), "000003.jpg", place, captions) == [store.name]
        assert right_captions(both, f"{store.name}/000003.jpg", place, captions) == [store.name]
        assert right_captions(open_stores([stores[1 - number]]), place, place, captions) == []
    twin = make_store(tmp_path / "twin", ["000003.jpg"], image_roots=[f"{tmp_path}/twin.tar"]).path
    others = read_captions(captions_of(twin / "captions.csv", ["000003.jpg"]))
    twins = open_stores([stores[0], twin], tell_apart=True)  # of equal numbers of photos
    assert right_captions(twins, "twin/000003.jpg", "", [*captions, *others]) == ["of 000003.jpg"]
    shutil.copytree(stores[0], tmp_path / "copy")
    assert right_captions(open_stores([tmp_path / "copy"]), "000003.jpg", "", captions) == ["train"]


def test_captions_of_an_import_without_photos_are_right_by_name(tmp_path: Path) -> None:
    """Be photos of the names on the disk or not."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.jpg").write_text("val")
    captions = read_captions(captions_of(tmp_path / "annotations/captions_val.json", ["1.jpg"]))
    collection = open_stores([make_store(tmp_path / "imported", ["1.jpg"], image_roots=[]).path])
    assert right_captions(collection, "1.jpg", "", captions) == ["of 1.jpg"]


def test_a_photo_that_two_stores_have_has_its_captions(tmp_path: Path) -> None:
    """A folder, and one in it."""
    (tmp_path / "pics/more").mkdir(parents=True)
    path = tmp_path / "pics/more/1.jpg"
    path.write_text("1")
    captions = read_captions(captions_of(path.parent / "captions.csv", ["1.jpg"]))
    roots = {"1.jpg": path.parent, "more/1.jpg": tmp_path / "pics"}
    stores = [
        make_store(tmp_path / f"features/{n}", [one], image_roots=[str(root)]).path
        for n, (one, root) in enumerate(roots.items())
    ]
    for image in roots:
        assert right_captions(open_stores(stores), image, path, captions) == ["of 1.jpg"]


def test_captions_far_above_their_photos_are_of_no_photo_of_another_store(tmp_path: Path) -> None:
    for folder in ("holiday/2019/05", "work"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.jpg").write_text(folder)
    stores = [
        make_store(tmp_path / "features/holiday", ["2019/05/1.jpg"], image_roots=[str(tmp_path / "holiday")]).path,
        make_store(tmp_path / "features/work", ["1.jpg"], image_roots=[str(tmp_path / "work")]).path,
    ]
    for name in ("1.jpg", "holiday/2019/05/1.jpg"):
        captions = read_captions(captions_of(tmp_path / "holiday/captions.csv", [name]))
        assert right_captions(open_stores(stores), "1.jpg", tmp_path / "work/1.jpg", captions) == []
        asked = tmp_path / "holiday/2019/05/1.jpg"
        assert right_captions(open_stores(stores), "2019/05/1.jpg", asked, captions) == [f"of {name}"]


def test_the_id_of_a_photo_below_its_captions_means_no_namesake_deeper(tmp_path: Path) -> None:
    ids = {"x": ["a/1.jpg"], "y": ["1.jpg"]}
    stores = [
        make_store(tmp_path / name, own, image_roots=[f"{tmp_path}/photos/{name}"]).path for name, own in ids.items()
    ]
    captions = read_captions(captions_of(tmp_path / "captions.csv", ["1.jpg", "a/1.jpg"]))
    for image in ("1.jpg", "a/1.jpg"):
        assert right_captions(open_stores(stores), image, "", captions) == [f"of {image}"]


def test_which_of_two_photos_captions_above_them_mean_is_not_known(tmp_path: Path) -> None:
    for folder in ("images", "more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_text(folder)
    captions = read_captions(captions_of(tmp_path / "captions.csv", ["1.jpg"]))
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "images")]).path])
    right, photo = (
        RightCaptions(captions, collection),
        FoundPhoto("1.jpg", cast(Regions, None), str(tmp_path / "images/1.jpg")),
    )
    assert not right.is_of(captions[0], photo)
    assert [doubt.partition(":")[0] for doubt in right.doubts] == [
        f"{tmp_path}/images/1.jpg and {tmp_path}/more/1.jpg are both called 1.jpg"
    ]
    (tmp_path / "more/1.jpg").write_text("images")  # a copy
    assert RightCaptions(captions, collection).is_of(captions[0], photo)


def test_captions_of_a_photo_that_is_gone_from_their_folder_are_right_for_no_other(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "b/1.jpg").write_text("b")
    captions = read_captions(captions_of(tmp_path / "captions.csv", ["a/1.jpg"]))
    for ids, root in ((["1.jpg"], tmp_path / "b"), (["b/1.jpg"], tmp_path)):
        collection = open_stores([make_store(tmp_path / f"store{len(ids[0])}", ids, image_roots=[str(root)]).path])
        assert right_captions(collection, ids[0], tmp_path / "b/1.jpg", captions) == []


def test_captions_beside_a_photo_that_is_in_no_store_are_its_own(tmp_path: Path) -> None:
    """Whatever stored photo has its name."""
    captions = read_captions(captions_of(tmp_path / "train/captions.csv", ["1.jpg"]))
    (tmp_path / "train/1.jpg").write_text("train")
    val = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "val")]).path])
    path = tmp_path / "train/1.jpg"
    assert right_captions(val, str(path), path, captions) == ["of 1.jpg"]
    edited = open_stores([make_store(tmp_path / "own", ["1.jpg"], image_roots=[str(tmp_path / "train")]).path])
    assert right_captions(edited, str(path), path, captions) == []  # they may be of the photo before


def test_captions_that_lie_elsewhere_are_of_the_photos_of_their_names(tmp_path: Path) -> None:
    """Annotations without photos beside them; those above the photos, by base names; and photos that moved."""
    for name in TOP:
        (tmp_path / "photos/2020").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos/2020" / name).write_text(name)
    collection = open_stores([make_store(tmp_path / "store", TOP, image_roots=[str(tmp_path / "photos/2020")]).path])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "other.jpg").touch()
    for place in ("annotations", "photos"):
        for names in (TOP, LOWER):
            captions = read_captions(captions_of(tmp_path / place / "captions.json", names))
            for folder in ("photos/2020", "moved", "photos/2020"):
                (photo,) = tmp_path.rglob(LOST)
                (tmp_path / folder).mkdir(exist_ok=True)
                path = photo.rename(tmp_path / folder / LOST)
                if (place, folder) != ("photos", "moved"):  # photos lie below this file
                    assert right_captions(collection, LOST, path, captions) == [f"of {names[2]}"]


def test_a_copy_of_a_photo_has_its_captions(tmp_path: Path) -> None:
    captions = read_captions(captions_of(tmp_path / "original/captions.csv", TOP))
    for folder, name in ((folder, name) for folder in ("original", "fast") for name in TOP):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(name)
    collection = open_stores([make_store(tmp_path / "store", TOP, image_roots=[str(tmp_path / "fast")]).path])
    assert right_captions(collection, LOST, tmp_path / "fast" / LOST, captions) == [f"of {LOST}"]
    (tmp_path / "original" / LOST).write_text("img_3.jpg")  # of the same size
    assert right_captions(collection, LOST, tmp_path / "fast" / LOST, captions) == []


def test_of_names_with_accents_the_best_alone_means_a_photo(tmp_path: Path) -> None:
    """Macs write the letters and their accents apart."""
    name = unicodedata.normalize("NFD", "café.jpg")
    captions = read_captions(captions_of(tmp_path / "captions.csv", [name, f"2020/{name}"]))
    collection = open_stores([make_store(tmp_path / "store", [f"2020/{name}"], image_roots=["/photos"]).path])
    assert right_captions(collection, f"2020/{name}", "", captions) == [f"of 2020/{name}"]


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
        FoundPhoto("2.jpg", cast(Regions, None), str(asked)),
    )
    assert not any(right.is_of(caption, found) for caption in captions)
    assert right.elsewhere["2.jpg"].endswith(f"captions.csv are of a photo that is not in {tmp_path}/shop")


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
            right.is_of(caption, FoundPhoto(image, cast(Regions, None), str(tmp_path / image))) for caption in captions
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


def test_captions_named_after_a_split_are_of_no_other_split(tmp_path: Path) -> None:
    lay_out(tmp_path, "train/1.jpg")
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "train")]).path])
    for split, right in (("val", []), ("train", ["of 1.jpg"])):
        captions = read_captions(captions_of(tmp_path / f"annotations/captions_{split}.json", ["1.jpg"]))
        assert right_captions(collection, "1.jpg", tmp_path / "train/1.jpg", captions) == right


def test_a_folder_with_too_many_files_marks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "home/1.jpg", "home/more/2.jpg")
    monkeypatch.setattr("pipeline.inputs.homes.MOST_LISTED", 2)
    captions = read_captions(captions_of(tmp_path / "home/captions.csv", ["1.jpg"]))
    collection = open_stores([make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "home")]).path])
    right = RightCaptions(captions, collection)
    assert not right.is_of(captions[0], FoundPhoto("1.jpg", cast(Regions, None), str(tmp_path / "home/1.jpg")))
    (doubt,) = right.doubts
    assert doubt.startswith(f"{tmp_path}/home has too many files to know which photos")


def test_names_of_a_folder_that_is_not_there_are_of_no_photo_in_another(tmp_path: Path) -> None:
    """As of a year that was archived; where all are, as of COCO's folders that were put into one, a note says so."""
    lay_out(tmp_path, *(f"photos/{year}/{number}.jpg" for year in (2020, 2024) for number in (1, 2)))
    ids = [f"{year}/{number}.jpg" for year in (2020, 2024) for number in (1, 2)]
    collection = open_stores([make_store(tmp_path / "store", ids, image_roots=[str(tmp_path / "photos")]).path])
    photo = FoundPhoto("2024/1.jpg", cast(Regions, None), str(tmp_path / "photos/2024/1.jpg"))
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
        assert right.is_of(captions[0], FoundPhoto(ids[0], cast(Regions, None), str(tmp_path / ids[0])))
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
    assert right.is_of(captions[0], FoundPhoto("1.jpg", cast(Regions, None), str(tmp_path / "photos/1.jpg")))
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
