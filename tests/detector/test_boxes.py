import math

import numpy as np
import pytest
import torch

from detector.boxes import (
    apply_deltas,
    clip,
    continuous_cell_anchors,
    grid_anchors,
    inclusive_cell_anchors,
    iou_matrix,
    nms_boxes,
)


def test_caffes_anchors_are_the_published_ones() -> None:
    """Scales 4, 8, 16, 32 of a 16-pixel window: the first of each ratio, as printed in Faster R-CNN's generate_anchors."""
    anchors = inclusive_cell_anchors((64, 128, 256, 512), (0.5, 1.0, 2.0))
    assert anchors.shape == (12, 4)
    # Faster R-CNN prints these for scales 8, 16, 32.
    assert anchors[1].tolist() == [-84, -40, 99, 55]
    assert anchors[2].tolist() == [-176, -88, 191, 103]
    assert anchors[5].tolist() == [-56, -56, 71, 71]
    assert anchors[9].tolist() == [-36, -80, 51, 95]


def test_continuous_anchors_are_size_major_and_centred() -> None:
    anchors = continuous_cell_anchors((64.0, 128.0), (0.5, 1.0, 2.0))
    assert anchors[1].tolist() == [-32, -32, 32, 32]
    np.testing.assert_allclose(
        anchors[3].tolist(), [-64 * math.sqrt(2), -32 * math.sqrt(2), 64 * math.sqrt(2), 32 * math.sqrt(2)], rtol=1e-6
    )


def test_grid_goes_cell_by_cell_row_by_row() -> None:
    grid = grid_anchors(torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]]), 2, 3, 16)
    assert grid.shape == (12, 4)
    assert grid[:4].tolist() == [[0, 0, 1, 1], [0, 0, 2, 2], [16, 0, 17, 1], [16, 0, 18, 2]]
    assert grid[6].tolist() == [0, 16, 1, 17]


@pytest.mark.parametrize(("offset", "width"), [(0.0, 10.0), (1.0, 11.0)])
def test_deltas_move_and_scale(offset: float, width: float) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    deltas = torch.tensor([[0.0, 0, 0, 0, 1.0, 0, math.log(2), 0]])
    moved = apply_deltas(boxes, deltas, (1, 1, 1, 1), offset)
    assert moved.shape == (1, 2, 4)
    np.testing.assert_allclose(moved[0, 0], [0, 0, width, width])
    np.testing.assert_allclose(moved[0, 1], [width / 2, 0, 2.5 * width, width], rtol=1e-6)


def test_deltas_divide_by_their_weights_and_never_explode() -> None:
    moved = apply_deltas(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[10.0, 0, 1e4, 0]]), (10, 10, 5, 5), 0.0)
    np.testing.assert_allclose(moved[0, 0, 2] - moved[0, 0, 0], 10 * 1000 / 16, rtol=1e-5)
    np.testing.assert_allclose((moved[0, 0, 2] + moved[0, 0, 0]) / 2, 15, rtol=1e-5)


def test_clip_and_overlap_in_both_geometries() -> None:
    box = torch.tensor([[-5.0, 2, 200, 300]])
    assert clip(box, 100, 120, 0.0).tolist() == [[0, 2, 120, 100]]
    assert clip(box, 100, 120, 1.0).tolist() == [[0, 2, 119, 99]]
    pair = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])
    np.testing.assert_allclose(iou_matrix(pair, pair, 0.0)[0, 1], 36 / (81 + 81 - 36))
    np.testing.assert_allclose(iou_matrix(pair, pair, 1.0)[0, 1], 50 / (100 + 100 - 50))


def test_nms_knows_its_geometry() -> None:
    pair = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])
    scores = torch.tensor([0.9, 0.8])
    assert nms_boxes(pair, scores, 0.3, 0.0).tolist() == [0, 1]  # IoU 0.286
    assert nms_boxes(pair, scores, 0.3, 1.0).tolist() == [0]  # IoU 0.333
