"""Features that others computed."""

import base64
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.sources import is_changed
from pipeline.interchange.convert import ExportFeaturesConfig, export_features
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import Store, open_store
from tests.faults import contents
from tests.photos import write_photos
from tests.stores import assert_same, import_any, make_store


def test_confidences_of_twice_the_size_are_refused(tmp_path: Path) -> None:
    def cell(array: np.ndarray) -> str:
        return base64.b64encode(array.tobytes()).decode()

    ids, confidences = cell(np.zeros(3, np.int64)), cell(np.full(3, 0.5))  # float64; expected float32
    boxes, features = cell(np.zeros((3, 4), np.float32)), cell(np.ones((3, 6), np.float32))
    row = ["a.jpg", "10", "10", ids, confidences, ids, confidences, "3", boxes, features]
    (tmp_path / "x.tsv").write_text("\t".join(row) + "\n")
    with pytest.raises(PipelineError, match=r"line 1 is damaged \(cannot reshape array of size 6"):
        import_any(tmp_path / "x.tsv", output=str(tmp_path / "s"))


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def tsv_row(name: str, count: int = 2, *, lxmert: bool = True, features: Any = None) -> str:
    rng = np.random.default_rng(len(name))
    boxes = rng.uniform(2, 400, (count, 4)).astype(np.float32)
    features = np.asarray(rng.normal(size=(count, 3)) if features is None else features, np.float32)
    if not lxmert:
        return "\t".join([name, "640", "480", str(count), encode(boxes), encode(features)])
    ids = np.arange(count, dtype=np.int64)
    scores = np.full(count, 0.5, np.float32)
    cells = [name, "480", "640", encode(ids), encode(scores), encode(ids), encode(scores), str(count)]
    return "\t".join([*cells, encode(boxes), encode(features)])


@pytest.mark.parametrize("lxmert", [True, False])
def test_bottom_up_tsv(tmp_path: Path, lxmert: bool) -> None:
    path = tmp_path / "train_36.tsv"
    path.write_text(tsv_row("a", lxmert=lxmert) + "\n" + tsv_row("bb", lxmert=lxmert) + "\n")
    store = import_any(path, output=str(tmp_path / "s"))
    assert list(store) == ["a", "bb"]
    assert store["bb"].image_size == (480, 640)
    assert store["bb"].object_ids.tolist() == ([0, 1] if lxmert else [0, 0])
    assert len(store.object_names) == (1600 if lxmert else 0)  # six columns say nothing of classes


def test_the_numbers_of_caffe_files_stay_and_find_their_photos(tmp_path: Path) -> None:
    write_photos(tmp_path / "val2014", 1, names="COCO_val2014_000000391895.jpg")
    path = tmp_path / "test2014_36.tsv"
    path.write_text(tsv_row("391895", lxmert=False) + "\r\n\r\n" + tsv_row("42", lxmert=False) + "\r\n")
    said: list[str] = []
    store = import_any(path, output=str(tmp_path / "s"), images=str(tmp_path / "val2014"), report=said.append)
    assert list(store) == ["391895", "42"]
    assert said[-1] == f"no photo of 1 of the 2 images is in {tmp_path / 'val2014'}"
    assert store.image_path(0) == tmp_path / "val2014/COCO_val2014_000000391895.jpg"
    assert store.image_path(1) is None


def test_a_photo_that_is_replaced_after_the_import_is_known_to_be_another(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 1, names="1.jpg")
    (tmp_path / "x.tsv").write_text(tsv_row("1.jpg") + "\n" + tsv_row("gone.jpg") + "\n")

    def store() -> Store:
        images = str(tmp_path / "photos")
        return import_any(tmp_path / "x.tsv", output=str(tmp_path / "s"), images=images, report=said.append)

    said: list[str] = []
    assert [is_changed(store(), row) for row in range(2)] == [False, False]
    with (tmp_path / "photos/1.jpg").open("ab") as photo:
        photo.write(b"another")
    assert is_changed(open_store(tmp_path / "s"), 0)
    assert is_changed(store(), 0)  # the features are those of before
    others = f"1 photos in {tmp_path}/photos are others than at the first import, such as 1.jpg: "
    assert any(line.startswith(others) for line in said)
    known = store().photo_sha256(0)
    (tmp_path / "photos/1.jpg").unlink()
    assert (store().photo_sha256(0), store().image_place(0)) == (known, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; expected rows"),
        ("a\tb\n", "line 1 has 2 columns; expected 6"),
        (tsv_row("a") + "\n" + tsv_row("b", 3) + "\n", "'b' has 3 regions, the first image 2"),
        (tsv_row("a")[:-1] + "!\n", "line 1 is damaged"),
        (tsv_row("a") + "\n" + tsv_row("b")[:-8], "line 2 is damaged"),
        (tsv_row("a") + "\n" + tsv_row("a") + "\n", "duplicate image id 'a'"),
        (tsv_row("a") + "\n" + tsv_row("b", lxmert=False) + "\n", "'b' has other columns than the first image"),
        (tsv_row("a").replace("\t480\t", "\t4.5\t"), "line 1 is damaged .*4.5"),
        (tsv_row("a").replace("\t2\t", "\t0\t"), "line 1 is damaged"),
        (tsv_row("a", features=[[0, 1], [np.nan, 0]]), r"line 1 \('a'\): features that are not finite"),
        (tsv_row("a", features=[[], []]), "line 1 .* expected"),
        ('"' + tsv_row("a"), "line 1 has 1 columns"),
        ("x" * 2000, "line 1 is longer than 1,000 bytes"),
    ],
)
def test_damaged_tsv_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    path = tmp_path / "x.tsv"
    path.write_text(content)
    monkeypatch.setattr("pipeline.interchange.tsv.MAX_LINE", 1000)
    with pytest.raises(PipelineError, match=r"x\.tsv: " + message):
        import_any(path, output=str(tmp_path / "s"))


def test_the_first_regions_of_photos_with_more(tmp_path: Path) -> None:
    path = tmp_path / "adaptive.tsv"
    path.write_text(tsv_row("a", 5) + "\n" + tsv_row("bb", 3) + "\n")
    with pytest.raises(PipelineError, match="'bb' has 3 regions; --num-regions 4 needs that many of every image"):
        import_any(path, output=str(tmp_path / "four"), num_regions=4)
    store = import_any(path, output=str(tmp_path / "three"), num_regions=3)
    whole = import_any(path, output=str(tmp_path / "one"), num_regions=1)
    assert (store.num_regions, whole.num_regions) == (3, 1)
    np.testing.assert_array_equal(store["a"].features[:1], whole["a"].features)
    assert store["a"].object_ids.tolist() == [0, 1, 2]


def test_an_interrupted_import_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.interchange.convert.SHARD_SIZE", 2)
    path = tmp_path / "x.tsv"
    path.write_text("".join(tsv_row("a" * length) + "\n" for length in range(1, 6)) + "cut short")
    with pytest.raises(PipelineError, match="line 6 has 1 columns"):
        import_any(path, output=str(tmp_path / "s"))
    path.write_text("".join(tsv_row("a" * length) + "\n" for length in range(1, 7)))
    assert len(import_any(path, output=str(tmp_path / "s"))) == 6


@pytest.mark.shared
def test_real_caffe_features(shared: Path, tmp_path: Path) -> None:
    """Ten COCO photos through the published Caffe detector: what it saw is what is in the photos."""
    photos = shared / "data/bottom_up/images"
    store = import_any(shared / "data/bottom_up/train2014_obj36.tsv", output=str(tmp_path / "s"), images=str(photos))
    assert (len(store), store.num_regions, store.feature_dim) == (10, 36, 2048)
    for row, image_id in enumerate(store):
        regions = store[image_id]
        path = store.image_path(row)
        assert path is not None
        height, width = cv2.imread(str(path)).shape[:2]
        assert regions.image_size == (height, width)
        assert (regions.boxes >= 0).all()
        assert (regions.boxes <= [width, height, width, height]).all()
        assert (regions.features >= 0).all()  # mean-pooled rectified activations


def test_importing_again_compares_content(tmp_path: Path) -> None:
    """The same ids with other features are not the same import; a shard whose file was deleted is made again."""
    features = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    (tmp_path / "dev_caps.txt").write_text("a dog\n" * 15)

    def imported() -> Store:
        np.save(tmp_path / "dev_ims.npy", features)
        return import_any(tmp_path, split="dev", output=str(tmp_path / "store"))

    before = contents(imported().path)
    (tmp_path / "store/shard-00000.safetensors").unlink()
    assert contents(imported().path) == before
    features[2, 0, 0] += 1
    with pytest.raises(PipelineError, match="holds other images or features than what is imported") as caught:
        imported()
    assert "--output" in caught.value.remedy
    assert contents(tmp_path / "store") == before


def test_photos_that_come_after_an_import_are_found_by_the_next(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(3)]
    made = make_store(tmp_path / "made", names)
    export_features(ExportFeaturesConfig(str(made.path), "tsv", str(tmp_path / "x.tsv")), report=lambda _: None)
    for there in (1, 3, 2):
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        write_photos(tmp_path / "photos", there, names="{}.jpg")
        store = import_any(tmp_path / "x.tsv", output=str(tmp_path / "store"), images=str(tmp_path / "photos"))
        assert [store.image_path(row) is not None for row in range(3)] == [row < there for row in range(3)]
        assert inspect_store(store.path, progress=False).ok
    assert_same(open_store(tmp_path / "store"), made, ("features", "boxes"))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_features_of_another_type_are_refused(tmp_path: Path, dtype: type) -> None:
    """The bytes of a TSV's cell do not say what they are: as float32 they are other numbers, and another count of them."""
    boxes, features = np.array([[2, 3, 9, 9]], np.float32), np.random.default_rng(0).normal(size=(1, 64)).astype(dtype)
    cells = ["a.jpg", "10", "10", "1", *(base64.b64encode(array.tobytes()).decode() for array in (boxes, features))]
    (tmp_path / "x.tsv").write_text("\t".join(cells) + "\n")
    with pytest.raises(PipelineError, match=r"line 1 .*(features that are no float32|not finite)"):
        import_any(tmp_path / "x.tsv", output=str(tmp_path / "store"))


def test_padding_is_not_taken_for_regions(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz/a.npz", x=np.ones((3, 4), np.float32))
    np.savez(tmp_path / "npz/b.npz", x=np.array([[1.0] * 4, [2.0] * 4, [0.0] * 4], np.float32))
    with pytest.raises(PipelineError, match=r"'b' has 1 of 3 regions whose features are all 0, .* --num-regions K"):
        import_any(tmp_path / "npz", output=str(tmp_path / "s"))
    assert len(import_any(tmp_path / "npz", output=str(tmp_path / "t"), num_regions=2)) == 2


def test_boxes_beyond_the_photo_are_said(tmp_path: Path) -> None:
    """As where the detector saw a larger photo, or width and height were exchanged."""
    for number, size in enumerate(((50, 80), (80, 50))):
        (tmp_path / f"npz{number}").mkdir()
        box = np.array([[2, 3, 80.5, 50]], np.float32)
        arrays = {"x": np.ones((1, 4), np.float32), "bbox": box, "image_h": size[0], "image_w": size[1]}
        np.savez(tmp_path / f"npz{number}/a.npz", **arrays)
        said: list[str] = []
        import_any(tmp_path / f"npz{number}", output=str(tmp_path / f"store{number}"), report=said.append)
        note = "boxes of 1 images end beyond their photo; they are read as pixels of the photo's own size"
        assert said == ([note] if number else [])
