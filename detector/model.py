"""The network: ResNet C4 Faster R-CNN with an attribute head, built of detectron2's blocks.

Letters: B images of one resized shape, R proposals, A anchors per cell, C objects, T attributes, D feature dimensions.
Parameters have the names of the published LXMERT-layout checkpoint, so that a file loads without renaming.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_pool

from detector.boxes import apply_deltas, cell_anchors, clip, grid_anchors, nms_boxes
from detector.config import BLOCKS, STRIDE, DetectorConfig
from detector.detectron2_compat import detectron2_ready

with detectron2_ready():
    from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
    from detectron2.modeling.proposal_generator.rpn import StandardRPNHead

CHUNKS = {"cpu": 16}  # boxes pooled at once: what res5 makes of them stays in a CPU's caches …
CHUNK = 300  # … and takes 480 MB on a GPU at full size


@dataclass(frozen=True)
class Predictions:
    """What the RoI head says of R proposals."""

    features: Tensor  # (R, D) mean-pooled res5
    class_probabilities: Tensor  # (R, C) without background
    box_deltas: Tensor  # (R, C * 4) of the same classes
    attribute_probabilities: Tensor  # (R, T); T is 0 where the network has no attribute head


class CaffeStem(BasicStem):
    """Stem with Caffe's max-pool: no padding, and a last incomplete window counts."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=0, ceil_mode=True)


class BoxPredictor(nn.Module):
    """Class scores, class boxes and attributes of mean-pooled region features."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        classes = config.num_objects + 1
        box_classes = config.num_objects + (config.background == "first")  # Caffe also regresses the background
        self.cls_score = nn.Linear(config.feature_dim, classes)
        self.bbox_pred = nn.Linear(config.feature_dim, box_classes * 4)
        self.has_attributes = config.num_attributes > 0
        if self.has_attributes:
            self.cls_embedding = nn.Embedding(classes, config.class_embedding_dim)
            self.fc_attr = nn.Linear(config.feature_dim + config.class_embedding_dim, config.attribute_hidden_dim)
            self.attr_score = nn.Linear(config.attribute_hidden_dim, config.num_attributes + 1)

    def attribute_logits(self, features: Tensor, classes: Tensor) -> Tensor:
        """Attributes given the class: (R, D), (R,) -> (R, T + 1)."""
        hidden = torch.cat([features, self.cls_embedding(classes)], dim=-1)
        return self.attr_score(F.relu(self.fc_attr(hidden)))


class ProposalGenerator(nn.Module):
    """The region proposal network's head, under the name that checkpoints have for it."""

    def __init__(self, config: DetectorConfig, channels: int):
        super().__init__()
        self.rpn_head = StandardRPNHead(
            in_channels=channels, num_anchors=config.num_anchors, conv_dims=[config.rpn_channels]
        )


class RoiHeads(nn.Module):
    """res5 and what reads it, under the names that checkpoints have for them."""

    def __init__(self, config: DetectorConfig, channels: int, norm: str):
        super().__init__()
        blocks, dilation = BLOCKS[config.depth][3], config.res5_dilation
        self.res5 = nn.Sequential(*_stage(config, 3, blocks, channels, norm, stride=1, dilation=dilation))
        self.box_predictor = BoxPredictor(config)


class FasterRCNN(nn.Module):
    """Resized images -> proposals -> predictions. Says nothing of selection or of the original image's size.

    Args:
        config: the network.
        norm: detectron2's name of the normalisation: "FrozenBN", as published, or "BN" and "SyncBN" to train from scratch.
    """

    def __init__(self, config: DetectorConfig, norm: str = "FrozenBN"):
        super().__init__()
        self.config = config
        blocks, width = BLOCKS[config.depth], config.width
        stem = CaffeStem(3, width, norm=norm)
        stages, channels = [], width
        for index in range(3):
            stages.append(_stage(config, index, blocks[index], channels, norm, stride=1 if index == 0 else 2))
            channels = stages[-1][-1].out_channels
        self.backbone = ResNet(stem, stages, out_features=["res4"])
        self.proposal_generator = ProposalGenerator(config, channels)
        self.roi_heads = RoiHeads(config, channels, norm)
        anchors = cell_anchors(config.geometry, config.anchor_sizes, config.anchor_ratios)
        self.cell_anchors: Tensor
        self.register_buffer("cell_anchors", anchors)  # (A, 4)
        self.offset = 1.0 if config.geometry == "inclusive" else 0.0
        self.outside: Tensor  # a box that overlaps no box of any image
        self.register_buffer("outside", torch.tensor([[-9.0, -9.0, -5.0, -5.0]]), persistent=False)

    def proposals(self, features: Tensor, image_sizes: list[tuple[int, int]], scales: list[float]) -> list[Tensor]:
        """Boxes that may hold an object, best first, in pixels of the resized images.

        Args:
            features: (B, channels, H, W) of res4.
            image_sizes: (height, width) of each resized image.
            scales: resized / original, of each image.

        Returns:
            B tensors (R, 4), R at most `rpn_post_nms`.
        """
        logits, deltas = self.proposal_generator.rpn_head([features.float()])
        logits, deltas = logits[0], deltas[0]  # (B, A, H, W), (B, A * 4, H, W)
        batch, _, height, width = logits.shape
        scores = logits.permute(0, 2, 3, 1).reshape(batch, -1)  # (B, H * W * A)
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
        anchors = grid_anchors(self.cell_anchors, height, width, STRIDE)
        # All of it is launched before the first NMS: on a GPU that one waits, as the number it keeps is not known before.
        ranked = [
            self._ranked_boxes(scores[index], deltas[index], anchors, image_sizes[index], scales[index])
            for index in range(batch)
        ]
        return [self._suppressed(*candidates) for candidates in ranked]

    def _ranked_boxes(
        self, scores: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int], scale: float
    ) -> tuple[Tensor, Tensor]:
        """The `rpn_pre_nms` best boxes and their scores, best first; -inf and a box outside of the image for what is none."""
        config = self.config
        boxes = apply_deltas(anchors, deltas, (1.0, 1.0, 1.0, 1.0), self.offset)[:, 0]
        boxes = clip(boxes, *size, self.offset)
        sides = boxes[:, 2:] - boxes[:, :2] + self.offset
        if config.geometry == "inclusive":  # Caffe drops small boxes before the ranking, …
            scores = torch.where((sides >= config.rpn_min_size * scale).all(1), scores, -torch.inf)
        scores, order = scores.sort(descending=True, stable=True)
        scores, order = scores[: config.rpn_pre_nms], order[: config.rpn_pre_nms]
        boxes, sides = boxes[order], sides[order]
        # … the others drop empty ones after it.
        valid = torch.isfinite(scores) & (sides > 0).all(1)
        return torch.where(valid[:, None], boxes, self.outside), torch.where(valid, scores, -torch.inf)

    def _suppressed(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """NMS, without the boxes that are none.

        To take those out with a mask would make a GPU wait once more. They are all one box instead, one is added, and
        NMS keeps exactly one of its kind: the last, as its score is the lowest.
        """
        boxes, scores = torch.cat([boxes, self.outside]), F.pad(scores, (0, 1), value=-torch.inf)
        kept = nms_boxes(boxes, scores, self.config.rpn_nms_threshold, self.offset)
        return boxes[kept[:-1][: self.config.rpn_post_nms]]

    def predict(self, features: Tensor, proposals: list[Tensor]) -> list[Predictions]:
        """RoI head over the proposals of many images, in chunks that bound the memory.

        Args:
            features: (B, channels, H, W) of res4.
            proposals: B tensors (R, 4) in pixels of the resized images.
        """
        counts = [len(boxes) for boxes in proposals]
        pooled = pooled_chunks(features, proposals, self.config.pooled_size, 1.0 / STRIDE)
        means = [self.roi_heads.res5(chunk).mean((2, 3), dtype=torch.float32) for chunk in pooled]
        none = features.new_zeros(0, self.config.feature_dim, dtype=torch.float32)  # images may all be without a box
        everything = self._read_out(torch.cat([none, *means]))
        return [Predictions(*parts) for parts in zip(*(part.split(counts) for part in everything), strict=True)]

    def region_features(self, features: Tensor, rois: Tensor) -> Tensor:
        """As `predict` has them, but with gradients: (B, channels, H, W), (R, 5) of (image, XYXY) -> (R, D)."""
        size = self.config.pooled_size  # in float32: bfloat16 would round a coordinate of 1,000 to 4 pixels
        pooled = roi_pool(features.float(), rois.float(), (size, size), 1.0 / STRIDE)
        pooled = pooled.contiguous(memory_format=torch.channels_last)
        return self.roi_heads.res5(pooled).mean((2, 3)).float()

    def _read_out(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        head = self.roi_heads.box_predictor
        first = self.config.background == "first"
        logits = head.cls_score(features)  # (R, C + 1)
        deltas = head.bbox_pred(features)
        objects = slice(1, None) if first else slice(0, -1)
        attributes = features.new_zeros(len(features), 0)
        if head.has_attributes:
            attribute_logits = head.attribute_logits(features, logits.argmax(1))
            attributes = attribute_logits[:, objects].softmax(1)  # "no attribute" sits where background does
        return features, logits.softmax(1)[:, objects], deltas[:, 4:] if first else deltas, attributes


def _stage(
    config: DetectorConfig, index: int, blocks: int, channels: int, norm: str, *, stride: int, dilation: int = 1
) -> list:
    """One ResNet stage (res2 is 0)."""
    width = config.width * 2**index
    shared = {"num_blocks": blocks, "in_channels": channels, "stride_per_block": [stride] + [1] * (blocks - 1)}
    if not config.bottleneck:
        return ResNet.make_stage(BasicBlock, out_channels=width, norm=norm, **shared)
    return ResNet.make_stage(
        BottleneckBlock,
        out_channels=width * 4,
        bottleneck_channels=width,
        stride_in_1x1=config.stride_in_1x1,
        dilation=dilation,
        norm=norm,
        **shared,
    )


def pooled_chunks(features: Tensor, boxes: Sequence[Tensor], size: int, scale: float) -> Iterator[Tensor]:
    """The boxes of many images pooled with RoIPool (Girshick 2015), in order, a chunk of one image at a time.

    A chunk never holds boxes of two images: what a library computes of a box may depend on the chunk that it is in.

    Args:
        features: (B, C, H, W).
        boxes: B tensors (R, 4), in pixels.
        size: S, cells a side.
        scale: cells of the feature map per pixel.

    Returns:
        (R', C, S, S) each, channels-last in memory, in the features' type.
    """
    planes = features.float().contiguous()  # as the operator reads them; otherwise every chunk would make its own copy
    for index, of_image in enumerate(boxes):
        if not len(of_image):
            continue
        for chunk in of_image.split(CHUNKS.get(features.device.type, CHUNK)):
            pooled = roi_pool(planes, F.pad(chunk, (1, 0), value=index), (size, size), scale)
            yield pooled.to(dtype=features.dtype, memory_format=torch.channels_last)
