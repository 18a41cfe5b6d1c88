"""The network as detectron2's trainer and evaluators call it: records in, losses or detections out.

Anchors and proposals are labelled, sampled and (for the RPN) scored by detectron2; the losses of the region head are here.

Letters: B images of a batch, G boxes of an image, R sampled proposals, C objects, T attributes, D feature dimensions.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detector.boxes import apply_deltas, grid_anchors
from detector.config import STRIDE, DetectorConfig, DetectorFitConfig
from detector.detectron2_compat import detectron2_ready
from detector.errors import DetectorError
from detector.folding import PRECISIONS
from detector.model import BoxPredictor, FasterRCNN

with detectron2_ready():
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.modeling.proposal_generator.rpn import RPN
    from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
    from detectron2.modeling.roi_heads.roi_heads import ROIHeads
    from detectron2.structures import Boxes, ImageList, Instances

DETECTIONS, SCORE_THRESHOLD, NMS_THRESHOLD = 400, 1e-3, 0.3  # of an evaluation, as published (there without threshold)
ONEDNN_BLOCK = 16  # float32 numbers in a register of AVX-512


class TrainableDetector(nn.Module):
    """Wraps a network for training and evaluation; the wrapped one is what is saved.

    A record is a mapping with `image` (3, h, w) float32, BGR minus the mean, and `instances`: detectron2's Instances of
    the resized image with gt_boxes (G, 4), gt_classes (G,) and, for a network with attributes, gt_attributes (G, T) bool.
    For evaluation also `height` and `width` of the original, and `scale`: resized / original.

    Raises:
        DetectorError: a network of Caffe's geometry, whose files are for extraction.
    """

    def __init__(self, model: FasterRCNN, recipe: DetectorFitConfig):
        super().__init__()
        config = model.config
        if config.geometry != "continuous" or config.background != "last":
            raise DetectorError(
                f"a detector of {config.geometry} boxes with background {config.background} cannot be trained; "
                "expected continuous boxes with background last",
                "start from another file with --init",
            )
        self.model, self.recipe = model, recipe
        subsample_before_narrow_convolutions(model)
        self.rpn = RPN(
            in_features=["res4"],
            head=self._rpn_head,
            anchor_generator=Anchors(model),
            anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=recipe.rpn_batch_size,
            positive_fraction=recipe.rpn_positive_fraction,
            pre_nms_topk=(recipe.rpn_pre_nms, config.rpn_pre_nms),
            post_nms_topk=(recipe.rpn_post_nms, config.rpn_post_nms),
            nms_thresh=config.rpn_nms_threshold,
            smooth_l1_beta=1 / 9,
        )
        self.sampler = ROIHeads(
            num_classes=config.num_objects,
            batch_size_per_image=recipe.roi_batch_size,
            positive_fraction=recipe.roi_positive_fraction,
            proposal_matcher=Matcher([0.5], [0, 1]),
        )

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.cell_anchors.device

    def forward(self, records: Sequence[Mapping[str, Any]]) -> Any:
        """Losses by name while training, else, in float32 as features are extracted, a detection record per image."""
        images = ImageList.from_tensors([record["image"].to(self.device, non_blocking=True) for record in records])
        targets = [record["instances"].to(self.device) for record in records]
        with self._autocast():
            pixels = images.tensor.contiguous(memory_format=torch.channels_last)
            features = self.model.backbone(pixels)["res4"]
            if self.training:
                return self._losses(images, features, targets)
            return self._detections(records, images.image_sizes, features, targets)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.recipe.precision]
        return torch.autocast(self.device.type, dtype, enabled=self.training and dtype != torch.float32)

    def _rpn_head(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = self.model.proposal_generator.rpn_head(features)
        return [x.float() for x in logits], [x.float() for x in deltas]

    def _losses(self, images: ImageList, features: Tensor, targets: list[Instances]) -> dict[str, Tensor]:
        proposals, losses = self.rpn(images, {"res4": features}, targets)
        sampled = self.sampler.label_and_sample_proposals(proposals, targets)
        rois = torch.cat(
            [F.pad(one.proposal_boxes.tensor, (1, 0), value=index) for index, one in enumerate(sampled)]
        )  # (R, 5)
        pooled = self.model.region_features(features, rois)
        samples = Samples.of(sampled, self.model.config)
        return losses | head_losses(
            self.model.roi_heads.box_predictor, pooled, samples, self.model.config, self.recipe.attribute_weight
        )

    def _detections(
        self,
        records: Sequence[Mapping[str, Any]],
        sizes: list[tuple[int, int]],
        features: Tensor,
        targets: list[Instances],
    ) -> list[dict[str, Any]]:
        config = self.model.config
        proposals = self.model.proposals(features, sizes, [record["scale"] for record in records])
        results: list[dict[str, Any]] = []
        predictions = self.model.predict(features, proposals)
        for record, size, boxes, found in zip(records, sizes, proposals, predictions, strict=True):
            moved = apply_deltas(boxes, found.box_deltas, config.box_weights, self.model.offset)  # (R, C, 4)
            scores = F.pad(found.class_probabilities, (0, 1))  # (R, C + 1); the background's is not read
            instances, _ = fast_rcnn_inference_single_image(
                moved.flatten(1), scores, size, SCORE_THRESHOLD, NMS_THRESHOLD, DETECTIONS
            )
            results.append({"instances": detector_postprocess(instances, record["height"], record["width"])})
        if config.num_attributes:  # as published: attributes are evaluated on the true boxes
            truth = [target.gt_boxes.tensor for target in targets]
            for result, found in zip(results, self.model.predict(features, truth), strict=True):
                result["attribute_scores"] = found.attribute_probabilities  # (G, T)
        return results


class Anchors:
    """The network's own anchors, as detectron2's RPN asks for them: those that it is extracted with later."""

    box_dim = 4

    def __init__(self, model: FasterRCNN):
        self.model = model  # not a module of the RPN: its parameters are not there twice

    def __call__(self, features: Sequence[Tensor]) -> list[Boxes]:
        height, width = features[0].shape[-2:]
        return [Boxes(grid_anchors(self.model.cell_anchors, height, width, STRIDE))]


@dataclass
class Samples:
    """The sampled proposals of a batch, and the truth about each."""

    proposals: Tensor  # (R, 4)
    classes: Tensor  # (R,), C for background
    boxes: Tensor  # (R, 4) of the object; any box for background
    attributes: Tensor  # (R, T) bool

    @classmethod
    def of(cls, sampled: Sequence[Instances], config: DetectorConfig) -> "Samples":
        """Concatenate what detectron2 sampled of each image; images without objects have no gt_boxes."""
        proposals = [one.proposal_boxes.tensor for one in sampled]
        boxes, attributes = [], []
        for one, own in zip(sampled, proposals, strict=True):
            boxes.append(one.gt_boxes.tensor if one.has("gt_boxes") else torch.zeros_like(own))
            known = one.has("gt_attributes")
            empty = torch.zeros(len(own), config.num_attributes, dtype=torch.bool, device=own.device)
            attributes.append(one.gt_attributes if known else empty)
        classes = torch.cat([one.gt_classes for one in sampled])
        return cls(torch.cat(proposals), classes, torch.cat(boxes), torch.cat(attributes))


def head_losses(
    head: BoxPredictor, features: Tensor, samples: Samples, config: DetectorConfig, attribute_weight: float
) -> dict[str, Tensor]:
    """Losses of the region head, each a mean over the sampled proposals (attributes: over the labels).

    Class: cross-entropy with background. Box: smooth L1 on the deltas of the true class (Fast R-CNN). Attributes: a
    region may have several, and each asks for its share of one softmax; the *true* class is embedded, as published.
    `features` (R, D) are of the R proposals of `samples`.
    """
    logits, deltas = head.cls_score(features).float(), head.bbox_pred(features).float()
    objects = torch.nonzero(samples.classes < config.num_objects)[:, 0]
    classes = samples.classes[objects]
    wanted = Box2BoxTransform(weights=config.box_weights).get_deltas(samples.proposals[objects], samples.boxes[objects])
    given = deltas.view(len(deltas), config.num_objects, 4)[objects, classes]
    count = max(len(features), 1)
    losses = {
        "loss_cls": F.cross_entropy(logits, samples.classes, reduction="sum") / count,
        "loss_box_reg": F.smooth_l1_loss(given, wanted, reduction="sum") / count,
    }
    if config.num_attributes:
        scores = head.attribute_logits(features[objects], classes).float().log_softmax(1)[:, :-1]  # (objects, T)
        labels = samples.attributes[objects].to(scores.dtype)
        losses["loss_attr"] = -attribute_weight * (scores * labels).sum() / labels.sum().clamp(min=1)
    return losses


def initialize(model: FasterRCNN) -> None:
    """Random numbers for the layers that no ImageNet network has, as in Fast R-CNN; detectron2 has set the others."""
    head = model.roi_heads.box_predictor
    for layer in head.children():
        assert isinstance(layer, nn.Linear | nn.Embedding)
        nn.init.normal_(layer.weight, std=0.001 if layer is head.bbox_pred else 0.01)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


def subsample_before_narrow_convolutions(model: nn.Module) -> None:
    """Let narrow 1x1 convolutions of stride s, in place, run with stride 1 on every s-th cell: the same numbers.

    On a CPU with AVX-512, oneDNN 3.12 (torch 2.14) writes out of bounds in the backward pass of such a convolution when it has
    fewer than 16 input channels, channels-last tensors and more than one thread (`tests/detector/training/test_onednn.py`).
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.stride == (1, 1):
            continue
        if module.in_channels < ONEDNN_BLOCK:
            step = module.stride[0]
            module.register_forward_pre_hook(lambda _, inputs, step=step: (inputs[0][:, :, ::step, ::step],))
            module.stride = (1, 1)


def plain_state(model: FasterRCNN) -> dict[str, Tensor]:
    """The weights as they are saved and extracted with: normalisations frozen, without their counters."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
