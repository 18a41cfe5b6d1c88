"""Photos -> Regions: the detector as users call it.

An image's regions depend on that image alone: images share a backbone pass only where their resized shapes are equal
(so nothing is padded), and the RoI head works proposal by proposal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.boxes import apply_deltas, clip
from detector.config import DetectorConfig
from detector.errors import DetectorError
from detector.locate import find_weights
from detector.model import FasterRCNN, Predictions
from detector.preprocess import InputSettings, PreparedImage, prepare
from detector.regions import Regions
from detector.selection import Selected, select_caffe, select_maxclass
from detector.weights import Weights, load_weights

SELECTIONS = ("caffe", "maxclass")


class RegionExtractor:
    """Finds the top regions of photos and their features.

    extractor = RegionExtractor.from_weights("frcnn-vg.safetensors")
    regions, = extractor([cv2.imread("photo.jpg")])
    regions.features  # (36, 2048)
    """

    def __init__(
        self,
        model: FasterRCNN,
        weights: Weights,
        *,
        selection: str = "caffe",
        num_regions: int = 36,
        device: torch.device | str | None = None,
    ):
        if selection not in SELECTIONS:
            raise DetectorError(f"selection {selection!r}: expected one of {', '.join(SELECTIONS)}")
        if num_regions < 1:
            raise DetectorError(f"num_regions {num_regions}: expected at least 1")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.config = model.config
        self.selection = selection
        self.num_regions = num_regions
        self.feature_dim = self.config.feature_dim
        self.object_names = weights.object_names
        self.attribute_names = weights.attribute_names
        self.weights_sha256 = weights.sha256
        self.input_settings = InputSettings.of(self.config)

    @classmethod
    def from_weights(
        cls,
        path_or_name: str | Path | None = None,
        *,
        selection: str = "caffe",
        num_regions: int = 36,
        device: torch.device | str | None = None,
        config_overrides: Mapping[str, Any] | None = None,
    ) -> "RegionExtractor":
        """Load a detector.

        Args:
            path_or_name: weights file of any known layout, or a hub name; None looks in the usual places.
            selection: "caffe" (what SCAN's features were made with) or "maxclass" (airsplay, LXMERT).
            num_regions: K.
            device: None takes a GPU where there is one.
            config_overrides: fields of `DetectorConfig` that need no other weights, such as `min_size`.

        Raises:
            DetectorError: no weights, a file of no known layout, or overrides that the weights do not fit.
        """
        weights = load_weights(find_weights(None if path_or_name is None else str(path_or_name)))
        config = _override(weights.config, config_overrides or {})
        model = FasterRCNN(config)
        model.load_state_dict(weights.tensors)
        return cls(model, weights, selection=selection, num_regions=num_regions, device=device)

    def prepare(self, image: np.ndarray) -> PreparedImage:
        """The part of the work that needs no network: see `detector.preprocess.prepare`."""
        return prepare(image, self.input_settings)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the features are, as JSON."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return {
            "detector": config,
            "selection": self.selection,
            "num_regions": self.num_regions,
            "weights_sha256": self.weights_sha256,
        }

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray | PreparedImage]) -> list[Regions]:
        """Regions of each image, in order.

        Args:
            images: (H, W, 3) uint8 BGR arrays, or what `prepare` made of them.
        """
        prepared = [image if isinstance(image, PreparedImage) else self.prepare(image) for image in images]
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(prepared):
            of_shape.setdefault(image.pixels.shape, []).append(index)
        results: dict[int, Regions] = {}
        for indices in of_shape.values():
            regions = self._same_shape([prepared[index] for index in indices])
            results.update(zip(indices, regions, strict=True))
        return [results[index] for index in range(len(prepared))]

    def _same_shape(self, images: list[PreparedImage]) -> list[Regions]:
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))  # (B, h, w, 3): channels-last already
        batch = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        features = self.model.backbone(batch)["res4"]
        sizes = [image.pixels.shape[:2] for image in images]
        proposals = self.model.proposals(features, sizes, [min(image.scale) for image in images])
        predictions = self.model.predict(features, proposals)
        return [self._keep(*parts) for parts in zip(images, proposals, predictions, strict=True)]

    def _keep(self, image: PreparedImage, proposals: Tensor, predictions: Predictions) -> Regions:
        """Selection, and boxes in pixels of the original image."""
        if self.selection == "caffe":
            y, x = image.scale
            original = proposals / proposals.new_tensor([x, y, x, y])
            selected = select_caffe(original, predictions.class_probabilities, self.num_regions)
            boxes = selected.boxes
        else:
            selected = self._maxclass(image, proposals, predictions)
            height, width = image.pixels.shape[:2]
            x, y = image.image_size[1] / width, image.image_size[0] / height
            boxes = selected.boxes * selected.boxes.new_tensor([x, y, x, y])
        boxes = clip(boxes, *image.image_size, 0.0)  # a resized side is rounded: half a pixel may stand out
        rows = selected.proposals
        attributes = predictions.attribute_probabilities[rows]
        if attributes.shape[1]:
            attribute_scores, attribute_ids = attributes.max(1)
        else:
            attribute_scores, attribute_ids = torch.zeros(len(rows)), torch.zeros(len(rows))
        return Regions(
            boxes=boxes.float().cpu().numpy(),
            features=predictions.features[rows].cpu().numpy(),
            object_ids=selected.object_ids.cpu().numpy().astype(np.int32),
            object_scores=selected.object_scores.cpu().numpy(),
            attribute_ids=attribute_ids.cpu().numpy().astype(np.int32),
            attribute_scores=attribute_scores.float().cpu().numpy(),
            image_size=image.image_size,
        )

    def _maxclass(self, image: PreparedImage, proposals: Tensor, predictions: Predictions) -> Selected:
        height, width = image.pixels.shape[:2]
        boxes = apply_deltas(proposals, predictions.box_deltas, self.config.box_weights, self.model.offset)
        return select_maxclass(
            boxes,
            predictions.class_probabilities,
            self.num_regions,
            height=height,
            width=width,
            offset=self.model.offset,
        )


INPUT_FIELDS = ("min_size", "max_size", "rpn_pre_nms", "rpn_post_nms", "rpn_nms_threshold", "rpn_min_size")


def _override(config: DetectorConfig, overrides: Mapping[str, Any]) -> DetectorConfig:
    for key in overrides:
        if key not in INPUT_FIELDS:
            raise DetectorError(
                f"detector.{key}: cannot be set here; the weights decide all but {', '.join(INPUT_FIELDS)}"
            )
    return replace(config, **overrides)
