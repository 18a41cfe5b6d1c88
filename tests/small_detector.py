"""A tiny random detector (ResNet-18 C4, 12 objects, 5 attributes): the real path in milliseconds."""

from pathlib import Path


def write_small_weights(path: Path) -> None:
    """Write its weights."""
    import torch

    from detector.config import DetectorConfig
    from detector.model import FasterRCNN
    from detector.weights import save_weights

    config = DetectorConfig(
        depth=18,
        width=8,
        num_objects=12,
        num_attributes=5,
        pooled_size=7,
        min_size=96,
        max_size=160,
        rpn_post_nms=60,
        rpn_channels=16,
    )
    torch.manual_seed(0)
    model = FasterRCNN(config)
    with torch.no_grad():  # posteriors that differ from region to region
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(100)
    save_weights(path, config, model.state_dict())
