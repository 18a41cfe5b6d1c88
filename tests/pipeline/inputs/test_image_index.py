"""Names of images in captions files, and the photos that they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.inputs.image_index import ImageIndex


def test_composed_and_decomposed_letters_name_one_photo() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    index = ImageIndex([f"{decomposed}/1.jpg", "b/1.jpg", f"{decomposed}.jpg"])
    assert index.match([[f"{composed}/1.jpg", f"{composed}.jpg"]], "c.tsv") == {
        f"{composed}/1.jpg": 0,
        f"{composed}.jpg": 2,
    }
    both = ImageIndex([f"{composed}.jpg", f"{decomposed}.jpg"])
    assert [both.find(f"{name}.jpg") for name in (composed, decomposed)] == [0, 1]
    assert len(both.candidates(f"x/{composed}.jpg")) == 2


def test_image_index_prefers_the_exact_name_and_refuses_ambiguity() -> None:
    index = ImageIndex(["a/1.jpg", "b/1.jpg", "b/2.png", "COCO_val2014_000000000042", "v1.5 photo"])
    assert index.find("b/1.jpg") == 1
    assert index.find("1.jpg") is None
    assert index.find("2.png") == 2
    assert index.find("elsewhere/2.jpg") == 2
    assert index.find("val2014/COCO_val2014_000000000042.jpg") == 3
    assert index.find("v1.5 photo") == 4
    assert index.find("3.jpg") is None


def test_image_index_finds_coco_photos_by_the_numbers_of_caffe_files() -> None:
    index = ImageIndex(["391895", "9"])
    assert index.find("val2014/COCO_val2014_000000391895.jpg") == 0
    assert index.find("000000000009.jpg") == 1
    assert index.find("COCO_val2014_000000000042.jpg") is None
    assert index.find("photo9.jpg") is None
    for first in (0, 1):  # images without names: number 9 is not COCO's
        counted = ImageIndex([str(row) for row in range(first, 10)])
        assert counted.find("COCO_val2014_000000000009.jpg") is None
        assert counted.find("9") == 9 - first


def test_the_folder_decides_between_photos_of_one_name() -> None:
    index = ImageIndex(["train/1.jpg", "val/1.jpg", "val/2.jpg"])
    assert index.candidates("1.jpg") == [0, 1]
    assert index.find("coco/val/1.jpg") == 1
    assert index.match([["x/train/1.jpg", "x/val/1.jpg", "2.jpg"]], "c.json") == {
        "x/train/1.jpg": 0,
        "x/val/1.jpg": 1,
        "2.jpg": 2,
    }
    with pytest.raises(PipelineError, match=r"c\.json: image '1\.jpg' can be train/1\.jpg or val/1\.jpg"):
        index.match([["1.jpg"]], "c.json")


def test_captions_of_another_folder_do_not_go_to_a_photo_of_the_same_name() -> None:
    index = ImageIndex(["1.jpg", "2.jpg"], ["/data/coco/train/1.jpg", "/data/coco/train/2.jpg"])
    assert index.match([["train/1.jpg", "val/1.jpg", "1.jpg"]], "d.json") == {"train/1.jpg": 0}
    with pytest.raises(PipelineError, match=r"'a/1\.jpg' and 'b/1\.jpg' both can be 1\.jpg"):
        index.match([["a/1.jpg", "b/1.jpg"]], "d.json")
    assert index.match([["1.png", "1.jpg"]], "d.json") == {"1.jpg": 0}
    # beside a photo's own name one of a folder that it is not in means another photo
    assert ImageIndex(["2.jpg"], ["/data/photos/2.jpg"]).match([["2.jpg", "other/2.jpg"]], "d.csv") == {"2.jpg": 0}


PATHS = st.lists(st.text("ab/.0-é", min_size=1, max_size=6).map("/p/".__add__), unique=True)


@given(PATHS, st.sampled_from(["/p", "/p/a", "/p/a/b", "/p/a."]))
def test_paths_below_a_folder_are_those_that_begin_with_it(paths: list[str], folder: str) -> None:
    found = ImageIndex(paths).paths_below(folder)
    assert sorted(found) == sorted(path for path in paths if path.startswith(f"{folder}/"))
