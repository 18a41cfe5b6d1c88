"""What may change between a run and its continuation."""

import dataclasses

import pytest

from matcher.config import FitConfig
from pipeline.runs import TrainConfig
from pipeline.train import _identity


@pytest.mark.parametrize(("schedule", "same"), [("step", True), ("cosine", False)])
def test_a_run_may_train_longer_where_its_learning_rates_stay(schedule: str, same: bool) -> None:
    short = TrainConfig(training=FitConfig(epochs=4, schedule=schedule))
    longer = dataclasses.replace(short, training=dataclasses.replace(short.training, epochs=8, log_every=1))
    assert (_identity(short) == _identity(longer)) is same
