"""What may change between a run and its continuation."""

import dataclasses
from pathlib import Path

import pytest

from matcher.config import FitConfig
from pipeline.runs import TrainConfig
from pipeline.train import _identity
from tests.world import SMALL_TRAINING, scan


@pytest.mark.parametrize(("schedule", "same"), [("step", True), ("cosine", False)])
def test_a_run_may_train_longer_where_its_learning_rates_stay(schedule: str, same: bool) -> None:
    short = TrainConfig(training=FitConfig(epochs=4, schedule=schedule))
    longer = dataclasses.replace(short, training=dataclasses.replace(short.training, epochs=8, log_every=1))
    assert (_identity(short) == _identity(longer)) is same


def test_a_run_that_is_all_warm_up_says_so(own_world: Path) -> None:
    said = scan("train", "--run", "runs/short", "--device", "cpu", *SMALL_TRAINING, "training.warmup_epochs=5")
    assert "note: training.warmup_epochs=5: no epoch of 2 trains on the hardest negatives" in said.output
    assert "hardest negatives" not in scan("train", "--run", "runs/other", "--device", "cpu", *SMALL_TRAINING).output
