"""Features that others computed."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.captions import read_captions
from pipeline.errors import PipelineError
from pipeline.inspect_store import inspect_store
from pipeline.interchange.convert import import_any


def write_precomputed(folder: Path, *, images: int = 3, repeat: int = 1, ids: bool = True) -> np.ndarray:
    """The original code's layout; returns the features, one row an image."""
    folder.mkdir(exist_ok=True)
    features = np.random.default_rng(0).normal(size=(images, 4, 6)).astype(np.float32)
    np.save(folder / "dev_ims.npy", features.repeat(repeat, axis=0))
    lines = [f"caption {number} of image {image}" for image in range(images) for number in range(5)]
    (folder / "dev_caps.txt").write_text("\n".join(lines) + "\n")
    if ids:
        (folder / "dev_ids.txt").write_text("".join(f"photo{image}\n" for image in range(images)))
    return features


@pytest.mark.parametrize("repeat", [1, 5])
def test_original_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeat: int) -> None:
    monkeypatch.chdir(tmp_path)
    features = write_precomputed(tmp_path / "f30k_precomp", repeat=repeat)
    store = import_any("f30k_precomp", split="dev")
    assert store.path == Path("features/f30k_precomp_dev")
    assert list(store) == ["photo0", "photo1", "photo2"]
    np.testing.assert_array_equal(store.gather(np.arange(3)), features)
    captions = read_captions(store.path / "captions.tsv")
    assert [(caption.image, caption.text) for caption in captions[4:6]] == [
        ("photo0", "caption 4 of image 0"),
        ("photo1", "caption 0 of image 1"),
    ]
    assert not store.has_boxes
    assert inspect_store(store.path, progress=False).ok


def test_photos_and_windows(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "precomp")
    (tmp_path / "photos").mkdir()
    for image in range(2):
        cv2.imwrite(str(tmp_path / f"photos/photo{image}.png"), np.zeros((50, 80, 3), np.uint8))
    windows = np.array([[0, 0, 1, 1], [0.5, 0, 1, 0.5], [0, 0, 0.5, 0.5], [0, 0.5, 1, 1]], np.float32)
    np.save(tmp_path / "windows.npy", windows)
    store = import_any(
        tmp_path / "precomp",
        split="dev",
        output=str(tmp_path / "store"),
        images=str(tmp_path / "photos"),
        boxes=str(tmp_path / "windows.npy"),
        dtype="float16",
    )
    assert list(store) == ["photo0.png", "photo1.png", "photo2"]  # the suffix is that of the photo
    np.testing.assert_array_equal(store["photo1.png"].boxes[1], [40, 0, 80, 25])
    np.testing.assert_array_equal(store["photo2"].boxes, windows)  # its size is not known: fractions
    assert store["photo0.png"].features.dtype == np.float16
    assert store.image_path(0) == tmp_path / "photos/photo0.png"
    assert store.image_path(2) is None


def test_without_ids_images_are_numbered(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "precomp", ids=False)
    assert list(import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "s"))) == ["0", "1", "2"]


def test_counts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "precomp"
    write_precomputed(folder)
    with pytest.raises(PipelineError, match="say which split with --split; there are: dev"):
        import_any(folder)
    with pytest.raises(PipelineError, match=r"test_ims\.npy: not readable"):
        import_any(folder, split="test")
    (folder / "dev_ids.txt").write_text("one\n")
    with pytest.raises(PipelineError, match="1 ids for 3 images"):
        import_any(folder, split="dev", output=str(tmp_path / "s"))
    (folder / "dev_caps.txt").write_text("too\nfew\n")
    with pytest.raises(PipelineError, match="3 feature rows and 2 captions"):
        import_any(folder, split="dev", output=str(tmp_path / "s"))
    np.save(folder / "dev_ims.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(PipelineError, match="not readable as a NumPy array"):
        import_any(folder, split="dev", output=str(tmp_path / "s"))


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def tsv_row(name: str, count: int = 2, *, lxmert: bool = True) -> str:
    rng = np.random.default_rng(len(name))
    boxes, features = rng.uniform(size=(count, 4)).astype(np.float32), rng.normal(size=(count, 3)).astype(np.float32)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; expected rows"),
        ("a\tb\n", "line 1 has 2 columns; expected 6"),
        (tsv_row("a") + "\n" + tsv_row("b", 3) + "\n", "'b' has 3 regions, the first image 2"),
        (tsv_row("a")[:-1] + "!\n", "line 1 is damaged"),
    ],
)
def test_damaged_tsv_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.tsv"
    path.write_text(content)
    with pytest.raises(PipelineError, match=message):
        import_any(path, output=str(tmp_path / "s"))


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
