"""The network that runs is a rewritten copy: it has to give the numbers of the one that was loaded."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detector import RegionExtractor
from detector.boxes import apply_deltas, clip, nms_boxes
from detector.config import DetectorConfig
from detector.errors import DetectorError
from detector.extractor import Candidates, _Launched
from detector.model import FasterRCNN
from detector.rewrite import FrozenBatchNorm2d, UndilatedStage, fold_norms, for_inference
from detector.weights import Weights, load_weights

BOTTLENECKS = DetectorConfig(
    depth=50, width=8, num_objects=12, num_attributes=5, min_size=96, max_size=160, rpn_post_nms=40, rpn_channels=16
)

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network(config: DetectorConfig) -> FasterRCNN:
    """Seeded, with norms that do something, and activations of a trained network's size."""
    torch.manual_seed(0)
    model = FasterRCNN(config).eval()
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize("pooled_size", [14, 7])  # 7 cells cannot be dealt out evenly: those stay dilated
def test_the_rewritten_network_gives_the_same_numbers(pooled_size: int) -> None:
    model = network(DetectorConfig(**{**vars(BOTTLENECKS), "pooled_size": pooled_size}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewritten = for_inference(model)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in rewritten.modules())
    assert isinstance(rewritten.roi_heads.res5, UndilatedStage) == (pooled_size == 14)
    pixels = torch.randn(2, 3, 96, 128) * 50
    corners = torch.rand(30, 2) * 60
    proposals = [torch.cat([corners, corners + 5 + torch.rand(30, 2) * 60], 1)] * 2
    with torch.inference_mode():
        features, same = model.backbone(pixels)["res4"], rewritten.backbone(pixels)["res4"]
        torch.testing.assert_close(same, features, rtol=1e-4, atol=1e-5 * features.abs().max().item())
        for left, right in zip(rewritten.predict(same, proposals), model.predict(features, proposals), strict=True):
            size = right.features.abs().max().item()
            torch.testing.assert_close(left.features, right.features, rtol=1e-4, atol=1e-5 * size)
            torch.testing.assert_close(left.class_probabilities, right.class_probabilities, rtol=1e-3, atol=1e-5)
    for name, tensor in model.state_dict().items():  # the original can still be trained and saved
        assert torch.equal(tensor, before[name])


def test_batch_norms_of_training_are_folded_as_well() -> None:
    layer = network(BOTTLENECKS).backbone.stem.conv1
    norm = nn.BatchNorm2d(8).eval()
    norm.load_state_dict({**norm.state_dict(), **layer.norm.state_dict()})
    pixels = torch.randn(1, 3, 20, 20)
    layer.norm = norm
    wanted = layer(pixels)
    fold_norms(layer)
    assert layer.norm is None
    torch.testing.assert_close(layer(pixels), wanted)


def plain_proposals(model: FasterRCNN, scores: Tensor, deltas: Tensor, anchors: Tensor, scale: float) -> Tensor:
    """The best boxes as the recipe tells them, with masks."""
    config, offset = model.config, model.offset
    boxes = clip(apply_deltas(anchors, deltas, (1.0,) * 4, offset)[:, 0], 96, 128, offset)
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    if config.geometry == "inclusive":
        large = (sides >= config.rpn_min_size * scale).all(1)
        boxes, sides, scores = boxes[large], sides[large], scores[large]
    order = scores.argsort(descending=True, stable=True)[: config.rpn_pre_nms]
    boxes, sides, scores = boxes[order], sides[order], scores[order]
    solid = (sides > 0).all(1) & torch.isfinite(scores)
    boxes, scores = boxes[solid], scores[solid]
    return boxes[nms_boxes(boxes, scores, config.rpn_nms_threshold, offset)[: config.rpn_post_nms]]


@pytest.mark.parametrize("geometry", ["continuous", "inclusive"])
@pytest.mark.parametrize("seed", range(6))
def test_proposals_without_masks_are_those_with_masks(geometry: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    config = DetectorConfig(
        **{**vars(BOTTLENECKS), "geometry": geometry, "rpn_min_size": 16.0, "rpn_pre_nms": 150, "rpn_post_nms": 30}
    )
    model = FasterRCNN(config)
    corners = torch.rand(200, 2, generator=generator) * 200 - 40  # many lie outside of 96 x 128: empty once clipped
    anchors = torch.cat([corners, corners + torch.rand(200, 2, generator=generator) * 90], 1)
    if seed == 5:  # all but a few
        anchors[3:] = torch.tensor([300.0, 300.0, 310.0, 310.0])
    scores = torch.randint(0, 20, (200,), generator=generator).float()  # ties
    scores[::17] = -torch.inf
    deltas = torch.randn(200, 4, generator=generator) * 0.1
    found = model._suppressed(*model._ranked_boxes(scores, deltas, anchors, (96, 128), 0.8))
    assert torch.equal(found, plain_proposals(model, scores, deltas, anchors, 0.8))


def test_a_threshold_at_which_nothing_is_suppressed_is_refused() -> None:
    with pytest.raises(DetectorError, match=r"rpn_nms_threshold 1\.0: expected less than 1"):
        DetectorConfig(rpn_nms_threshold=1.0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_within_its_stated_deviation(small_weights: Path, precision: str) -> None:
    weights = load_weights(small_weights)
    model = FasterRCNN(weights.config)
    model.load_state_dict(weights.tensors)
    full, low = (RegionExtractor(model, weights, device="cpu", precision=name) for name in ("float32", precision))
    pixels = torch.from_numpy(np.random.default_rng(0).normal(0, 50, (1, 3, 96, 128)).astype(np.float32))
    proposals = [torch.tensor([[0, 0, 60, 60], [30, 20, 120, 90], [64, 10, 100, 40.0]])]
    with torch.inference_mode():
        wanted = full.model.predict(full.model.backbone(pixels)["res4"], proposals)[0]
        features = low.model.backbone(pixels.to(low.model.backbone.stem.conv1.weight.dtype))["res4"]
        assert features.dtype != torch.float32
        found = low.model.predict(features, proposals)[0]
    assert found.features.dtype == found.class_probabilities.dtype == torch.float32
    deviation = (found.features - wanted.features).norm() / wanted.features.norm()
    assert 0 < deviation < {"bf16": 0.02, "fp16": 0.003}[precision]
    assert low.describe() == {**full.describe(), "precision": precision}


def test_precisions_are_checked(small_weights: Path) -> None:
    with pytest.raises(DetectorError, match="precision 'int8': expected one of float32, bf16, fp16"):
        RegionExtractor.from_weights(small_weights, precision="int8", device="cpu")


def detect_without_nms(extractor: RegionExtractor, pixels: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Candidates]:
    """All that is done on the device for a batch, but for the one operation that may wait for it."""

    def first_rows(boxes: Tensor, *_: object) -> Tensor:
        return torch.arange(21, device=boxes.device)

    monkeypatch.setattr("detector.model.nms_boxes", first_rows)
    model, (height, width) = extractor.model, pixels.shape[2:]
    features = model.backbone(pixels)["res4"]
    proposals = model.proposals(features, [(height, width)] * len(pixels), [1.0] * len(pixels))
    return list(map(extractor._candidates, proposals, model.predict(features, proposals)))


@pytest.mark.parametrize("geometry", ["continuous", "inclusive"])
@pytest.mark.parametrize("selection", ["caffe", "maxclass"])
def test_nothing_but_nms_looks_at_values(geometry: str, selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values raise where a shape or a branch depends on them: there a GPU would be waited for."""
    model = network(DetectorConfig(**{**vars(BOTTLENECKS), "geometry": geometry}))
    weights = Weights(model.config, {}, [], [], layout="seeded", sha256="")
    extractor = RegionExtractor(model, weights, selection=selection, device="cpu")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        with pytest.raises(RuntimeError):  # what this test relies on
            torch.ones(3, device="cpu").nonzero()
        candidates = detect_without_nms(extractor, mode.from_tensor(torch.empty(2, 3, 96, 128)), monkeypatch)
    assert [one.features.shape for one in candidates] == [(20, 256), (20, 256)]


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("selection", ["caffe", "maxclass"])
def test_nothing_but_nms_waits_for_a_gpu(selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(BOTTLENECKS)
    weights = Weights(model.config, {}, [], [], layout="seeded", sha256="")
    extractor = RegionExtractor(model, weights, selection=selection, device="cuda")
    pixels = torch.randn(2, 3, 96, 128, device="cuda")
    with torch.inference_mode():
        detect_without_nms(extractor, pixels, monkeypatch)  # libraries set themselves up
        torch.cuda.set_sync_debug_mode("error")
        try:
            detect_without_nms(extractor, pixels, monkeypatch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@NEEDS_GPU
def test_a_gpu_finds_what_a_cpu_finds(small_weights: Path) -> None:
    photos = [np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8) for seed in range(3)]
    on_cpu, on_gpu = (
        RegionExtractor.from_weights(small_weights, num_regions=9, device=device)(photos) for device in ("cpu", "cuda")
    )
    for left, right in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(left.boxes, right.boxes, atol=0.05)
        np.testing.assert_allclose(left.features, right.features, rtol=1e-2, atol=1e-2)  # TF32 convolutions


@pytest.mark.parametrize("selection", ["caffe", "maxclass"])
def test_the_download_loses_nothing(selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights = network(BOTTLENECKS), Weights(BOTTLENECKS, {}, [], [], layout="seeded", sha256="")
    extractor = RegionExtractor(model, weights, selection=selection, device="cpu")
    with torch.inference_mode():
        candidates = detect_without_nms(extractor, torch.randn(2, 3, 96, 128), monkeypatch)
    photo = extractor.prepare(np.zeros((96, 128, 3), np.uint8))
    launched = _Launched([photo] * 2, candidates, select=lambda _, found: found)  # type: ignore[arg-type,return-value]
    assert launched.done()
    for downloaded, plain in zip(launched.result(), candidates, strict=True):
        for field in fields(Candidates):
            left, right = getattr(downloaded, field.name), getattr(plain, field.name)
            assert left.dtype == right.dtype
            assert torch.equal(left, right)
