import pytest
import torch

from matcher.errors import MatcherError
from matcher.loss import triplet_loss

SIMILARITY = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.6], [0.2, 0.4, 0.7]])
ONE_EACH = torch.arange(3)


def test_by_hand() -> None:
    # caption costs, by row: 0.2 + .8 - .9 = .1 | .2 + .3 - .5 = 0, .2 + .6 - .5 = .3 | .2 + .2 - .7 < 0, < 0
    # image costs, by column: 0, 0 | .2 + .8 - .5 = .5, .2 + .4 - .5 = .1 | 0, .2 + .6 - .7 = .1
    assert triplet_loss(SIMILARITY, ONE_EACH).item() == pytest.approx((0.1 + 0.3) + (0.5 + 0.1))
    assert triplet_loss(SIMILARITY, ONE_EACH, hardest=False).item() == pytest.approx((0.1 + 0.3) + (0.5 + 0.1 + 0.1))


def test_captions_of_one_image_are_never_negatives_of_each_other() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.0, 0.9]])  # the first image's captions differ widely
    owner = torch.tensor([0, 0, 1])
    assert triplet_loss(similarity, owner).item() == pytest.approx(0.1 + 0.1)  # of the first caption alone


@pytest.mark.parametrize("hardest", [True, False])
def test_rows_without_a_caption_are_negatives_only(hardest: bool) -> None:
    with_stranger = torch.cat([SIMILARITY, torch.full((1, 3), -5.0)])
    assert triplet_loss(with_stranger, ONE_EACH, hardest=hardest) == triplet_loss(SIMILARITY, ONE_EACH, hardest=hardest)


def test_plateau_of_equal_scores() -> None:
    """Scores that say nothing cost a margin per direction and caption: 2 B margin under hardest negatives."""
    assert triplet_loss(torch.zeros(128, 128), torch.arange(128)).item() == pytest.approx(2 * 128 * 0.2)


def test_owners_of_another_count_are_refused() -> None:
    with pytest.raises(MatcherError, match=r"expected \(3,\)"):
        triplet_loss(SIMILARITY, torch.arange(2))
