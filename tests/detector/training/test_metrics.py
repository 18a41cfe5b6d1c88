"""The published mAP@.5, against hand-made cases and a plain loop over its protocol."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.boxes import iou_matrix
from detector.training.metrics import ClassDetections, average_precision


@dataclass
class Image:
    """What is true of an image, and what was found in it."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    true_boxes: np.ndarray
    true_classes: np.ndarray


def image(found: list[tuple], truth: list[tuple]) -> Image:
    """Rows (x1, y1, x2, y2, class, score) and (x1, y1, x2, y2, class)."""
    table, true = np.array(found, float).reshape(-1, 6), np.array(truth, float).reshape(-1, 5)
    return Image(table[:, :4], table[:, 4].astype(int), table[:, 5], true[:, :4], true[:, 4].astype(int))


def judged(images: list[Image], classes: int) -> ClassDetections:
    result = ClassDetections(classes)
    for one in images:
        result.add(one.boxes, one.classes, one.scores, one.true_boxes, one.true_classes)
    return result


A, B = (0, 0, 9, 9), (20, 20, 29, 29)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        ([(*A, 0, 0.9)], [(*A, 0)], 1.0),
        ([], [(*A, 0)], 0.0),
        ([(*A, 1, 0.9)], [(*A, 0)], 0.0),  # of another class
        ([(*A, 0, 0.9), (*A, 0, 0.8)], [(*A, 0)], 1.0),  # the second one comes after everything was found
        ([(*A, 0, 0.9), (*A, 0, 0.8), (*B, 0, 0.7)], [(*A, 0), (*B, 0)], 0.5 + 0.5 * 2 / 3),
        ([(*B, 0, 0.9), (*A, 0, 0.8)], [(*A, 0)], 0.5),  # a wrong one first
        ([(*A, 0, 0.3)], [(*A, 0), (*B, 0)], 0.5),
    ],
    ids=["right", "nothing", "other-class", "twice", "twice-between", "wrong-first", "half"],
)
def test_by_hand(found: list[tuple], truth: list[tuple], expected: float) -> None:
    assert judged([image(found, truth)], 2).average_precisions()[0] == pytest.approx(expected)


def test_overlap_counts_whole_pixels_and_has_to_be_above_half() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4], [5, 0, 14, 9]])
    overlaps = iou_matrix(torch.from_numpy(boxes), torch.from_numpy(boxes[:1]), 1.0)
    np.testing.assert_allclose(overlaps[:, 0], [1.0, 0.5, 50 / 150])
    half = image([(0, 0, 9, 4, 0, 1.0)], [(*A, 0)])
    assert judged([half], 1).average_precisions()[0] == 0.0
    more = image([(0, 0, 9, 4.1, 0, 1.0)], [(*A, 0)])
    assert judged([more], 1).average_precisions()[0] == 1.0


def test_scores_rank_over_all_images() -> None:
    wrong = image([(*B, 0, 0.9)], [])
    right = image([(*A, 0, 0.8)], [(*A, 0)])
    assert judged([right, wrong], 1).average_precisions()[0] == pytest.approx(0.5)


def test_a_box_of_several_attributes_is_true_once_for_each() -> None:
    found = [(*A, 0, 0.9), (*A, 1, 0.8), (*A, 2, 0.7)]
    np.testing.assert_allclose(judged([image(found, [(*A, 0), (*A, 2)])], 4).average_precisions(), [1, 0, 1, 0])


def test_means_are_over_the_vocabulary_by_true_boxes_and_over_what_occurs() -> None:
    truth = [(*A, 0), (*B, 0), (40, 40, 49, 49, 0), (*A, 1)]
    found = [(*A, 0, 0.9), (*B, 0, 0.8), (40, 40, 49, 49, 0, 0.7)]
    summary = judged([image(found, truth)], 4).summary()
    assert summary == pytest.approx({"mAP50": 25.0, "mAP50_weighted": 75.0, "mAP50_seen": 50.0})
    assert judged([image(found, [])], 4).summary()["mAP50"] == 0.0
    assert ClassDetections(4).summary()["mAP50_seen"] == 0.0


def test_average_precision_is_the_area_under_the_envelope() -> None:
    correct = np.array([True, False, True, True, False])
    assert average_precision(correct, 4) == pytest.approx((1 + 0.75 + 0.75) / 4)
    assert average_precision(np.zeros(0, bool), 3) == 0.0


def published(images: list[Image], index: int) -> float:
    """AP of one class as the evaluation of Pascal VOC computes it, detection by detection."""
    rows = [
        (-score, number, position)
        for number, one in enumerate(images)
        for position, (kind, score) in enumerate(zip(one.classes, one.scores, strict=True))
        if kind == index
    ]
    truths = [one.true_boxes[one.true_classes == index] for one in images]
    total = sum(map(len, truths))
    taken = [np.zeros(len(boxes), bool) for boxes in truths]
    precisions, recalls, hits = [0.0], [0.0], 0
    for rank, (_, number, position) in enumerate(sorted(rows), start=1):
        box, best, at = images[number].boxes[position], -1.0, -1
        for place, true in enumerate(truths[number]):
            width = min(box[2], true[2]) - max(box[0], true[0]) + 1
            height = min(box[3], true[3]) - max(box[1], true[1]) + 1
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, true)]
            overlap = shared / (areas[0] + areas[1] - shared)
            if overlap > best:
                best, at = overlap, place
        if best > 0.5 and not taken[number][at]:
            taken[number][at] = True
            hits += 1
        precisions.append(hits / rank)
        recalls.append(hits / total if total else 0.0)
    recalls.append(1.0)
    precisions.append(0.0)
    for place in range(len(precisions) - 2, -1, -1):
        precisions[place] = max(precisions[place], precisions[place + 1])
    return sum((recalls[i + 1] - recalls[i]) * precisions[i + 1] for i in range(len(recalls) - 1))


@st.composite
def collections(draw: st.DrawFn) -> list[Image]:
    """Images whose boxes overlap often, and whose scores are often equal."""
    box = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(3, 6), st.integers(3, 6))
    boxes = box.map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    kinds = st.integers(0, 2)
    found = st.tuples(boxes, kinds, st.sampled_from([0.1, 0.5, 0.5, 0.9])).map(lambda row: (*row[0], *row[1:]))
    truth = st.tuples(boxes, kinds).map(lambda row: (*row[0], row[1]))
    return [
        image(draw(st.lists(found, max_size=6)), draw(st.lists(truth, max_size=4)))
        for _ in range(draw(st.integers(1, 4)))
    ]


@settings(max_examples=150, deadline=None)
@given(collections())
def test_the_same_as_the_published_protocol(images: list[Image]) -> None:
    expected = [published(images, index) for index in range(3)]
    np.testing.assert_allclose(judged(images, 3).average_precisions(), expected, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(collections(), st.integers(0, 4))
def test_processes_together_find_what_one_does(images: list[Image], cut: int) -> None:
    parts = [judged(part, 3) for part in (images[:cut], images[cut:], [])]
    together = parts[0].merged(parts[1:])
    whole = judged(images, 3)
    np.testing.assert_array_equal(together.average_precisions(), whole.average_precisions())
    assert together.summary() == whole.summary()
