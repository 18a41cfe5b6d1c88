"""Two processes make the updates that one would make."""

import dataclasses
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from matcher.checkpoint import load_model
from matcher.config import FitConfig, ModelConfig
from matcher.fit import BEST, fit
from matcher.metrics_log import read_metrics
from tests.toy import DIMENSIONS, toy_world

MODEL = ModelConfig(feature_dim=DIMENSIONS, embed_dim=16, word_dim=8)
RECIPE = FitConfig(
    epochs=2, batch_size=13, learning_rate=5e-4, decay_epochs=(), min_word_count=1, log_every=1, region_dropout=0.3
)


def train(rank: int, size: int, port: int, run: Path, changes: dict[str, str], loss: str) -> None:
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    model = dataclasses.replace(MODEL, **changes)
    # 80 captions, 13 a batch: the last has two, one for each of two processes, too few for three
    recipe = dataclasses.replace(RECIPE, loss=loss, ema=0.9 if loss == "infonce" else 0.0)
    fit(model, recipe, toy_world(40), toy_world(9, seed=5), run, progress=False)
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "size", "loss"),
    [
        ({"attention": "t2i"}, 2, "hinge"),
        ({"attention": "i2t"}, 3, "hinge"),
        ({"attention": "i2t"}, 3, "infonce"),
        ({"matcher": "naaf"}, 2, "hinge"),
        ({"matcher": "vse"}, 2, "infonce"),
    ],
)
def test_same_losses_same_model(tmp_path: Path, changes: dict[str, str], size: int, loss: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = torch.get_num_threads()
    train(0, 1, 0, tmp_path / "one", changes, loss)
    torch.set_num_threads(threads)
    mp.start_processes(train, (size, port, tmp_path / "several", changes, loss), nprocs=size, start_method="spawn")
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "several")]
    assert len(logs[0]) == len(logs[1]) == 2 * (7 + 1)
    for row, (left, right) in enumerate(zip(*logs, strict=True)):
        numbers = [{k: v for k, v in row.items() if k not in ("split", "data_wait")} for row in (left, right)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3 if row else 1e-5)  # sums in another order
    models = [load_model(tmp_path / name / BEST) for name in ("one", "several")]
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)
