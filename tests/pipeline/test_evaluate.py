"""What evaluation adds to the recalls."""

import importlib.util
import json

import numpy as np
import pytest

from matcher.metrics import RetrievalMetrics, TaskMetrics
from pipeline.errors import PipelineError
from pipeline.evaluate import eccv_caption, latex_row


def test_latex_row() -> None:
    task = TaskMetrics(61.8, 87.5, 93.7, 1, 3.0)
    row = latex_row("t2i_avg", RetrievalMetrics(task, TaskMetrics(45.8, 74.4, 83.0, 2, 12.0)))
    assert row == r"t2i\_avg & 61.8 & 87.5 & 93.7 & 45.8 & 74.4 & 83.0 & 446.2 \\"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("eccv_caption") is None, reason="extra eccv is not installed")
def test_eccv_caption_from_coco_ids() -> None:
    """A similarity that knows the truth finds every caption of COCO; ids of other photos are refused."""
    spec = importlib.util.find_spec("eccv_caption")
    assert spec is not None
    assert spec.submodule_search_locations
    with open(f"{spec.submodule_search_locations[0]}/data/original_image_to_caption.json") as file:
        truth = {int(image): captions for image, captions in json.load(file).items()}
    images = list(truth)
    captions = [int(caption) for image in images for caption in truth[image]]
    similarity = np.zeros((len(images), len(captions)), dtype=np.float32)
    column = 0
    for row, image in enumerate(images):
        similarity[row, column : column + len(truth[image])] = 1
        column += len(truth[image])
    found = eccv_caption(similarity, images, captions)
    assert found["coco_5k_r1"] == {"i2t": 1.0, "t2i": 1.0}
    assert found["cxc_r1"]["i2t"] > 0.99
    assert 0.1 < found["eccv_map_at_r"]["t2i"] < 1  # it knows more right answers than COCO does
    with pytest.raises(PipelineError, match="expected COCO's 5,000 test images"):
        eccv_caption(similarity[:2, :10], [1, 2], list(range(10)))
