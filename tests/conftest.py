"""Fixtures for every test: the reference data where it is, and a calm machine."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference numbers and real data; not part of the project, so tests that need it may skip."""
    folder = Path(os.environ.get("SCAN_PIPELINE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"reference data not found in {folder} (set SCAN_PIPELINE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny random detector (ResNet-18 C4, 12 objects, 5 attributes): the real path in milliseconds."""
    import torch

    from detector.config import DetectorConfig
    from detector.model import FasterRCNN
    from detector.weights import save_weights

    config = DetectorConfig(
        depth=18, width=8, num_objects=12, num_attributes=5, min_size=96, max_size=160, rpn_post_nms=60, rpn_channels=16
    )
    torch.manual_seed(0)
    model = FasterRCNN(config)
    with torch.no_grad():  # posteriors that differ from region to region
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(100)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, config, model.state_dict())
    return path
