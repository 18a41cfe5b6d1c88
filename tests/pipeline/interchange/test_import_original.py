"""Features in the layout of the original SCAN code."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.finding import find_captions
from pipeline.interchange.common import ImportFeaturesConfig
from pipeline.interchange.convert import import_features
from pipeline.store.format import CAPTIONS
from pipeline.store.inspect import inspect_store
from tests.photos import write_photos
from tests.stores import import_any


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
    captions = read_captions(store.path / CAPTIONS)
    assert [(caption.image, caption.text) for caption in captions[4:6]] == [
        ("photo0", "caption 4 of image 0"),
        ("photo1", "caption 0 of image 1"),
    ]
    assert {caption.split for caption in captions} == {"dev"}
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
    with pytest.raises(PipelineError, match="holds the splits dev; choose one with --split"):
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


def test_ids_are_kept_as_they_stand(tmp_path: Path) -> None:
    """Spaces, numbers, and Flickr's #0: the captions still find their images."""
    folder = tmp_path / "precomp"
    write_precomputed(folder, images=4)
    ids = ["a  b ", "000042", "1000092795.jpg#0", "image"]
    (folder / "dev_ids.txt").write_bytes("".join(f"{image_id}\r\n" for image_id in ids).encode())
    store = import_any(folder, split="dev", output=str(tmp_path / "s"))
    assert list(store) == ids
    captions = read_captions(*find_captions(store))
    assert [caption.image for caption in captions[::5]] == ids
    assert [caption.caption_id for caption in captions[10:12]] == ["1000092795.jpg#0#0", "1000092795.jpg#0#1"]
    assert captions[19].text == "caption 4 of image 3"


def test_a_byte_order_mark_is_no_part_of_an_id_or_a_caption(tmp_path: Path) -> None:
    folder = tmp_path / "precomp"
    write_precomputed(folder, images=4)
    for name in ("dev_ids.txt", "dev_caps.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    store = import_any(folder, split="dev", output=str(tmp_path / "s"))
    assert next(iter(store)) == "photo0"
    assert read_captions(*find_captions(store))[0].text == "caption 0 of image 0"


def test_one_caption_an_image_is_not_taken_for_five(tmp_path: Path) -> None:
    """15 different photos with a caption each are not three photos with five."""
    write_precomputed(tmp_path / "precomp", images=3, repeat=5, ids=False)
    features = np.random.default_rng(1).normal(size=(15, 4, 6)).astype(np.float32)
    features[:9] = np.load(tmp_path / "precomp/dev_ims.npy")[:9]
    np.save(tmp_path / "precomp/dev_ims.npy", features)
    with pytest.raises(
        PipelineError, match=r"dev_ims\.npy: rows 5 to 9 differ; expected those of one image, as there are"
    ):
        import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "s"))


def test_an_id_a_caption_is_the_same_for_the_five_of_an_image(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "precomp")
    ids = [f"photo{number // 5}" for number in range(15)]
    (tmp_path / "precomp/dev_ids.txt").write_text("\n".join(ids) + "\n")
    assert list(import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "s"))) == ids[::5]
    (tmp_path / "precomp/dev_ids.txt").write_text("\n".join(ids[1:] + ids[:1]) + "\n")
    with pytest.raises(
        PipelineError, match=r"dev_ids\.txt: line 5 is another id than those of its image's other captions"
    ):
        import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "t"))


def test_features_without_captions(tmp_path: Path) -> None:
    features = write_precomputed(tmp_path / "precomp")
    (tmp_path / "precomp/dev_caps.txt").unlink()
    said: list[str] = []
    store = import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "s"), report=said.append)
    np.testing.assert_array_equal(store.gather(np.arange(3)), features)
    assert said == ["no dev_caps.txt: without captions; name them with --captions to train"]
    assert not list(store.path.glob("captions*"))


def test_damaged_files_of_the_original_layout_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "precomp"
    features = write_precomputed(folder)

    def refused(message: str, **options: str) -> None:
        with pytest.raises(PipelineError, match=message):
            import_any(folder, split="dev", output=str(tmp_path / "stores" / message), **options)

    np.save(folder / "boxes.npy", np.zeros((2, 4, 4), np.float32))
    refused(
        r"boxes\.npy: boxes of shape \(2, 4, 4\) float32; expected \(K, 4\), or \(3, K, 4\)",
        boxes=str(folder / "boxes.npy"),
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/photo1.jpg").write_bytes(b"not a photo")
    refused(r"photo1\.jpg: not an image .*; take it out", images=str(tmp_path / "photos"))
    (folder / "dev_caps.txt").write_bytes(b"caf\xe9\n" * 15)
    refused(r"dev_caps\.txt: line 1 is not UTF-8")
    write_precomputed(folder)
    data = (folder / "dev_ims.npy").read_bytes()
    for damaged in (data[:-10], data.replace(b"}", b" ", 1)):
        (folder / "dev_ims.npy").write_bytes(damaged)
        refused(r"dev_ims\.npy: not readable as a NumPy array")
    features[2, 0, 0] = np.nan
    np.save(folder / "dev_ims.npy", features)
    refused(r"dev_ims\.npy: row 2 \('photo2'\): features that are not finite numbers")
    np.save(folder / "dev_ims.npy", np.full((3, 4, 6), "a"))
    refused(r"dev_ims\.npy: row 0 \('photo0'\): features of shape .* <U1; expected .* numbers")
    (folder / "dev_ids.txt").write_text("a\nb\na\n")
    write_precomputed(folder, ids=False)
    refused("duplicate image id 'a'; a store holds every image once")


def test_rows_without_ids_are_no_photos_of_coco(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "precomp", ids=False)
    (tmp_path / "val2014").mkdir()
    with pytest.raises(
        PipelineError, match=r"dev_ids\.txt: not there: .* nothing tells which photo .*; write it, a name a line"
    ):
        import_any(tmp_path / "precomp", split="dev", output=str(tmp_path / "s"), images=str(tmp_path / "val2014"))
    assert not (tmp_path / "s").exists()


def test_captions_of_an_earlier_import_are_not_those_of_a_later_one(tmp_path: Path) -> None:
    write_precomputed(tmp_path / "precomp")
    output = str(tmp_path / "store")
    assert (import_any(tmp_path / "precomp", split="dev", output=output).path / CAPTIONS).is_file()
    (tmp_path / "precomp/dev_caps.txt").unlink()  # they were wrong, say; --captions names better ones
    assert not (import_any(tmp_path / "precomp", split="dev", output=output).path / CAPTIONS).exists()


def test_boxes_in_fractions_are_not_taken_for_pixels_nor_pixels_for_fractions(tmp_path: Path) -> None:
    features = write_precomputed(tmp_path / "precomp")
    write_photos(tmp_path / "photos", 3, names="photo{}.jpg", shapes=[(50, 80)])
    options = {"split": "dev", "images": str(tmp_path / "photos"), "boxes": str(tmp_path / "boxes.npy")}
    fractions = np.tile(np.array([0, 0.25, 0.5, 1], np.float32), (4, 1))
    pixels = fractions * [80, 50, 80, 50]
    for boxes, message in ((pixels, r"numbers from 0 to 50 in .*expected fractions"), (fractions[None].repeat(3, 0), "expected pixels, not fractions")):  # fmt: skip
        np.save(tmp_path / "boxes.npy", boxes)
        with pytest.raises(PipelineError, match=message):
            import_any(tmp_path / "precomp", output=str(tmp_path / "refused"), **options)
    # Published files of other kinds have no sizes: their photos are measured, or the boxes would be read as fractions.
    (tmp_path / "npz").mkdir()
    for number in range(3):
        np.savez(tmp_path / f"npz/photo{number}.npz", x=features[number], bbox=pixels.astype(np.float32))
    store = import_any(tmp_path / "npz", output=str(tmp_path / "store"), images=str(tmp_path / "photos"))
    assert store["photo1.jpg"].image_size == (50, 80)
    np.testing.assert_array_equal(store["photo1.jpg"].boxes, pixels)


def test_boxes_in_pixels_of_photos_of_unknown_size_are_said_to_be_that(tmp_path: Path) -> None:
    """As of the published trainval36.hdf5, which has no sizes."""
    (tmp_path / "npz").mkdir()
    boxes = np.array([[0, 10, 20, 30], [5, 5, 50, 40]], np.float32)
    np.savez(tmp_path / "npz/a.npz", x=np.ones((2, 4), np.float32), bbox=boxes)
    said: list[str] = []
    store = import_features(
        ImportFeaturesConfig(source=str(tmp_path / "npz"), output=str(tmp_path / "store")), report=said.append
    )
    np.testing.assert_array_equal(store["a"].boxes, boxes)
    assert "boxes of 1 images are in pixels, and the sizes of their photos are not known" in said[-1]
