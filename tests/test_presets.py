"""The presets say what the paper says, and load."""

from pathlib import Path
from typing import get_args

import pytest

from configs.fields import idle
from matcher.config import Method
from pipeline.config import load_config
from pipeline.train import TrainConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/train"
PRESETS = sorted(
    path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("demo")
)  # the demo promises by itself
RECIPES = {"f30k": (30, 2e-4, (15,)), "coco": (20, 5e-4, (10,))}  # epochs, learning rate, decay
TEMPERATURES = {("t2i", "f30k"): (9, 6), ("t2i", "coco"): (9, 6), ("i2t", "f30k"): (4, 5), ("i2t", "coco"): (4, 20)}


def load(path: Path) -> TrainConfig:
    return load_config(TrainConfig, group="train", config=path.stem)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_expected_recalls_add_up(path: Path) -> None:
    expected = load(path).expected
    assert len(expected["caption_retrieval"]) == len(expected["image_retrieval"]) == 3
    assert expected["rsum"] == pytest.approx(sum(expected["caption_retrieval"] + expected["image_retrieval"]), abs=0.3)
    text = path.read_text()
    assert f"{expected['rsum']}" in text.split("model:")[0]  # the promise stands at the top
    assert f"scan-pipeline train --config {path.stem}" in text


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_a_preset_does_something(path: Path) -> None:
    config = load(path)
    assert idle(config.model, "model.") + idle(config.training, "training.") == []


@pytest.mark.parametrize("path", [path for path in PRESETS if path.stem.count("_") == 2 and path.stem[:4] in RECIPES])
def test_the_eight_rows_follow_the_recipe(path: Path) -> None:
    dataset, attention, pooling = path.stem.split("_")
    config = load(path)
    assert config.model.attention == attention
    assert config.model.pooling == {"lse": "LogSumExp", "avg": "Mean"}[pooling]
    softmax, lse = TEMPERATURES[attention, dataset]
    assert config.model.softmax_temperature == softmax
    assert config.model.lse_temperature == lse or pooling == "avg"
    training = config.training
    assert (training.epochs, training.learning_rate, training.decay_epochs) == RECIPES[dataset]
    assert (training.batch_size, training.margin, training.grad_clip, training.decay_factor) == (128, 0.2, 2.0, 0.1)
    assert config.expected["folds"] == (5 if dataset == "coco" else 1)


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "scan"])
def test_every_method_has_presets_for_both_datasets(method: str) -> None:
    for dataset in ("f30k", "coco"):
        config = load(FOLDER / f"{dataset}_{method}.yaml")
        assert config.model.matcher == method
        assert "Not reproduced here" in (FOLDER / f"{dataset}_{method}.yaml").read_text()
    assert len(PRESETS) == 10 + 2 * (len(get_args(Method)) - 1)
