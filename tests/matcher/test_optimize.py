"""Learning rates and averaged weights, against what a plain loop gives."""

import math

import pytest
import torch
from torch import nn

from matcher.config import FitConfig
from matcher.optimize import WeightAverage, rate_factor


def test_step_decay() -> None:
    config = FitConfig(decay_epochs=(1, 3), decay_factor=0.5)
    assert [rate_factor(config, step, 2) for step in range(8)] == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_cosine_after_a_linear_warmup() -> None:
    config = FitConfig(epochs=3, schedule="cosine", learning_rate_warmup=4)
    found = [rate_factor(config, step, 10) for step in range(31)]
    assert found[:4] == [0.25, 0.5, 0.75, 1]
    assert found[4:] == pytest.approx([(1 + math.cos(math.pi * step / 26)) / 2 for step in range(27)])
    assert found[30] == 0


def test_warmup_before_step_decay() -> None:
    config = FitConfig(decay_epochs=(1,), decay_factor=0.1, learning_rate_warmup=2)
    assert [rate_factor(config, step, 3) for step in range(4)] == [0.5, 1, 1, 0.1]


def test_the_average_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, 0.9)
    wanted = model[0].weight.detach().clone()
    for step in range(1, 200):
        nn.init.normal_(model[0].weight)
        model[1].num_batches_tracked += 1
        average.update(model, step)
        kept = min(0.9, (1 + step) / (10 + step))
        wanted = kept * wanted + (1 - kept) * model[0].weight.detach()
    trained = model[0].weight.detach().clone()
    with average.used_by(model):
        torch.testing.assert_close(model[0].weight.detach(), wanted)
        assert model[1].num_batches_tracked == 199  # a count is not averaged
    assert torch.equal(model[0].weight, trained)
