"""The detector as the published scripts run it: detectron2's own modules, eager, one photo at a time.

Frozen norms stand apart, memory is channels-first, res5 is dilated and takes all proposals at once, and Caffe's rule is a loop
over 1600 classes. Slow on purpose: what our detector is compared with, in speed and in what it finds.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from detector.config import STRIDE
from detector.model import FasterRCNN
from detector.preprocess import PreparedImage

# isort: split
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import ImageList


class PublishedDetector(nn.Module):
    """Shares the weights of a `FasterRCNN`, whose backbone and res5 are detectron2's blocks already."""

    def __init__(self, model: FasterRCNN, num_regions: int):
        super().__init__()
        config = model.config
        assert (config.geometry, config.background) == ("continuous", "last"), "detectron2 knows no others"
        self.num_regions = num_regions
        self.attribute_logits = model.roi_heads.box_predictor.attribute_logits
        self.backbone, self.res5 = model.backbone, model.roi_heads.res5
        self.proposal_generator = RPN(
            in_features=["res4"],
            head=model.proposal_generator.rpn_head,
            anchor_generator=DefaultAnchorGenerator(
                sizes=[config.anchor_sizes], aspect_ratios=[config.anchor_ratios], strides=[STRIDE], offset=0.0
            ),
            anchor_matcher=Matcher([0.5], [0, 1]),  # of training, as the next two lines
            batch_size_per_image=256,
            positive_fraction=0.5,
            box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
            pre_nms_topk=(config.rpn_pre_nms,) * 2,
            post_nms_topk=(config.rpn_post_nms,) * 2,
            nms_thresh=config.rpn_nms_threshold,
        )
        self.pooler = ROIPooler(config.pooled_size, (1 / STRIDE,), sampling_ratio=0, pooler_type="ROIPool")
        self.box_predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=config.feature_dim),
            box2box_transform=Box2BoxTransform(config.box_weights),
            num_classes=config.num_objects,
        )
        self.box_predictor.cls_score = model.roi_heads.box_predictor.cls_score
        self.box_predictor.bbox_pred = model.roi_heads.box_predictor.bbox_pred
        self.eval()

    @torch.no_grad()
    def forward(self, image: PreparedImage) -> tuple[Tensor, Tensor]:
        """Boxes (K, 4) in pixels of the original image and features (K, D), on the host."""
        device = self.box_predictor.cls_score.weight.device
        pixels = torch.from_numpy(image.pixels).to(device).permute(2, 0, 1).contiguous()
        images = ImageList.from_tensors([pixels])
        maps = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, maps)
        pooled = self.pooler([maps["res4"]], [one.proposal_boxes for one in proposals])
        features = self.res5(pooled).mean(dim=[2, 3])
        predictions = self.box_predictor(features)
        (probabilities,) = self.box_predictor.predict_probs(predictions, proposals)
        self.attribute_logits(features, predictions[0].argmax(1)).softmax(1).max(1)
        boxes = proposals[0].proposal_boxes.tensor / min(image.scale)
        confidence = torch.zeros(len(boxes), device=device)
        for index in range(probabilities.shape[1] - 1):
            scores = probabilities[:, index]
            kept = nms(boxes, scores, 0.3)
            confidence[kept] = torch.where(scores[kept] > confidence[kept], scores[kept], confidence[kept])
        rows = confidence.argsort(descending=True)[: self.num_regions]
        return boxes[rows].cpu(), features[rows].cpu()
