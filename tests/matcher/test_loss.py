import math

import pytest
import torch

from matcher.errors import MatcherError
from matcher.loss import Temperature, infonce_loss, triplet_loss

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
    with pytest.raises(MatcherError, match=r"expected \(3,\)"):
        infonce_loss(SIMILARITY, torch.arange(2), scale=10.0)


def plain_infonce(similarity: list[list[float]], owner: list[int], scale: float) -> float:
    """As its papers write it, one softmax after another."""
    total = 0.0
    for caption, image in enumerate(owner):
        positive = math.exp(scale * similarity[image][caption])
        images = sum(math.exp(scale * row[caption]) for row in similarity)
        captions = sum(
            math.exp(scale * similarity[image][other])
            for other in range(len(owner))
            if other == caption or owner[other] != image
        )
        total -= (math.log(positive / images) + math.log(positive / captions)) / 2
    return total / len(owner)


def test_infonce_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    similarity = torch.rand(4, 6, dtype=torch.float64)  # the last image has no caption
    owner = [0, 0, 1, 2, 2, 2]
    for scale in (1.0, 20.0, 100.0):
        found = infonce_loss(similarity, torch.tensor(owner), scale=scale)
        assert found.item() == pytest.approx(plain_infonce(similarity.tolist(), owner, scale))
    scores, scale_ = similarity.requires_grad_(), torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: infonce_loss(s, torch.tensor(owner), scale=t), (scores, scale_))


def test_infonce_of_scores_that_say_nothing() -> None:
    assert infonce_loss(torch.zeros(128, 128), torch.arange(128), scale=20.0).item() == pytest.approx(math.log(128))


def test_the_temperature_is_learned_within_bounds() -> None:
    temperature = Temperature(0.05)
    assert temperature.scale().item() == pytest.approx(20)
    for start, bound in ((9.0, 100.0), (-9.0, 1.0)):
        torch.nn.init.constant_(temperature.log_scale, start)
        temperature.clamp()
        assert temperature.scale().item() == pytest.approx(bound)
