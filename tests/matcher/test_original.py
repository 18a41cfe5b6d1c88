"""Checkpoints of the original code, made here as it made them."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from matcher.errors import MatcherError
from matcher.original import load_original
from matcher.vocabulary import SPECIAL, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL, "a", "dog", "cat", "tree"])
OPTIONS: dict[str, Any] = {
    "cross_attn": "i2t",
    "raw_feature_norm": "clipped_l2norm",
    "agg_func": "LogSumExp",
    "lambda_softmax": 4.0,
    "lambda_lse": 5.0,
    "img_dim": 12,
    "embed_size": 8,
    "word_dim": 6,
    "num_layers": 1,
    "bi_gru": True,
    "no_imgnorm": False,
    "no_txtnorm": False,
    "margin": 0.2,
}


def states(weight_norm: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    image = {"fc.weight": torch.randn(8, 12), "fc.bias": torch.randn(8)}
    if weight_norm:
        image = {"fc.bias": torch.randn(8), "fc.weight_g": torch.tensor(3.0), "fc.weight_v": torch.randn(8, 12)}
    text = {"embed.weight": torch.randn(8, 6)}
    text |= {f"rnn.{name}": tensor for name, tensor in nn.GRU(6, 8, 1, bidirectional=True).state_dict().items()}
    return image, text


def write(path: Path, *, weight_norm: bool = False, legacy: bool = False, **changes: Any) -> Path:
    content = {
        "epoch": 12,
        "model": list(states(weight_norm)),
        "best_rsum": 437.5,
        "opt": argparse.Namespace(**(OPTIONS | changes)),
        "Eiters": 9000,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [True, False])
def test_gives_the_same_embeddings(tmp_path: Path, legacy: bool) -> None:
    found = load_original(write(tmp_path / "model_best.pth.tar", legacy=legacy), VOCABULARY)
    assert (found.epoch, found.best_rsum) == (12, 437.5)
    assert (found.model.config.attention, found.model.config.lse_temperature) == ("i2t", 5.0)
    image, text = states()
    features = torch.randn(2, 3, 12)
    with torch.inference_mode():
        wanted = nn.functional.linear(features, image["fc.weight"], image["fc.bias"])
        torch.testing.assert_close(found.model.encode_images(features), wanted / wanted.norm(dim=-1, keepdim=True))
        rnn = nn.GRU(6, 8, 1, batch_first=True, bidirectional=True)
        rnn.load_state_dict({name.removeprefix("rnn."): tensor for name, tensor in text.items() if "rnn" in name})
        tokens, lengths = torch.tensor([[1, 4, 5, 2], [1, 6, 2, 0]]), torch.tensor([4, 3])
        packed = pack_padded_sequence(nn.functional.embedding(tokens, text["embed.weight"]), lengths, batch_first=True)
        outputs, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True)
        wanted = (outputs[..., :8] + outputs[..., 8:]) / 2
        wanted = wanted / wanted.norm(dim=-1, keepdim=True).clamp_min(1e-8)
        torch.testing.assert_close(found.model.encode_captions(["a dog", "cat"])[0], wanted)


def test_a_checkpoint_of_several_gpus_is_the_same(tmp_path: Path) -> None:
    """torch's DataParallel writes its own name before each."""
    path = write(tmp_path / "m.pth.tar")
    content = torch.load(path, weights_only=False)
    wanted = load_original(path, VOCABULARY).model.state_dict()
    content["model"] = [{f"module.{name}": tensor for name, tensor in state.items()} for state in content["model"]]
    torch.save(content, path)
    torch.testing.assert_close(load_original(path, VOCABULARY).model.state_dict(), wanted)


def test_weight_norm_and_switched_off_norms(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth.tar", weight_norm=True, no_imgnorm=True, agg_func="Mean")
    model = load_original(path, VOCABULARY).model
    image, _ = states(weight_norm=True)
    weight = image["fc.weight_v"] / image["fc.weight_v"].norm() * 3.0
    features = torch.randn(2, 3, 12)
    torch.testing.assert_close(model.encode_images(features), features @ weight.T + image["fc.bias"])
    assert model.config.pooling == "Mean"


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code was run",))


def test_what_could_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for legacy in (True, False):
        path = write(tmp_path / "evil.pth.tar", legacy=legacy, extra=Evil())
        with pytest.raises(MatcherError, match="refused: it holds more than tensors and options"):
            load_original(path, VOCABULARY)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(MatcherError):
        load_original(tmp_path / "plain.pkl", VOCABULARY)
    assert "code was run" not in capsys.readouterr().out


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth.tar")
    with pytest.raises(MatcherError, match="embeds 8 words, the vocabulary has 7"):
        load_original(path, Vocabulary([*SPECIAL, "a", "dog", "cat"]))
    with pytest.raises(MatcherError, match="not readable"):
        load_original(tmp_path / "none.pth.tar", VOCABULARY)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(MatcherError, match="not a checkpoint of the original SCAN code"):
        load_original(path, VOCABULARY)
    with pytest.raises(MatcherError, match="attention 'both': expected"):
        load_original(write(tmp_path / "b.pth.tar", cross_attn="both"), VOCABULARY)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MatcherError):
        load_original(path, VOCABULARY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: {**image, "fc.bias": image["fc.bias"] / 0}, "fc.bias holds numbers that are not finite"),
        (lambda image: {**image, "fc.bias": image["fc.bias"].int()}, "fc.bias is no tensor of floating-point numbers"),
        (lambda image: {**image, "fc.bias": "x"}, "fc.bias is no tensor"),
        (lambda image: dict(enumerate(image.values())), "expected tensors by name"),
        (lambda image: list(image.values()), "a state of type list; expected tensors by name"),
        (
            lambda image: {"rnn.x": image["fc.bias"]},
            "its first state has no fc.weight, as that of images has; found rnn.x",
        ),
    ],
)
def test_states_that_no_training_leaves_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path / "m.pth.tar")
    content = torch.load(path, weights_only=False)
    content["model"][0] = change(content["model"][0])
    torch.save(content, path)
    with pytest.raises(MatcherError, match=message):
        load_original(path, VOCABULARY)


@pytest.mark.parametrize("changes", [{"bi_gru": False}, {"num_layers": 2}, {"embed_size": 7}])
def test_options_that_its_tensors_contradict_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(MatcherError, match=f"option {next(iter(changes))} is .*, its tensors are of"):
        load_original(write(tmp_path / "m.pth.tar", **changes), VOCABULARY)


@pytest.mark.parametrize("changes", [{"epoch": "x"}, {"best_rsum": None}])
def test_a_checkpoint_of_no_epoch_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "m.pth.tar")
    torch.save({**torch.load(path, weights_only=False), **changes}, path)
    with pytest.raises(MatcherError, match="not a checkpoint of the original SCAN code"):
        load_original(path, VOCABULARY)
