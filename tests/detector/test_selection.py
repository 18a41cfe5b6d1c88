import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.boxes import iou_matrix
from detector.selection import select_caffe, select_maxclass, suppress_per_class


def plain_nms(overlaps: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Greedy NMS of one class as it is defined: best first, of equal scores the later row first."""
    order = np.argsort(scores, kind="stable")[::-1]
    alive = np.ones(len(scores), dtype=bool)
    kept = np.zeros(len(scores), dtype=bool)
    for row in order:
        if alive[row]:
            kept[row] = True
            alive &= ~overlaps[row]
    return kept


@st.composite
def proposals(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count, classes = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    numbers = st.integers(0, 20)
    corners = draw(
        st.lists(st.tuples(numbers, numbers, st.integers(1, 12), st.integers(1, 12)), min_size=count, max_size=count)
    )
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in corners], dtype=torch.float32)
    scores = draw(st.lists(st.integers(0, 5), min_size=count * classes, max_size=count * classes))  # ties are common
    return boxes, torch.tensor(scores, dtype=torch.float32).view(count, classes) / 5


@given(proposals())
@settings(max_examples=200, deadline=None)
def test_all_classes_at_once_equal_one_class_after_the_other(case: tuple[Tensor, Tensor]) -> None:
    boxes, scores = case
    overlaps = iou_matrix(boxes, boxes, 1.0) > 0.3
    kept = suppress_per_class(scores, overlaps).numpy()
    for index in range(scores.shape[1]):
        np.testing.assert_array_equal(kept[:, index], plain_nms(overlaps.numpy(), scores[:, index].numpy()))


def test_caffe_keeps_the_most_confident_survivors() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [80, 0, 90, 9.0]])
    scores = torch.tensor([[0.6, 0.0], [0.9, 0.1], [0.2, 0.7], [0.3, 0.1]])
    kept = select_caffe(boxes, scores, 3)
    # Row 0 falls to row 1 in class 0, and to it again in class 1: nothing of it is left.
    assert kept.proposals.tolist() == [1, 2, 3]
    assert kept.object_ids.tolist() == [0, 1, 0]
    torch.testing.assert_close(kept.object_scores, torch.tensor([0.9, 0.7, 0.3]))
    torch.testing.assert_close(kept.boxes, boxes[[1, 2, 3]])


def test_maxclass_raises_its_threshold_until_enough_survive() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 8.0], [0, 0, 10, 5.5]])  # IoU .8, .55, .69
    scores, ids = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([4, 4, 2])
    for count, rows in ((1, [0]), (2, [0, 2]), (3, [0, 1, 2])):
        kept = select_maxclass(boxes, scores, ids, count, height=99, width=99)
        assert kept.proposals.tolist() == rows
        assert kept.object_ids.tolist() == ids[rows].tolist()


def test_maxclass_clips_its_boxes() -> None:
    boxes = torch.tensor([[90, 90, 120, 130.0]])
    kept = select_maxclass(boxes, torch.tensor([0.9]), torch.tensor([1]), 1, height=100, width=110)
    assert kept.boxes.tolist() == [[90, 90, 110, 100]]
    assert kept.object_ids.tolist() == [1]


@pytest.mark.parametrize("count", [2, 5, 7])
def test_too_few_proposals_repeat_in_order(count: int) -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60.0]])
    kept = select_caffe(boxes, torch.tensor([[0.5], [0.6]]), count)
    assert kept.proposals.tolist() == [1, 0, 1, 0, 1, 0, 1][:count]


def select_with_plain_loop(boxes: Tensor, probabilities: Tensor, count: int) -> list[int]:
    """The published rule, one class after another over all proposals."""
    overlaps = (iou_matrix(boxes, boxes, 1.0) > 0.3).numpy()
    confidence = np.zeros(len(boxes), np.float32)
    for scores in probabilities.numpy().T:
        kept = plain_nms(overlaps, scores)
        confidence[kept] = np.maximum(confidence[kept], scores[kept])
    order = np.argsort(-confidence, kind="stable")
    return np.resize(order, count).tolist()


@given(proposals(), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_caffe_looks_at_few_classes_and_selects_as_if_at_all(case: tuple[Tensor, Tensor], count: int) -> None:
    boxes, probabilities = case
    assert select_caffe(boxes, probabilities, count).proposals.tolist() == select_with_plain_loop(
        boxes, probabilities, count
    )


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0])
def test_caffe_selects_the_same_among_many_proposals(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(int(sharpness))
    corners = torch.rand(120, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 10 + torch.rand(120, 2, generator=generator) * 60], 1)
    logits = sharpness * torch.randn(120, 200, generator=generator)
    logits[::7] = logits[0]  # proposals that tie in every class
    probabilities = logits.softmax(1)
    for count in (5, 36, 100):
        wanted = select_with_plain_loop(boxes, probabilities, count)
        assert select_caffe(boxes, probabilities, count).proposals.tolist() == wanted
