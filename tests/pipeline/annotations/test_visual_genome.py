"""Visual Genome in its versions -> records; what is unusable is counted, never guessed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.training.data import RecordReader
from pipeline.annotations.records import (
    ClassVocabulary,
    DetectionRecords,
    check_photos,
    clean_box,
    make_record,
    read_class_vocabulary,
)
from pipeline.annotations.visual_genome import read_held_out, read_visual_genome
from pipeline.errors import PipelineError
from pipeline.inputs.photos import read_image
from tests.photos import write_photos

OBJECTS = ClassVocabulary(["Dog,dogs", "fire  hydrant,hydrant", "tree"])
ATTRIBUTES = ClassVocabulary(["red", "gray,grey", "tall"])


def thing(name: str, box: Any = (4, 6, 20, 10), **more: Any) -> dict[str, Any]:
    """An object of objects.json."""
    return dict(zip("xywh", box, strict=True)) | {"names": [name], "object_id": 1, "merged_object_ids": []} | more


def write(folder: Path, objects: list[dict], attributes: list[dict] = [], **changes: Any) -> Path:  # noqa: B006
    """A folder of Visual Genome with one photo a row of `objects`: 48 x 64 pixels, ids from 1; coco_id 100 + id."""
    content = {
        "image_data": [
            {"image_id": row["image_id"], "height": 48, "width": 64, "coco_id": 100 + row["image_id"]}
            for row in objects
        ],
        "objects": objects,
        "attributes": attributes,
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in content.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    for row in objects:
        write_photos(folder / "VG_100K", 1, names=f"{row['image_id']}.jpg")
    return folder


def images(*things: list[dict]) -> list[dict]:
    return [{"image_id": number, "objects": rows} for number, rows in enumerate(things, start=1)]


def read(folder: Path, **options: Any) -> DetectionRecords:
    """With the first image held out."""
    return read_visual_genome(folder, OBJECTS, ATTRIBUTES, **{"held_out": frozenset({101})} | options)


def test_an_image_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    rows = images([thing("dog")], [thing("dog")], [thing("tree")])
    report = read(write(tmp_path, rows + rows[1:])).report
    assert report.images == {"to train on": 2, "held out": 1, "listed twice": 2}
    assert report.boxes == {"used": 3}


def test_a_vocabulary_knows_synonyms_case_and_spaces() -> None:
    assert OBJECTS.names == ["dog", "fire hydrant", "tree"]
    assert [OBJECTS.find(name) for name in ("dogs", " DOG ", "fire   Hydrant", "trees", "tree.")] == [0, 0, 1, None, 2]


@pytest.mark.parametrize(("kind", "count"), [("objects", 1600), ("attributes", 400)])
def test_the_published_vocabularies_are_shipped(kind: str, count: int) -> None:
    from detector.config import DetectorConfig
    from detector.vocabulary import default_names

    names = read_class_vocabulary("", kind).names
    assert len(names) == count
    assert names == default_names(DetectorConfig())[kind == "attributes"]  # those of published weights, to the letter


def test_vocabulary_files(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("bus,buses\n\n car ,cars\n")
    assert read_class_vocabulary(str(tmp_path / "own.txt"), "objects").names == ["bus", "car"]
    assert len(read_class_vocabulary("none", "attributes")) == 0
    (tmp_path / "marked.txt").write_text("bus,buses\ncar\n", encoding="utf-8-sig")  # as Notepad saves it
    assert read_class_vocabulary(str(tmp_path / "marked.txt"), "objects").find("bus") == 0
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("bus,van\nvan\n")
    twice = "'van' stands for 'bus' and for 'van'; expected names of one class each"
    for path, message in (("empty.txt", "no class in it"), ("gone.txt", "not readable"), ("twice.txt", twice)):
        with pytest.raises(PipelineError, match=rf"{path}: {message}"):
            read_class_vocabulary(str(tmp_path / path), "objects")
    with pytest.raises(PipelineError, match="--objects none"):
        read_class_vocabulary("none", "objects")


def test_names_are_mapped_and_those_unknown_counted(tmp_path: Path) -> None:
    rows = [thing("Dogs"), thing("unicorn"), thing("hydrant"), thing("unicorn"), thing("yeti", names=["yeti", "TREE"])]
    found = read(write(tmp_path, images([thing("dog")], rows)))
    assert found.train[0]["classes"].tolist() == [0, 1, 2]
    assert found.report.unknown["objects"] == {"unicorn": 2}
    assert found.report.boxes == {"used": 4, "of other classes": 2}
    assert "objects not in the vocabulary: 2 of 1 names, most often 'unicorn' 2" in str(found.report)
    assert (found.object_names, found.attribute_names) == (OBJECTS.names, ATTRIBUTES.names)


def test_attributes_come_by_object_id_and_by_those_merged_into_it(tmp_path: Path) -> None:
    rows = [
        thing("dog", object_id=7, merged_object_ids=[8, 9]),
        thing("dog", object_id=10),
        thing("tree", object_id=11, attributes=["Tall"]),
    ]
    attributes = [
        {"image_id": 2, "attributes": [{"object_id": 7, "attributes": ["Red ", "fluffy"]}, {"object_id": 10}]},
        {"image_id": 2, "attributes": [{"object_id": 9, "attributes": ["grey", "red"]}]},
    ]
    found = read(write(tmp_path, images([thing("dog", object_id=99)], rows), attributes))
    assert found.train[0]["attributes"].tolist() == [[0, 1], [-1, -1], [2, -1]]
    assert found.report.unknown["attributes"] == {"fluffy": 1}
    assert found.report.attributes == 3


def test_attributes_are_of_the_object_of_that_number_in_their_image(tmp_path: Path) -> None:
    """As where the objects of each image are numbered from 1."""
    rows = images([thing("dog")], [thing("dog"), thing("tree", object_id=2)], [thing("dog")])
    attributes = [
        {"image_id": 2, "attributes": [{"object_id": 1, "attributes": ["red"]}]},
        {
            "image_id": 3,
            "attributes": [{"object_id": "1", "attributes": ["gray"]}, {"object_id": 9, "attributes": ["tall"]}],
        },
    ]
    found = read(write(tmp_path, rows, attributes))
    assert [record["attributes"].tolist() for record in found.train] == [[[0], [-1]], [[]]]
    assert "attributes: 1 used, those of 2 objects that are not listed left out" in str(found.report)


def test_without_attributes_their_file_is_not_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, images([thing("dog")], [thing("dog")]))
    (folder / "attributes.json").unlink()
    found = read_visual_genome(folder, OBJECTS, ClassVocabulary([]), held_out=frozenset({101}))
    assert found.train[0]["attributes"].shape == (1, 0)
    with pytest.raises(PipelineError, match=r"expected one attributes\.json there \(found none\)"):
        read(folder)


def test_early_versions_and_versioned_names(tmp_path: Path) -> None:
    early = thing("dog") | {"id": 5, "name": "dog"}
    for key in ("object_id", "names", "merged_object_ids"):
        del early[key]
    write(
        tmp_path,
        images([thing("dog")], []),
        image_data=[{"id": number, "height": 48, "width": 64, "coco_id": 100 + number} for number in (1, 2)],
        objects_v1_2=[{"id": 1, "objects": []}, {"id": 2, "objects": [early]}],
        attributes=[{"id": 2, "attributes": [{"id": 5, "attributes": ["red"]}]}],
    )
    (tmp_path / "objects.json").unlink()
    found = read(tmp_path)
    assert found.train[0]["image_id"] == 2
    assert found.train[0]["attributes"].tolist() == [[0]]
    (tmp_path / "objects_v1_4.json").write_text("[]")
    with pytest.raises(PipelineError, match=r"\(found objects_v1_2\.json, objects_v1_4\.json\); keep one"):
        read(tmp_path)


BAD = {
    (float("nan"), 0, 5, 5): "not finite",
    (0, 0, float("inf"), 5): "not finite",
    (10**400, 0, 5, 5): "not finite",
    (0, 0, -5, 5): "negative size",
    (0, 0, 5, 0): "zero area",
    (70, 0, 5, 5): "outside",
    (0, -9, 5, 9): "outside",
    (63.5, 0, 5, 5): "under a pixel",
    ("wide", 0, 5, 5): "not four numbers",
    (None, 0, 5, 5): "not four numbers",
}


@pytest.mark.parametrize(("box", "reason"), BAD.items(), ids=str)
def test_bad_boxes_say_why(box: tuple, reason: str) -> None:
    assert clean_box(box, (48, 64)) == (None, reason)


def test_boxes_are_cut_at_the_image() -> None:
    assert clean_box([-5, 10, 20, 100], (48, 64)) == ([0, 10, 15, 48], "clipped")
    assert clean_box([0, 0, 64, 48], (48, 64)) == ([0, 0, 64, 48], "used")
    assert clean_box([1, 2, 3], (48, 64)) == (None, "not four numbers")
    assert clean_box(None, (48, 64)) == (None, "not four numbers")


def test_bad_boxes_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [thing("dog", box) for box in BAD] + [thing("tree"), thing("tree", (-1, -1, 9, 9))]
    del rows[0]["w"]
    found = read(write(tmp_path, images([thing("dog")], rows, [thing("dog", (0, 0, 0, 0))])))
    assert [record["image_id"] for record in found.train] == [2]
    assert found.train[0]["boxes"].tolist() == [[4, 6, 24, 16], [0, 0, 8, 8]]
    assert found.report.boxes == {
        "used": 2, "clipped": 1, "not four numbers": 3, "not finite": 2, "negative size": 1, "zero area": 2, "outside": 2, "under a pixel": 1,
    }  # fmt: skip
    assert found.report.images == {"without a usable box": 1, "to train on": 1, "held out": 1}


def test_photos_are_found_in_both_folders_and_those_missing_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "vg", images(*[[thing("dog")]] * 4))
    (folder / "VG_100K_2").mkdir()
    (folder / "VG_100K/3.jpg").rename(folder / "VG_100K_2/3.jpg")
    (folder / "VG_100K/4.jpg").unlink()
    found = read(folder)
    assert [Path(record["file_name"]).parent.name for record in found.train] == ["VG_100K", "VG_100K_2"]
    assert found.report.images == {"without a photo": 1, "to train on": 2, "held out": 1}
    for name in ("VG_100K", "VG_100K_2"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "photos" / name)
    again = read(folder, images=[tmp_path / "photos"])
    assert [record["image_id"] for record in again.train] == [2, 3]
    with pytest.raises(PipelineError, match=r"no photo to train on \(4 annotated ones without a photo\).*--images"):
        read(folder)
    with pytest.raises(PipelineError, match=r"nowhere: cannot be listed: No such file"):
        read(folder, images=[tmp_path / "nowhere"])


def test_images_that_coco_holds_out_judge(tmp_path: Path) -> None:
    folder = write(tmp_path, images(*[[thing("dog")]] * 6))
    found = read(folder, held_out=frozenset({102, 105, 999}))
    assert [record["image_id"] for record in found.train] == [1, 3, 4, 6]
    assert [record["image_id"] for record in found.evaluation] == [2, 5]
    found = read(folder, held_out=frozenset({101, 102, 104, 105}), evaluation_images=2)
    assert [record["image_id"] for record in found.evaluation] == [1, 4]  # over all of them
    with pytest.raises(PipelineError, match=r"of the 1 COCO images that --held-out names, none is among the 6 photos"):
        read(folder, held_out=frozenset({7}))
    with pytest.raises(PipelineError, match=r"no photo to train on .*6 held out"):
        read(folder, held_out=frozenset(range(101, 107)))


def test_without_them_a_few_are_drawn_and_stay_drawn(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", images(*[[thing("dog")]] * 5))
    found = read(folder, held_out=frozenset())
    assert (len(found.train), len(found.evaluation)) == (4, 1)
    large = read(write(tmp_path / "b", images(*[[thing("dog")]] * 130)), held_out=frozenset())
    more = read(write(tmp_path / "b", images(*[[thing("dog")]] * 150)), held_out=frozenset())
    drawn = [record["image_id"] for record in large.evaluation]
    assert 1 <= len(drawn) <= 8
    assert [record["image_id"] for record in more.evaluation if record["image_id"] <= 130] == drawn


def test_files_that_hold_out(tmp_path: Path) -> None:
    splits = [("train", 1), ("restval", 2), ("val", 3), ("test", 4), ("dev", 10), ("Train", 11)]
    contents = {
        "dataset_coco.json": json.dumps({"images": [{"split": split, "cocoid": index} for split, index in splits]}),
        "captions_val2014.json": json.dumps({"images": [{"id": 5}, {"id": 6}], "annotations": []}),
        "ids.txt": "7\n8 9\n",
        "dataset_flickr30k.json": json.dumps({"images": [{"split": "test", "imgid": 3}]}),
        "names.txt": "COCO_val2014_000000000042.jpg\n",
        "torn.json": '{"images": [',
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    good = ["dataset_coco.json", "captions_val2014.json", "ids.txt"]
    assert read_held_out(tmp_path / name for name in good) == {3, 4, 5, 6, 7, 8, 9, 10}
    for name in [*list(contents)[3:], "gone.txt"]:
        with pytest.raises(PipelineError, match=f"{name}: holds no COCO ids"):
            read_held_out([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("objects", "[{", r"objects\.json: not readable as a JSON list of images"),
        ("objects", '{"images": []}', r"objects\.json: .*found a dict"),
        ("image_data", "[1, 2]", r"image_data\.json: not readable"),
        ("image_data", '[{"width": 3}]', r"without an image_id \(found width\)"),
        ("image_data", '[{"image_id": 2, "width": 64}]', r"annotations of image 2 .*KeyError\('height'\)"),
        ("objects", '[{"image_id": 2, "objects": [3]}]', r"annotations of image 2 are not Visual Genome's"),
        ("objects", '[{"image_id": 2, "objects": [{"names": [3]}]}]', r"annotations of image 2 are not"),
        (
            "attributes",
            '[{"id": 2, "attributes": [{"object_id": [3], "attributes": ["red"]}]}]',
            r"attributes are not Visual Genome's",
        ),
    ],
)
def test_damaged_annotations_end_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = write(tmp_path, images([thing("dog")], [thing("dog")]))
    (folder / f"{name}.json").write_text(text)
    with pytest.raises(PipelineError, match=message) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_missing_annotations_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"expected one image_data\.json there \(found none\); get it from the"):
        read(tmp_path)


def test_photos_of_other_sizes_are_noticed_before_training(tmp_path: Path) -> None:
    found = read(write(tmp_path, images(*[[thing("dog")]] * 4)))
    check_photos(found)
    for record in found.train + found.evaluation:
        record["height"] += 1
    with pytest.raises(PipelineError, match=r"48 x 64 pixels, annotated as 49 x 64; so are all 4 photos looked at"):
        check_photos(found)


def reader(**options: Any) -> RecordReader:
    from detector.config import DetectorConfig

    return RecordReader(DetectorConfig(min_size=96, max_size=160, num_attributes=3), read_image, **options)


def test_a_record_is_read_as_the_network_takes_it(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    record = make_record(tmp_path / "000.jpg", 5, (48, 64), [[4, 6, 24, 16], [0, 0, 64, 48]], [2, 0], [[1], [0, 2]])
    plain = reader(training=False)(record)
    assert plain["image"].shape == (3, 96, 128)
    assert plain["scale"] == 2.0
    assert plain["instances"].gt_boxes.tensor.tolist() == [[8, 12, 48, 32], [0, 0, 128, 96]]
    assert plain["instances"].gt_attributes.tolist() == [[False, True, False], [True, False, True]]
    read = [reader(training=True)(record) for _ in range(20)]
    mirrored = [one for one in read if one["instances"].gt_boxes.tensor[0, 0] != 8]
    assert 0 < len(mirrored) < 20
    assert mirrored[0]["instances"].gt_boxes.tensor.tolist() == [[80, 12, 120, 32], [0, 0, 128, 96]]
    np.testing.assert_array_equal(mirrored[0]["image"], plain["image"].flip(2))
    assert record["boxes"].tolist()[0] == [4, 6, 24, 16]
    assert all(
        one["instances"].gt_boxes.tensor[0, 0] == 8
        for one in [reader(training=True, flip=False)(record) for _ in range(5)]
    )


def test_a_box_that_vanishes_in_a_smaller_image_is_not_trained_on(tmp_path: Path) -> None:
    shape = (400, 1001)  # resized to 64 x 160 by 0.1598: a pixel at the border is less than what rounding takes
    write_photos(tmp_path, 1, shapes=[shape])
    rows = [[1000, 0, 1001, 9], [0, 0, 500, 300]]
    record = make_record(tmp_path / "000.jpg", 5, (400, 1001), rows, [2, 0], [[], [1]])
    trained = reader(training=True, flip=False)(record)["instances"]
    areas = trained.gt_boxes.area()
    assert bool((areas > 0).all())
    judged = reader(training=False)(record)["instances"]
    assert len(judged) == 2  # the true boxes that are judged stay as they are


def test_unreadable_photos_are_passed_over_in_training_and_judged_as_blank(tmp_path: Path) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"no photo")
    record = make_record(tmp_path / "torn.jpg", 5, (48, 64), [[4, 6, 24, 16]], [2], [[]])
    with pytest.warns(UserWarning, match=r"torn\.jpg: skipped in training: not an image"):
        assert reader(training=True)(record) is None
    with pytest.warns(UserWarning, match=r"torn\.jpg: evaluated as a blank image: not an image"):
        judged = reader(training=False)(record)
    assert judged["image"].shape == (3, 96, 128)
    assert judged["image"].abs().max() < 1  # the mean, in whole numbers
    assert len(judged["instances"]) == 1


@pytest.mark.shared
def test_the_real_sample(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/visual_genome"
    entries = json.loads((source / "image_data.sample.json").read_bytes())
    for entry in entries:
        write_photos(
            tmp_path / "VG_100K", 1, names=f"{entry['image_id']}.jpg", shapes=[(entry["height"], entry["width"])]
        )
    vocabularies = [read_class_vocabulary("", kind) for kind in ("objects", "attributes")]
    found = read_visual_genome(source, *vocabularies, images=[tmp_path])
    check_photos(found)
    records = found.train + found.evaluation
    assert len(entries) == 100
    assert len(records) + found.report.images["without a usable box"] == 100  # ten have no objects
    annotated = json.loads((source / "objects.sample.json").read_bytes())
    assert found.report.boxes.total() == sum(len(image["objects"]) for image in annotated)
    used = sum(len(record["boxes"]) for record in records)
    assert used == found.report.boxes["used"] + found.report.boxes["clipped"] > 0.7 * found.report.boxes.total()
    assert found.report.attributes > 500
    for record in records:
        x1, y1, x2, y2 = record["boxes"].T
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 <= record["width"]).all()
        assert (y2 <= record["height"]).all()
        assert (x2 - x1 >= 1).all()
    (first,) = (record for record in records if record["image_id"] == 1)
    names = [found.object_names[index] for index in first["classes"]]
    clock = first["attributes"][names.index("clock")]
    assert {found.attribute_names[index] for index in clock if index >= 0} == {"green", "tall"}
