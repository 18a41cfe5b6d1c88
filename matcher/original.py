"""Checkpoints of the original SCAN code, read without running anything in them.

A pickle `{epoch, model: [image state, text state], best_rsum, opt: argparse.Namespace, Eiters}`. Names and shapes are the
ones our encoders have; the options become a `ModelConfig`.
"""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matcher.config import ModelConfig
from matcher.errors import MatcherError
from matcher.scan import SCAN
from matcher.vocabulary import Vocabulary

EXPECTED = "a checkpoint of the original SCAN code (keys model, opt)"


@dataclass(frozen=True)
class OriginalCheckpoint:
    """A model, and how far its training was."""

    model: SCAN
    epoch: int
    best_rsum: float  # on its dev split, as it was measured there


def load_original(path: Path, vocabulary: Vocabulary) -> OriginalCheckpoint:
    """Read a checkpoint of the original code.

    Args:
        path: `model_best.pth.tar` or `checkpoint_*.pth.tar`.
        vocabulary: the one it was trained with (`Vocabulary.from_json`).

    Raises:
        MatcherError: no such file, damaged, holding code, or of another vocabulary.
    """
    content = _read(path)
    try:
        image, text = content["model"]
        options = vars(content["opt"])
        config = _config(options, image, text)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, MatcherError):
            raise MatcherError(f"{path}: {error}") from error
        raise MatcherError(f"{path}: not {EXPECTED}: {error!r}") from error
    if len(text["embed.weight"]) != len(vocabulary):
        raise MatcherError(
            f"{path}: embeds {len(text['embed.weight'])} words, the vocabulary has {len(vocabulary)}; name the "
            "vocabulary file that it was trained with"
        )
    model = SCAN(config, vocabulary)
    tensors = {f"image_encoder.{name}": tensor for name, tensor in _weight_norm(image).items()}
    tensors |= {f"text_encoder.{name}": tensor for name, tensor in text.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise MatcherError(
            f"{path}: its tensors do not fit its options ({str(error).splitlines()[-1].strip()})"
        ) from error
    return OriginalCheckpoint(model.eval(), int(content.get("epoch", 0)), float(content.get("best_rsum", 0.0)))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MatcherError(f"{path}: refused: it holds more than tensors and options, and could run code") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MatcherError(f"{path}: not readable ({first}); expected {EXPECTED}") from error
    if not isinstance(content, Mapping):
        raise MatcherError(f"{path}: holds a {type(content).__name__}; expected {EXPECTED}")
    return content


def _config(options: Mapping[str, Any], image: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> ModelConfig:
    """Options as the original command line had them; sizes as the tensors say."""
    weight = image["fc.weight"] if "fc.weight" in image else image["fc.weight_v"]
    return ModelConfig(
        attention=options["cross_attn"],
        normalization=options["raw_feature_norm"],
        pooling=options["agg_func"],
        softmax_temperature=float(options["lambda_softmax"]),
        lse_temperature=float(options["lambda_lse"]),
        feature_dim=weight.shape[1],
        embed_dim=weight.shape[0],
        word_dim=text["embed.weight"].shape[1],
        num_layers=sum(name.startswith("rnn.weight_ih_l") and not name.endswith("_reverse") for name in text),
        bidirectional=any(name.endswith("_reverse") for name in text),
        image_norm=not options.get("no_imgnorm", False),
        text_norm=not options.get("no_txtnorm", False),
        image_weight_norm="fc.weight_g" in image,
    )


def _weight_norm(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight normalisation's two parameters under the names that torch has for them today."""
    names = {
        "fc.weight_g": "fc.parametrizations.weight.original0",
        "fc.weight_v": "fc.parametrizations.weight.original1",
    }
    return {names.get(name, name): tensor for name, tensor in image.items()}
