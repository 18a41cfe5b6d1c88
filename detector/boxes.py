"""Box arithmetic in both geometries: anchors, deltas, clipping, IoU. Pure functions on XYXY tensors.

`offset` is the geometry: 0 for continuous boxes (width = x2 - x1), 1 for Caffe's pixel-inclusive ones (x2 - x1 + 1).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

SCALE_CLAMP = math.log(1000.0 / 16)  # deltas never ask for exp() of more than this, as in Faster R-CNN


def apply_deltas(boxes: Tensor, deltas: Tensor, weights: Sequence[float], offset: float) -> Tensor:
    """Move boxes (R, 4) by deltas (R, 4 C) of (dx, dy, dw, dh) each: (R, C, 4). Ren et al. 2015, eq. 2."""
    # From unpinned memory and without waiting: a GPU stages these few bytes itself.
    divisors = torch.tensor(weights).to(deltas.device, non_blocking=True)
    deltas = deltas.float().view(len(boxes), -1, 4) / divisors
    sizes = (boxes[:, 2:] - boxes[:, :2] + offset)[:, None]  # (R, 1, 2)
    centers = boxes[:, None, :2] + 0.5 * sizes
    centers = deltas[..., :2] * sizes + centers  # (R, C, 2)
    sizes = deltas[..., 2:].clamp(max=SCALE_CLAMP).exp() * sizes
    return torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], dim=-1)


def clip(boxes: Tensor, height: float, width: float, offset: float) -> Tensor:
    """Boxes (…, 4) moved inside an image: to [0, width] in continuous geometry, to [0, width - 1] in Caffe's."""
    return clip_boxes_to_image(boxes, (height - offset, width - offset))


def iou_matrix(boxes: Tensor, others: Tensor, offset: float) -> Tensor:
    """Intersection over union of every pair: (R, 4), (S, 4) -> (R, S)."""
    first, second = boxes[:, None], others[None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2]) + offset
    overlap = sides.clamp(min=0).prod(-1)
    areas = [(some[..., 2:] - some[..., :2] + offset).clamp(min=0).prod(-1) for some in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap)


def nms_boxes(boxes: Tensor, scores: Tensor, threshold: float, offset: float) -> Tensor:
    """Rows kept by non-maximum suppression, best first."""
    if offset:  # inclusive areas are the continuous areas of boxes one pixel longer
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return nms(boxes, scores, threshold)


def inclusive_cell_anchors(sizes: Sequence[float], ratios: Sequence[float], base: int = 16) -> Tensor:
    """Caffe's cell anchors, ratio-major: (A, 4).

    Each ratio gives a rounded window of the area of the 16 x 16 base window (0, 0, 15, 15); scales enlarge it around
    the same centre.
    """
    center = 0.5 * (base - 1)
    rows = []
    for ratio in ratios:
        window_width = round(math.sqrt(base * base / ratio))
        window_height = round(window_width * ratio)
        for size in sizes:
            w, h = window_width * size / base, window_height * size / base
            rows.append(
                [center - 0.5 * (w - 1), center - 0.5 * (h - 1), center + 0.5 * (w - 1), center + 0.5 * (h - 1)]
            )
    return torch.tensor(rows)


def continuous_cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Cell anchors centred on the grid point, size-major: (A, 4)."""
    rows = []
    for size in sizes:
        for ratio in ratios:
            w = math.sqrt(size * size / ratio)
            rows.append([-w / 2, -w * ratio / 2, w / 2, w * ratio / 2])
    return torch.tensor(rows)


def cell_anchors(geometry: str, sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """The cell anchors of a geometry, "inclusive" (Caffe's) or "continuous": (A, 4)."""
    return (inclusive_cell_anchors if geometry == "inclusive" else continuous_cell_anchors)(sizes, ratios)


def grid_anchors(cell_anchors: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Cell anchors repeated over a feature map, cell by cell: (height * width * A, 4)."""
    y = torch.arange(height, device=cell_anchors.device) * stride
    x = torch.arange(width, device=cell_anchors.device) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shifts + cell_anchors).view(-1, 4)
