"""ImageNet classifiers become detectors that compute the same numbers from the same photo."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from detector.config import DetectorConfig
from detector.errors import DetectorError
from detector.model import FasterRCNN
from detector.training.imagenet import DEVIATION, MEAN, convert_imagenet, is_imagenet
from detector.weights import load_weights

Classifier = torchvision.models.ResNet


def classifier(depth: int) -> Classifier:
    """With random weights and random statistics, as after a training: fresh ones would hide a norm that is mixed up."""
    torch.manual_seed(depth)
    model: Classifier = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def detector(source: Classifier, depth: int) -> FasterRCNN:
    config, tensors = convert_imagenet(source.state_dict(), DetectorConfig(depth=depth, num_objects=3), "resnet.pth")
    model = FasterRCNN(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.startswith(("proposal_generator.", "roi_heads.box_predictor.", "cell_")) for name in missing)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("depth", [18, 50])
def test_every_stage_gives_the_same_numbers(depth: int) -> None:
    source = classifier(depth)
    model = detector(source, depth)
    photo = torch.randint(0, 256, (1, 3, 65, 80), generator=torch.Generator().manual_seed(1)).float()  # RGB
    theirs = (photo / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)
    ours = photo.flip(1) - torch.tensor(model.config.pixel_mean).view(1, 3, 1, 1)

    expected = source.relu(source.bn1(source.conv1(theirs)))
    torch.testing.assert_close(F.relu(model.backbone.stem.conv1(ours)), expected, rtol=1e-3, atol=1e-3)
    features = source.maxpool(expected)
    for theirs_stage, ours_stage in (("layer1", "res2"), ("layer2", "res3"), ("layer3", "res4")):
        expected = getattr(source, theirs_stage)(features)
        torch.testing.assert_close(getattr(model.backbone, ours_stage)(features), expected, rtol=1e-4, atol=1e-4)
        features = expected
    if depth == 18:  # res5 keeps its stride at 1; the bottlenecks' dilates besides
        for convolution in (source.layer4[0].conv1, source.layer4[0].downsample[0]):
            convolution.stride = (1, 1)
        expected = source.layer4(features)
        torch.testing.assert_close(model.roi_heads.res5(features), expected, rtol=1e-4, atol=1e-4)
    else:
        for block in source.layer4:
            block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
        source.layer4[0].downsample[0].stride = (1, 1)
        expected = source.layer4(features)
        torch.testing.assert_close(model.roi_heads.res5(features), expected, rtol=1e-4, atol=1e-4)


def test_the_mean_is_in_the_order_of_the_pixels() -> None:
    config, _ = convert_imagenet(classifier(18).state_dict(), DetectorConfig(depth=18), "resnet18.pth")
    assert config.pixel_mean == pytest.approx((103.53, 116.28, 123.675))  # blue, green, red
    assert not config.stride_in_1x1


def deep_stem(state: dict[str, Tensor]) -> None:
    """As timm's resnet18d."""
    del state["conv1.weight"]
    state["conv1.0.weight"] = torch.zeros(32, 3, 3, 3)


def resnext(state: dict[str, Tensor]) -> None:
    state["layer1.0.conv2.weight"] = torch.zeros(64, 2, 3, 3)


def squeezed(state: dict[str, Tensor]) -> None:
    state["layer1.0.se.fc1.weight"] = torch.zeros(4, 64, 1, 1)


def grey(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = state["conv1.weight"][:, :1]


@pytest.mark.parametrize(
    ("change", "depth", "message"),
    [
        (deep_stem, 18, r"conv1\.0\.weight is of no plain ResNet"),
        (squeezed, 18, r"layer1\.0\.se\.fc1\.weight is of no plain ResNet"),
        (grey, 18, r"conv1 is \(64, 1, 7, 7\); expected a ResNet with a plain 7 x 7 stem"),
        (resnext, 18, r"is not the ResNet-18 of width 64 that is asked for \(backbone\.res2\.0\.conv2\.weight is"),
        (lambda state: None, 34, r"is not the ResNet-34 .*res2\.2\.conv1\.norm\.bias is missing.*set network\.depth"),
        (lambda state: None, 50, r"is not the ResNet-50 "),
    ],
    ids=["deep-stem", "squeeze-excitation", "grey", "resnext", "depth", "blocks"],
)
def test_other_networks_are_refused(change: Callable[[dict], None], depth: int, message: str) -> None:
    state = dict(classifier(18).state_dict())
    change(state)
    with pytest.raises(DetectorError, match=message) as error:
        convert_imagenet(state, DetectorConfig(depth=depth), "file.pth")
    assert str(error.value).startswith("file.pth: ")
    assert "\n" not in str(error.value)


def test_another_width_is_refused() -> None:
    with pytest.raises(DetectorError, match="is not the ResNet-18 of width 32"):
        convert_imagenet(classifier(18).state_dict(), DetectorConfig(depth=18, width=32), "file.pth")


def test_detectors_are_not_taken_for_classifiers(small_weights: Path) -> None:
    assert is_imagenet(classifier(18).state_dict())
    assert not is_imagenet(load_weights(small_weights).tensors)
    assert not is_imagenet({"conv1.0.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)})
