"""Records of annotated images -> what the network is trained and evaluated with.

A record: file_name, image_id, height, width; boxes (G, 4) float32 XYXY pixels, classes (G,) int64 and attributes (G, A)
int64 padded with -1. Letters: G boxes of an image, A attributes of a box at most, T attributes of the vocabulary.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from detector.config import DetectorConfig
from detector.detectron2_compat import detectron2_ready
from detector.preprocess import InputSettings, prepare
from detector.vocabulary import multi_hot

with detectron2_ready():
    from detectron2.structures import Boxes, Instances

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DetectionData:
    """What a detector is trained and evaluated on: records and how their images are read."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    object_names: list[str]
    attribute_names: list[str]
    read_image: Callable[[str], np.ndarray]  # a path -> (H, W, 3) uint8 BGR; raises ValueError for what is no image


class RecordReader:
    """A record -> what the network is trained and evaluated with. Runs in worker processes.

    Args:
        config: of the network.
        read_image: as of `DetectionData`.
        training: mirror half of the images, unless `flip` is off, and skip those that cannot be read; else a blank image
            stands for one, so that its objects count as not found, and no evaluation ends a training.
    """

    def __init__(
        self, config: DetectorConfig, read_image: Callable[[str], np.ndarray], *, training: bool, flip: bool = True
    ):
        self.settings, self.num_attributes = InputSettings.of(config), config.num_attributes
        self.read_image, self.training, self.flip = read_image, training, flip and training
        self._complained: set[str] = set()

    def __call__(self, record: Record) -> dict[str, Any] | None:
        try:
            image = self.read_image(record["file_name"])
            if image.shape[:2] != (record["height"], record["width"]):
                raise ValueError(other_size(record, image.shape))
        except ValueError as error:
            what = "skipped in training" if self.training else "evaluated as a blank image"
            if record["file_name"] not in self._complained:  # an image comes once an epoch
                self._complained.add(record["file_name"])
                warnings.warn(f"{record['file_name']}: {what}: {error}", stacklevel=2)
            if self.training:
                return None
            image = np.full((record["height"], record["width"], 3), self.settings.pixel_mean, dtype=np.uint8)
        prepared = prepare(image, self.settings)
        pixels, (y, x) = prepared.pixels, prepared.scale
        boxes = record["boxes"] * np.array([x, y, x, y], dtype=np.float32)
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels[:, ::-1]
            boxes[:, [0, 2]] = pixels.shape[1] - boxes[:, [2, 0]]
        height, width = pixels.shape[:2]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_boxes.clip((height, width))
        instances.gt_classes = torch.from_numpy(record["classes"])
        if self.num_attributes:
            instances.gt_attributes = torch.from_numpy(multi_hot(record["attributes"], self.num_attributes))
        if self.training:  # a box of a pixel can vanish at the border of an image that was made smaller
            instances = instances[instances.gt_boxes.nonempty()]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "instances": instances,
            "image_id": record["image_id"],
            "height": record["height"],
            "width": record["width"],
            "scale": min(y, x),
        }


def other_size(record: Record, size: Sequence[int]) -> str:
    """Says that an image of (height, width) is not the one that was annotated."""
    return f"{size[0]} x {size[1]} pixels, annotated as {record['height']} x {record['width']}"
