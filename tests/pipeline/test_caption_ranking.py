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
from pipeline.photo_lookup import AskedPhoto
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
    photo, scores = AskedPhoto(image, cast(Regions, None), str(path)), np.zeros(len(captions))
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
    photo = AskedPhoto("2019/1.jpg", cast(Regions, None), "")
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
    asked = AskedPhoto("holidays/1.jpg", cast(Regions, None), str(tmp_path / "holidays/1.jpg"))
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
        AskedPhoto("1.jpg", cast(Regions, None), str(tmp_path / "images/1.jpg")),
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
