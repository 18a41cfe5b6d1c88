import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from detector import DetectorError, RegionExtractor, Regions
from detector.preprocess import InputSettings, prepare
from detector.windows import pyramid

SHAPES = [(120, 160), (160, 120), (90, 300), (120, 160), (33, 40)]


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> RegionExtractor:
    return RegionExtractor.from_weights(small_weights, num_regions=9, device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Five photos of four shapes, with structure that a random network responds to."""
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (w, h)) for h, w in SHAPES]


def assert_same(left: Regions, right: Regions) -> None:
    np.testing.assert_array_equal(left.object_ids, right.object_ids)
    np.testing.assert_allclose(left.boxes, right.boxes, atol=1e-3)
    np.testing.assert_allclose(left.features, right.features, atol=1e-4, rtol=1e-4)
    assert left.image_size == right.image_size


def test_regions_have_the_promised_shapes_and_lie_in_the_photo(
    extractor: RegionExtractor, photos: list[np.ndarray]
) -> None:
    for photo, regions in zip(photos, extractor(photos), strict=True):
        height, width = photo.shape[:2]
        assert regions.image_size == (height, width)
        assert regions.boxes.shape == (9, 4)
        assert regions.features.shape == (9, extractor.feature_dim) == (9, 64)
        assert regions.boxes.dtype == regions.features.dtype == np.float32
        assert (regions.boxes[:, :2] >= 0).all()
        assert (regions.boxes[:, 2:] <= np.array([width, height])).all()
        assert (np.diff(regions.object_scores) <= 1e-6).all()
        assert set(regions.object_ids) <= set(range(12))
        assert set(regions.attribute_ids) <= set(range(5))


@pytest.mark.parametrize(("selection", "count"), [("caffe", 9), ("maxclass", 9), ("windows", 36)])
def test_neighbours_and_order_change_nothing(
    small_weights: Path, photos: list[np.ndarray], selection: str, count: int
) -> None:
    extractor = RegionExtractor.from_weights(small_weights, selection=selection, num_regions=count, device="cpu")
    alone = [extractor([photo])[0] for photo in photos]
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 23):
        together = extractor([photos[index] for index in order])
        for index, regions in zip(order, together, strict=True):
            assert_same(regions, alone[index])


def test_windows_are_pooled_at_fixed_places(small_weights: Path, photos: list[np.ndarray]) -> None:
    extractor = RegionExtractor.from_weights(small_weights, selection="windows", device="cpu")
    extractor.model.proposals = None  # type: ignore[assignment]  # not asked for
    for photo, regions in zip(photos, extractor(photos), strict=True):
        height, width = photo.shape[:2]
        np.testing.assert_allclose(regions.boxes, pyramid() * [width, height, width, height], rtol=1e-6)
        assert regions.features.shape == (36, extractor.feature_dim)
        assert np.isfinite(regions.object_scores).all()
        assert len(np.unique(regions.features, axis=0)) > 20
    assert extractor.describe()["selection"] == "windows"


def test_prepared_images_give_the_same(extractor: RegionExtractor, photos: list[np.ndarray]) -> None:
    settings = InputSettings.of(extractor.config)
    assert_same(extractor([prepare(photos[2], settings)])[0], extractor([photos[2]])[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 2), (2, 2)])
def test_extreme_shapes_are_work(extractor: RegionExtractor, shape: tuple[int, int]) -> None:
    regions = extractor([np.full((*shape, 3), 128, np.uint8)])[0]
    assert regions.boxes.shape == (9, 4)
    assert np.isfinite(regions.features).all()


def test_preparing_follows_the_published_recipe() -> None:
    settings = InputSettings(600, 1000, (102.9801, 115.9465, 122.7717))
    wide = prepare(np.zeros((300, 1000, 3), np.uint8), settings)
    assert (wide.scale, wide.pixels.shape) == ((1.0, 1.0), (300, 1000, 3))
    np.testing.assert_allclose(wide.pixels[0, 0], [-102.9801, -115.9465, -122.7717], rtol=1e-6)
    every = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2)  # each value there is, at its own size
    exact = prepare(every, InputSettings(1, 256, settings.pixel_mean)).pixels[:, 0]
    np.testing.assert_array_equal(exact, every[:, 0].astype(np.float32) - np.float32(settings.pixel_mean))
    normal = prepare(np.zeros((480, 640, 3), np.uint8), settings)
    assert (normal.scale, normal.pixels.shape) == ((1.25, 1.25), (600, 800, 3))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_bgr_image_is_refused(extractor: RegionExtractor, image: np.ndarray) -> None:
    with pytest.raises(DetectorError, match=r"expected \(H, W, 3\) uint8, BGR"):
        extractor([image])


def test_options_are_checked(small_weights: Path) -> None:
    with pytest.raises(DetectorError, match="selection 'best': expected one of caffe, maxclass, windows"):
        RegionExtractor.from_weights(small_weights, selection="best")
    with pytest.raises(DetectorError, match="num_regions 9: selection windows has 36"):
        RegionExtractor.from_weights(small_weights, selection="windows", num_regions=9)
    with pytest.raises(DetectorError, match=r"detector\.depth: decided by the weights"):
        RegionExtractor.from_weights(small_weights, config_overrides={"depth": 50})


def test_description_says_what_decides_the_features(small_weights: Path) -> None:
    one = RegionExtractor.from_weights(small_weights, device="cpu").describe()
    other = RegionExtractor.from_weights(small_weights, device="cpu", config_overrides={"min_size": 64}).describe()
    assert one["weights_sha256"] == other["weights_sha256"]
    assert (one["detector"]["min_size"], other["detector"]["min_size"]) == (96, 64)
    assert (one["selection"], one["num_regions"]) == ("caffe", 36)


def test_a_network_of_no_numbers_says_so(small_weights: Path, photos: list[np.ndarray]) -> None:
    broken = RegionExtractor.from_weights(small_weights, device="cpu")
    broken.model.proposal_generator.rpn_head.objectness_logits.bias.fill_(float("nan"))
    with pytest.raises(DetectorError, match="no proposal: the network's scores are not finite numbers"):
        broken(photos[:2])
