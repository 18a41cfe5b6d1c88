"""Which regions of an image are kept. Pure functions on one image's tensors, which lie in the host's memory.

Letters: R proposals, C objects (without background), K regions kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.boxes import clip, iou_matrix, nms_boxes

NMS_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Selected:
    """The regions kept, best first."""

    proposals: Tensor  # (K,) row of the proposal
    boxes: Tensor  # (K, 4)
    object_ids: Tensor  # (K,)
    object_scores: Tensor  # (K,)


def select_caffe(boxes: Tensor, probabilities: Tensor, num_regions: int, *, threshold: float = 0.3) -> Selected:
    """The rule of the published Caffe features (Anderson et al. 2018, `generate_tsv.py`).

    Per-class NMS on the *unregressed* proposals, in pixel-inclusive geometry; each proposal counts with its best
    surviving class; the K most confident are kept. As all classes share the boxes, one IoU matrix serves them all.

    Args:
        boxes: (R, 4) proposals in pixels of the original image.
        probabilities: (R, C) class posteriors without background.
        num_regions: K.
    """
    overlaps = iou_matrix(boxes, boxes, 1.0) > threshold
    ceiling = probabilities.amax(0)  # (C,) no proposal counts for more in this class
    for floor in _floors(probabilities, num_regions):
        classes = (~(ceiling < floor)).nonzero()[:, 0]  # so that NaN is in
        candidates = probabilities[:, classes]
        surviving = torch.where(suppress_per_class(candidates, overlaps), candidates, 0.0)
        confidence = surviving.amax(1)
        order = torch.argsort(confidence, descending=True, stable=True)
        # What the classes left out could say of any proposal is below the floor: the first K cannot change.
        if len(classes) == len(ceiling) or (len(order) >= num_regions and confidence[order[num_regions - 1]] >= floor):
            break
    rows = _cycled(order, num_regions)
    scores, ids = probabilities[rows].max(1)
    return Selected(rows, boxes[rows], ids, scores)


def _floors(probabilities: Tensor, num_regions: int) -> Iterator[float]:
    """Probabilities to look above of, falling: nearly always the first is low enough to find the K best regions."""
    best = probabilities.amax(1).sort(descending=True).values  # (R,)
    for rank in (2 * num_regions, 4 * num_regions):
        if rank < len(best):
            yield float(best[rank])
    yield -math.inf


def suppress_per_class(probabilities: Tensor, overlaps: Tensor) -> Tensor:
    """Greedy NMS for every class at once: (R, C) bool, True where the proposal survives in that class.

    A proposal survives when no *surviving* proposal that scores higher in this class overlaps it. That is a fixed
    point: iterated from "all survive", each round settles at least the next rank of every class, and in practice a
    few rounds settle all. Of equal scores the later row wins, as in the published `argsort()[::-1]`: RoIPool's
    rounding gives neighbouring proposals the very same features, so exact ties are common.

    Args:
        probabilities: (R, C).
        overlaps: (R, R) bool, True where IoU exceeds the threshold.
    """
    count, classes = probabilities.shape
    first, second = overlaps.clone().fill_diagonal_(False).nonzero(as_tuple=True)  # pairs (suppressor, suppressed)
    higher, lower = probabilities[first], probabilities[second]  # (P, C)
    beats = torch.where((first > second)[:, None], higher >= lower, higher > lower)
    kept = torch.ones(count, classes, dtype=torch.bool, device=probabilities.device)
    for _ in range(count):
        hits = torch.zeros(count, classes, dtype=torch.int32, device=kept.device)
        hits.index_add_(0, second, (beats & kept[first]).int())
        settled = hits == 0
        if torch.equal(settled, kept):
            break
        kept = settled
    return kept


def select_maxclass(
    boxes: Tensor, scores: Tensor, ids: Tensor, num_regions: int, *, height: float, width: float, offset: float = 0.0
) -> Selected:
    """The rule of airsplay's and LXMERT's extractors.

    One NMS over each proposal's best class and that class's regressed box; the threshold is raised from 0.5 until at
    least K survive.

    Args:
        boxes: (R, 4) regressed boxes of each proposal's best class, in pixels of the resized image.
        scores, ids: (R,) posterior and index of that class.
        num_regions: K.
        height, width: of the resized image; boxes are clipped to it.
    """
    boxes = clip(boxes, height, width, offset)
    keep = torch.arange(len(ids))
    for threshold in NMS_THRESHOLDS:
        keep = nms_boxes(boxes, scores, threshold, offset)[:num_regions]
        if len(keep) >= num_regions:
            break
    rows = _cycled(keep, num_regions)
    return Selected(rows, boxes[rows], ids[rows], scores[rows])


def _cycled(rows: Tensor, count: int) -> Tensor:
    """The first `count` rows; where there are fewer, they repeat in order, so that every image has exactly K."""
    return rows.repeat(-(-count // len(rows)))[:count]
