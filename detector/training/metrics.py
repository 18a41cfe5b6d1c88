"""How good detections are: the published mAP@.5 of bottom-up attention, for objects and for attributes.

The protocol is that of its evaluation (Pascal VOC's, all points): pixel-inclusive IoU above 0.5, the best-scoring
detection of a true box counts and every other is wrong. Objects: what the detector finds, at most 400 an image.
Attributes: the scores of the *true* boxes, at most 400 an image. "mAP" is the mean over the whole vocabulary, classes
without a true box counting zero; "weighted" weighs a class by its true boxes.
"""

from collections.abc import Sequence

import numpy as np
import torch

from detector.boxes import iou_matrix

IOU = 0.5
PER_IMAGE = 400


class ClassDetections:
    """Everything that was detected in a collection, image by image; then its average precision."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.classes: list[np.ndarray] = []  # per image (n,)
        self.scores: list[np.ndarray] = []  # per image (n,)
        self.matches: list[np.ndarray] = []  # per image (n,), number of the true box matched; -1: none
        self.truth = np.zeros(num_classes, dtype=np.int64)  # (C,) true boxes of every class
        self.total = 0  # true boxes

    def add(
        self,
        boxes: np.ndarray,
        classes: np.ndarray,
        scores: np.ndarray,
        true_boxes: np.ndarray,
        true_classes: np.ndarray,
    ) -> None:
        """One image.

        Args:
            boxes: (n, 4) XYXY; classes: (n,); scores: (n,): what was found.
            true_boxes: (G, 4); true_classes: (G,): a box of several attributes stands there once for each.
        """
        found, true = (torch.from_numpy(np.asarray(some, np.float64).reshape(-1, 4)) for some in (boxes, true_boxes))
        overlaps = iou_matrix(found, true, 1.0).numpy()  # in whole pixels
        overlaps[classes[:, None] != true_classes[None, :]] = -1.0
        best = overlaps.argmax(1) if len(true_boxes) else np.zeros(len(boxes), dtype=np.int64)
        hit = np.take_along_axis(overlaps, best[:, None], 1)[:, 0] > IOU if len(true_boxes) else best > 0
        self.classes.append(classes.astype(np.int64))
        self.scores.append(scores.astype(np.float64))
        self.matches.append(np.where(hit, best + self.total, -1))
        self.total += len(true_boxes)
        np.add.at(self.truth, true_classes, 1)

    def merged(self, others: Sequence["ClassDetections"]) -> "ClassDetections":
        """With the detections of other processes, whose images are others."""
        result = ClassDetections(self.num_classes)
        for part in (self, *others):
            result.classes += part.classes
            result.scores += part.scores
            result.matches += [np.where(match < 0, -1, match + result.total) for match in part.matches]
            result.total += part.total
            result.truth = result.truth + part.truth
        return result

    def average_precisions(self) -> np.ndarray:
        """AP of every class: (C,), zero for classes without a true box."""
        result = np.zeros(self.num_classes)
        if not self.classes:
            return result
        classes, scores = np.concatenate(self.classes), np.concatenate(self.scores)
        matches = np.concatenate(self.matches)
        order = np.lexsort((-scores, classes))
        classes, matches = classes[order], matches[order]
        correct = np.zeros(len(matches), dtype=bool)
        _, first = np.unique(matches, return_index=True)  # a true box has one class: its first match is its best
        correct[first] = True
        correct &= matches >= 0
        starts = np.searchsorted(classes, np.arange(self.num_classes + 1))
        for index in np.flatnonzero(self.truth):
            result[index] = average_precision(correct[starts[index] : starts[index + 1]], int(self.truth[index]))
        return result

    def summary(self) -> dict[str, float]:
        """mAP@.5 over the vocabulary, weighted by true boxes, and over the classes that occur; in percent."""
        precisions = 100 * self.average_precisions()
        seen = self.truth > 0
        if not seen.any():
            return {"mAP50": 0.0, "mAP50_weighted": 0.0, "mAP50_seen": 0.0}
        return {
            "mAP50": float(precisions.mean()),
            "mAP50_weighted": float(np.average(precisions, weights=self.truth)),
            "mAP50_seen": float(precisions[seen].mean()),
        }


def average_precision(correct: np.ndarray, truth: int) -> float:
    """Area under the precision envelope: (n,) bool, best score first, and the number of true boxes."""
    if not len(correct):
        return 0.0
    hits = np.cumsum(correct)
    precision = hits / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[correct].sum() / truth)
