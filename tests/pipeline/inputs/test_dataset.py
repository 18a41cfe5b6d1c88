"""Stores and captions, joined: splits, ids, and what is said about the rest."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.dataset import _splits_of_folders, load_dataset
from pipeline.inputs.sources import list_photos
from pipeline.inputs.splits import all_splits, example, with_training_splits
from tests.photos import write_photos
from tests.pipeline.store.test_store import write_store
from tests.stores import make_store


def write_coco(path: Path, names: list[str], captions: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 100 + index, "file_name": name} for index, name in enumerate(names)]
    rows = [
        {"id": 10_000 + index * captions + number, "image_id": 100 + index, "caption": f"{number} of {name}"}
        for index, name in enumerate(names)
        for number in range(captions)
    ]
    path.write_text(json.dumps({"images": images, "annotations": rows[::-1]}))  # last image first
    return path


def names(count: int) -> list[str]:
    return [f"{index}.jpg" for index in range(count)]


def test_coco_ids_survive_and_captions_go_to_their_images(tmp_path: Path) -> None:
    regions = write_store(tmp_path / "train2014", [3, 2])
    captions = write_coco(tmp_path / "captions.json", names(5))
    split = load_dataset([tmp_path / "train2014"], [captions]).splits["train"]
    for caption_id, text, image in zip(
        split.caption_ids, split.images.captions, split.images.image_of_caption, strict=True
    ):
        row = int(split.images.rows[image])
        assert split.image_ids[image] == 100 + row
        assert (int(caption_id) - 10_000) // 2 == row
        assert text.endswith(f"of {row}.jpg")
        np.testing.assert_array_equal(split.images.source.gather(np.array([row]))[0], regions[row].features)


def test_splits_come_from_the_file_or_from_names(tmp_path: Path) -> None:
    write_store(tmp_path / "train2014", [2], prefix="t")
    write_store(tmp_path / "val2014", [3], prefix="v")
    files = [
        write_coco(tmp_path / "captions_train2014.json", ["t0.jpg", "t1.jpg"]),
        write_coco(tmp_path / "captions_val2014.json", ["v0.jpg", "v1.jpg", "v2.jpg"]),
    ]
    dataset = load_dataset([tmp_path / "train2014", tmp_path / "val2014"], files)
    assert {name: split.store_ids for name, split in dataset.splits.items()} == {
        "train": ["t1.jpg", "t0.jpg"],  # in the order of the captions file: folds are cut along it
        "dev": ["v2.jpg", "v1.jpg", "v0.jpg"],
    }
    karpathy = tmp_path / "dataset_coco.json"
    splits = {"t0.jpg": "train", "t1.jpg": "test", "v0.jpg": "restval", "v1.jpg": "val"}
    karpathy.write_text(
        json.dumps(
            {
                "images": [
                    {"filename": name, "split": split, "sentences": [{"raw": "a"}]} for name, split in splits.items()
                ]
            }
        )
    )
    dataset = load_dataset([tmp_path / "train2014", tmp_path / "val2014"], [karpathy])
    assert {name: split.store_ids for name, split in dataset.splits.items()} == {
        "dev": ["v1.jpg"],
        "test": ["t1.jpg"],
        "train": ["t0.jpg", "v0.jpg"],
    }
    assert dataset.notes == [
        f"images in {karpathy}: 2 in {tmp_path}/train2014, 2 in {tmp_path}/val2014",
        f"no photo that {karpathy} names is beside it: its captions are matched by the names alone",
        "1 of 5 images have no caption and are left out",
    ]
    assert len(all_splits(dataset).store_ids) == 4


def test_a_files_name_tells_the_split_before_its_stores_does(tmp_path: Path) -> None:
    write_store(tmp_path / "train_photos", [4])
    train = write_coco(tmp_path / "captions_train.json", ["0.jpg", "1.jpg", "2.jpg"])
    dev = write_coco(tmp_path / "captions_dev.json", ["3.jpg"])
    dataset = load_dataset([tmp_path / "train_photos"], [train, dev])
    splits = {name: sorted(split.store_ids) for name, split in dataset.splits.items()}
    assert splits == {"dev": ["3.jpg"], "train": ["0.jpg", "1.jpg", "2.jpg"]}
    assert dataset.notes == [
        f"1 images in {dev} are, as the file is named, dev; their folders or stores are not, such as that of 3.jpg",
        f"no photo that {train} names is beside it: its captions are matched by the names alone",
        f"no photo that {dev} names is beside it: its captions are matched by the names alone",
    ]


def test_a_files_name_is_compared_with_the_one_folder_of_its_photos(tmp_path: Path) -> None:
    """As where the photos of the file, which have the same numbers, were not downloaded."""
    store = make_store(tmp_path / "photos", ["train/1.jpg", "train/2.jpg"])
    val = write_coco(tmp_path / "annotations/captions_val.json", ["1.jpg", "2.jpg"])
    dataset = load_dataset([store.path], [val])
    assert dataset.notes[0] == (
        f"2 images in {val} are, as the file is named, dev; their folders or stores are not, such as that of train/2.jpg"
    )


def test_folders_of_several_datasets_tell_splits_at_levels_of_their_own(tmp_path: Path) -> None:
    ids = ["viz/val/0.jpg", "viz/test/1.jpg", "hub/images/train/2.jpg", "hub/images/test/3.jpg"]
    make_store(tmp_path / "all", ids)
    captions = write_coco(tmp_path / "all.json", ids)
    splits = load_dataset([tmp_path / "all"], [captions]).splits
    assert {name: sorted(split.store_ids, key=ids.index) for name, split in splits.items()} == {
        "dev": ids[:1],
        "test": [ids[1], ids[3]],
        "train": [ids[2]],
    }
    assert _splits_of_folders([["a", "train"], ["b", "images", "test"]]) == ["train", "test"]
    assert _splits_of_folders([["a", "train"], ["b", "images", "bus"]]) == ["", ""]


def test_folders_tell_splits_where_they_tell_several(tmp_path: Path) -> None:
    """As in the hub's folders of images; a folder of trains alone tells none."""
    ids = ["train/0.jpg", "train/1.jpg", "val/dogs/0.jpg", "test/0.jpg", "extra/train/0.jpg"]
    captions = write_coco(tmp_path / "captions.json", ids)
    make_store(tmp_path / "mine", ids)
    splits = load_dataset([tmp_path / "mine"], [captions]).splits
    assert {name: sorted(split.store_ids) for name, split in splits.items()} == {
        "": ["extra/train/0.jpg"],
        "dev": ["val/dogs/0.jpg"],
        "test": ["test/0.jpg"],
        "train": ["train/0.jpg", "train/1.jpg"],
    }
    make_store(tmp_path / "vehicles", ["train/0.jpg", "bus/0.jpg"])
    captions = write_coco(tmp_path / "vehicles.json", ["train/0.jpg", "bus/0.jpg"])
    assert list(load_dataset([tmp_path / "vehicles"], [captions]).splits) == [""]


def test_a_stores_name_tells_the_split_before_its_folders_do(tmp_path: Path) -> None:
    """Karpathy's test photos lie in COCO's train2017 and val2017."""
    ids = ["train2017/0.jpg", "val2017/0.jpg"]
    captions = write_coco(tmp_path / "captions.json", ids)
    make_store(tmp_path / "coco_test", ids)
    dataset = load_dataset([tmp_path / "coco_test"], [captions])
    assert list(dataset.splits) == ["test"]
    assert dataset.notes == [
        f"2 images in {captions} are, as the store is named, test; their folders are not, such as that of {ids[1]}"
    ]


def test_a_dev_split_is_held_out_where_none_is_named(tmp_path: Path) -> None:
    write_store(tmp_path / "mine", [30])
    captions = write_coco(tmp_path / "captions.json", names(30))
    made = [with_training_splits(load_dataset([tmp_path / "mine"], [captions]), dev_images) for dev_images in (1000, 2)]
    assert [len(dataset.splits["dev"].store_ids) for dataset in made] == [5, 2]
    dataset = made[0]
    train, dev = dataset.splits["train"], dataset.splits["dev"]
    assert set(train.store_ids) | set(dev.store_ids) == set(names(30))
    assert not set(train.store_ids) & set(dev.store_ids)
    for split in (train, dev):
        for text, image in zip(split.images.captions, split.images.image_of_caption, strict=True):
            assert text.endswith(split.store_ids[image])
    assert set(made[1].splits["dev"].store_ids) < set(dev.store_ids)
    assert any("holding out 5 of 30" in note for note in dataset.notes)


def test_copies_of_train_images_that_are_held_out_are_said(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(6)]
    store = make_store(tmp_path / "s", names, photo_sha256=dict(zip(names, 6 * ["a" * 64], strict=True)))
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f"{name},A dog\n" for name in names))
    note = "2 dev images have the same content as train images: the dev recalls are not those of unseen photos"
    assert note in with_training_splits(load_dataset([store.path], [tmp_path / "c.csv"]), 5).notes


def test_a_large_dev_split_is_cut_to_size(tmp_path: Path) -> None:
    write_store(tmp_path / "train", [4], prefix="t")
    write_store(tmp_path / "dev", [9], prefix="d")
    files = [
        write_coco(tmp_path / "t.json", [f"t{index}.jpg" for index in range(4)]),
        write_coco(tmp_path / "d.json", [f"d{index}.jpg" for index in range(9)]),
    ]
    dataset = with_training_splits(load_dataset([tmp_path / "train", tmp_path / "dev"], files), 5)
    assert dataset.splits["dev"].store_ids == [f"d{index}.jpg" for index in (8, 7, 6, 5, 4)]
    assert "selecting on the first 5 of 9 dev images" in dataset.notes


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    write_store(tmp_path / "mine", [1])
    captions = write_coco(tmp_path / "captions.json", names(1))
    with pytest.raises(PipelineError, match="found 1 image with captions; training needs at least 2"):
        with_training_splits(load_dataset([tmp_path / "mine"], [captions]), 10)


def test_stray_files_beside_the_photos_are_skipped_and_counted(tmp_path: Path) -> None:
    write_store(tmp_path / "features/mine", [3], image_roots=[str(tmp_path / "mine")])
    (tmp_path / "mine").mkdir()
    (tmp_path / "dataset-metadata.json").write_text('{"title": "photos"}')
    (tmp_path / "features/mine/captions_old").mkdir()
    (tmp_path / "features/mine/captions.bak").write_bytes(b"\xff\xfe\xfd")
    wanted = write_coco(tmp_path / "captions.json", names(3))
    dataset = load_dataset([tmp_path / "features/mine"])
    assert dataset.caption_files == [wanted]
    assert [note.split(": ")[0] for note in dataset.notes] == [
        f"skipped {tmp_path}/features/mine/captions.bak",
        f"skipped {tmp_path}/dataset-metadata.json",
        f"no photo that {wanted} names is beside it",
    ]


def test_karpathys_folders_keep_photos_of_one_name_apart(tmp_path: Path) -> None:
    write_store(tmp_path / "features/train", [2], image_roots=[str(tmp_path / "train")])
    images = [
        {"filepath": folder, "filename": "0.jpg", "split": folder, "sentences": [{"raw": f"of {folder}"}]}
        for folder in ("val", "train")
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    dataset = load_dataset([tmp_path / "features/train"], [tmp_path / "dataset.json"])
    assert dataset.splits["train"].images.captions == ["of train"]


def test_what_was_read_of_the_first_image_is_shown(tmp_path: Path) -> None:
    store = make_store(tmp_path / "photos", ["1.jpg", "2.jpg"])
    (tmp_path / "c.csv").write_text('image,caption\n1.jpg,A dog\n1.jpg,"Here, a dog"\n2.jpg,Two\n')
    dataset = load_dataset([store.path], [tmp_path / "c.csv"])
    assert example(dataset.splits[""]) == "for example 1.jpg: 'A dog', 'Here, a dog'"


def test_splits_that_training_does_not_know_are_said(tmp_path: Path) -> None:
    store = make_store(tmp_path / "photos", [f"{number}.jpg" for number in range(8)])
    rows = [f"{number}.jpg,A dog,{split}" for number, split in enumerate(["train"] * 4 + ["val"] * 2 + ["fold 3"] * 2)]
    (tmp_path / "c.csv").write_text("\n".join(["image,caption,split", *rows]))
    dataset = with_training_splits(load_dataset([store.path], [tmp_path / "c.csv"]), 1000)
    assert len(dataset.splits["train"].store_ids) == 4
    assert "left out are the splits 'fold 3' 2 images / 2 captions; training knows train, dev and test" in dataset.notes
    (tmp_path / "c.csv").write_text("image,caption,split\n1.jpg,A dog,a\n2.jpg,A cat,b\n")
    with pytest.raises(
        PipelineError, match="no image is in a split that is called train; found a 1 images / 1 captions, b"
    ):
        with_training_splits(load_dataset([store.path], [tmp_path / "c.csv"]), 1000)


def test_what_is_not_called_train_is_not_left_out_for_the_test_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / "photos", [f"{number}.jpg" for number in range(6)])
    for split, is_known in (("trainval", True), ("training set", False)):
        rows = [f"{number}.jpg,a dog {number},{split if number < 4 else 'test'}" for number in range(6)]
        (tmp_path / "c.csv").write_text("\n".join(["image,caption,split", *rows]))
        dataset = load_dataset([store.path], [tmp_path / "c.csv"])
        if is_known:
            assert len(with_training_splits(dataset, 1).splits["train"].store_ids) == 3
        else:
            with pytest.raises(PipelineError, match=r"no image .* called train; found test 2 .*, 'training set' 4"):
                with_training_splits(dataset, 1)


def test_captions_of_two_files_count_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "photos", ["1.jpg", "2.jpg"])
    (tmp_path / "a.csv").write_text("1.jpg,A dog\n1.jpg,A dog\n2.jpg,A cat\n")  # people write the same twice
    (tmp_path / "b.csv").write_text("1.jpg,A dog\n2.jpg,A dog\n")
    dataset = load_dataset([store.path], [tmp_path / "a.csv", tmp_path / "b.csv"])
    assert dataset.splits[""].images.captions == ["A dog", "A dog", "A cat", "A dog"]
    assert f"1 captions in {tmp_path}/b.csv are in a file before it as well: they count once" in dataset.notes
    rows = [{"id": 70 + number, "image_id": number, "caption": "A dog"} for number in (1, 2)]  # COCO's JSON has ids
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": rows}))
    dataset = load_dataset([store.path], [tmp_path / "c.json", tmp_path / "b.csv"])
    assert dataset.splits[""].images.captions == ["A dog", "A dog"]


def test_captions_beside_photos_are_of_none_in_another_folder(tmp_path: Path) -> None:
    """As where photos of one camera were deleted, and those of another one go by their names."""
    for folder, own in (("2019", names(5)[:3]), ("2020", names(5)[3:])):
        make_store(tmp_path / "features" / folder, own, image_roots=[str(tmp_path / folder)])
    stores = [tmp_path / "features" / folder for folder in ("2019", "2020")]
    beside = write_coco(tmp_path / "2019/captions.json", names(5))
    gone = f"4 captions in {beside} are of images in none of the stores, such as {tmp_path}/2019/4.jpg"
    assert gone in load_dataset(stores, [beside]).notes
    apart = write_coco(tmp_path / "annotations/captions.json", names(5))
    above = write_coco(tmp_path / "captions.json", names(5))
    assert not any("another folder" in note for path in (apart, above) for note in load_dataset(stores, [path]).notes)
    (tmp_path / "2019/4.jpg").touch()  # which no store of these has
    assert f"2 images in {beside} are taken from another folder" in "".join(load_dataset(stores[1:], [beside]).notes)


def test_a_photo_that_two_stores_hold_is_not_trained_on_and_held_out(tmp_path: Path) -> None:
    """As where a folder was extracted first, and then the one around it."""
    make_store(tmp_path / "2019", ["0.jpg", "1.jpg"], image_roots=["/photos/2019"])
    make_store(tmp_path / "all", ["2019/0.jpg", "2020/0.jpg"], image_roots=["/photos"])
    (tmp_path / "c.csv").write_text("2019/0.jpg,A dog\n2020/0.jpg,A cat\n")
    load_dataset([tmp_path / "2019", tmp_path / "all"], [tmp_path / "c.csv"])  # one of the two has captions
    (tmp_path / "c.csv").write_text("2019/0.jpg,A dog\n0.jpg,A dog\n")
    with pytest.raises(PipelineError, match=r"/photos/2019/0\.jpg is in two of .*2019, .*all; choose stores"):
        load_dataset([tmp_path / "2019", tmp_path / "all"], [tmp_path / "c.csv"])


def test_a_folder_within_another_brings_no_photo_twice(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos/2019", 2)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for roots in ([tmp_path / "photos", tmp_path / "photos/2019"], [tmp_path / "photos", tmp_path / "link"]):
        with pytest.raises(PipelineError, match=r"photos(/2019)? is part of .*photos; name the outer folder alone"):
            list_photos(roots)


def test_captions_without_numbers_that_two_files_have_count_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", ["1.jpg", "2.jpg"])
    paths = [tmp_path / "all.json", tmp_path / "some.json"]
    for path, names in zip(paths, (["1.jpg", "2.jpg"], ["2.jpg"]), strict=True):
        images = [{"filename": name, "sentences": [{"raw": f"of {name}"}]} for name in names]
        path.write_text(json.dumps({"images": images}))
    split = load_dataset([store.path], paths).splits[""]
    assert split.images.captions == ["of 1.jpg", "of 2.jpg"]
    assert split.caption_ids == ["1.jpg#0", "2.jpg#0"]


def test_a_photo_under_several_names_is_said(tmp_path: Path) -> None:
    """As in parquet with a row for each caption, and no name of its photo."""
    contents = {"train/000000": "1" * 64, "train/000001": "1" * 64, "train/000002": "2" * 64}
    store = make_store(tmp_path / "store", list(contents), photo_sha256=contents)
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{name},a dog\n" for name in contents))
    assert load_dataset([store.path], [path]).notes == [
        "2 images have the content of another one, such as train/000000 and train/000001: the captions of each count as "
        "wrong for the others"
    ]


def test_of_a_store_of_several_folders_each_tells_the_split_of_its_photos(tmp_path: Path) -> None:
    """It is named after the last; those of the others were in its split."""
    ids = ["extra/1.jpg", "train/2.jpg"]
    roots = [str(tmp_path / "extra"), str(tmp_path / "train")]
    store = make_store(tmp_path / "features/train", ids, roots=[0, 1], image_roots=roots)
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\nextra/1.jpg,a dog\ntrain/2.jpg,a cat\n")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/1.jpg").touch()  # beside the captions: they are of no other folder
    dataset = load_dataset([store.path], [path])
    splits = {name: split.store_ids for name, split in dataset.splits.items()}
    assert splits == {"": ["extra/1.jpg"], "train": ["train/2.jpg"]}
    assert dataset.notes == [f"images in {path}: 1 in {roots[0]}, 1 in {roots[1]}"]


def test_folders_of_one_store_do_not_take_the_name_of_another(tmp_path: Path) -> None:
    stores = [
        make_store(tmp_path / "mine", ["train/1.jpg", "test/2.jpg", "3.jpg"]).path,
        make_store(tmp_path / "val2014", ["4.jpg"]).path,
    ]
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n1.jpg,a\n2.jpg,b\n3.jpg,c\n4.jpg,d\n")
    splits = load_dataset(stores, [path]).splits
    assert {name: split.store_ids for name, split in splits.items()} == {
        "": ["3.jpg"], "dev": ["4.jpg"], "test": ["test/2.jpg"], "train": ["train/1.jpg"],
    }  # fmt: skip


def test_a_caption_of_many_images_is_said(tmp_path: Path) -> None:
    """As a word for a missing value that nobody knows."""
    store = make_store(tmp_path / "photos", [f"{number}.jpg" for number in range(60)])
    texts = ["(nichts)"] * 5 + ["a dog"] * 4 + [f"photo {number}" for number in range(51)]
    (tmp_path / "c.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,{text}\n" for n, text in enumerate(texts)))
    dataset = load_dataset([store.path], [tmp_path / "c.csv"])
    assert dataset.notes == ["'(nichts)' is a caption of 5 of 60 images: for each, those of the others count as wrong"]
