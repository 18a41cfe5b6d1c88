"""ImageNet classifiers -> the start of a detector: ResNet files of torchvision and timm.

They expect RGB in [0, 1], minus a mean, divided by a deviation; ours is BGR in [0, 255] minus a mean. Channel order and
deviation go into the first convolution, the mean into the configuration: the same numbers come out. Their bottlenecks
stride in the 3x3 convolution, so the detector's do too.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from detector.config import DetectorConfig
from detector.errors import DetectorError
from detector.layouts import different_shape

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of torchvision and timm
PARTS = {f"layer{index}": f"backbone.res{index + 1}" for index in (1, 2, 3)} | {"layer4": "roi_heads.res5"}
STEM = "backbone.stem"
LAYERS = {f"bn{index}": f"conv{index}.norm" for index in (1, 2, 3)}
LAYERS |= {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}
_NAME = re.compile(r"(?:(layer[1-4])\.(\d+)\.)?(conv[123]|bn[123]|downsample\.[01])\.(\w+)")


def is_imagenet(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a torchvision or timm ResNet."""
    return "layer1.0.conv1.weight" in state and "conv1.weight" in state


def convert_imagenet(
    state: Mapping[str, Tensor], config: DetectorConfig, path: str
) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """Rename and rescale a ResNet of torchvision or timm, 18 to 152, that a network starts from.

    Returns:
        The configuration with this network's input and stride, and the tensors of backbone and res5 under our names.

    Raises:
        DetectorError: parameters that no such network has, as those of a ResNet with another stem, or another depth or
            width than the configuration's.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked") or name.startswith("fc."):
            continue
        tensors[_renamed(name, path)] = tensor.float()
    stem = tensors["backbone.stem.conv1.weight"]
    if stem.shape[1:] != (3, 7, 7):
        raise DetectorError(f"{path}: conv1 is {tuple(stem.shape)}; expected a ResNet with a plain 7 x 7 stem")
    deviation = torch.tensor(DEVIATION).view(1, 3, 1, 1) * 255
    tensors["backbone.stem.conv1.weight"] = (stem / deviation).flip(1).contiguous()  # RGB -> BGR
    mean = tuple(round(255 * value, 4) for value in reversed(MEAN))
    config = replace(config, pixel_mean=mean, stride_in_1x1=False)
    # Every layer that a training may freeze has to come from the file: at random it would stay random.
    if difference := different_shape(config, tensors, (*PARTS.values(), STEM)):
        raise DetectorError(
            f"{path}: is not the ResNet-{config.depth} of width {config.width} that is asked for ({difference})",
            "set network.depth and network.width as the file has them, or name another with --init",
        )
    return config, tensors


def _renamed(name: str, path: str) -> str:
    """ "layer1.0.downsample.1.bias" -> "backbone.res2.0.shortcut.norm.bias"."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise DetectorError(f"{path}: {name} is of no plain ResNet; expected a resnet file of torchvision or timm")
    stage, block, layer, value = match.groups()
    place = f"{PARTS[stage]}.{block}" if stage else STEM
    return f"{place}.{LAYERS.get(layer, layer)}.{value}"
