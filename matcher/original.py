"""Checkpoints of the original code of SCAN, VSE∞ and CHAN, read without running anything in them.

A pickle `{epoch, model: [image state, text state, …], best_rsum, opt: argparse.Namespace, Eiters}`. Which method it is, its
options and keys tell; its tensors get the names that ours have, and its options become a `ModelConfig`. What CHAN keeps after the
two states has no tensors that scoring reads.
"""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import first_line
from matcher.config import ModelConfig
from matcher.errors import MatcherError
from matcher.matcher import Matcher
from matcher.methods import make_matcher
from matcher.transformer import Tokens, WordPieces
from matcher.vocabulary import Vocabulary

EXPECTED = "a checkpoint of the original SCAN code, or of VSE∞ or CHAN (keys model, opt)"
POOLINGS = {"LSEPooling": "LogSumExp", "MeanPooling": "Mean", "MaxPooling": "Max", "SumPooling": "Sum"}  # of CHAN
SIZES = {"img_dim": "feature_dim", "embed_size": "embed_dim", "word_dim": "word_dim", "num_layers": "num_layers"}
SIZES |= {"bi_gru": "bidirectional"}  # options of SCAN that its tensors tell as well
MASK = "<mask>"  # the code of VSE∞ and CHAN adds it to the words of a vocabulary file
# Beginnings of names there, and here; "": not a part of the model.
NAMES = {
    "image fc.weight_g": "image_encoder.fc.parametrizations.weight.original0",  # weight normalisation as torch has it today
    "image fc.weight_v": "image_encoder.fc.parametrizations.weight.original1",
    "image fc.": "image_encoder.fc.",
    "image mlp.layers.0.": "image_encoder.mlp.0.",
    "image mlp.bns.0.": "image_encoder.mlp.1.",
    "image mlp.layers.1.": "image_encoder.mlp.3.",
    "image mlp.bns.1.": "",
    "image gpool.": "image_pool.",
    "image feedforward.ln.": "image_encoder.attention_norm.",
    "image feedforward.attn.": "image_encoder.attention.",
    "text bert.pooler.": "",  # no token's state goes through it
    "text bert.embeddings.position_ids": "",  # counts from 0; transformers no longer keeps it
    "text bert.": "text_encoder.encoder.",
    "text linear.": "text_encoder.fc.",
    "text gpool.": "text_pool.",
    "text embed.": "text_encoder.embed.",
    "text rnn.": "text_encoder.rnn.",
    "text fc.": "",  # of CHAN: made, trained by nothing, read by nothing
}


@dataclass(frozen=True)
class OriginalCheckpoint:
    """A model, and how far its training was."""

    model: Matcher
    epoch: int
    best_rsum: float  # on its dev split, as it was measured there


def load_original(path: Path, vocabulary: Tokens, text_encoder: str = "gru") -> OriginalCheckpoint:
    """Read a checkpoint of the original code.

    Args:
        path: `model_best.pth.tar`, `model_best.pth` or `checkpoint_*.pth.tar`.
        vocabulary: the one it was trained with (`Vocabulary.from_json`), or the word pieces of its BERT.
        text_encoder: name of that BERT, for the configuration.

    Raises:
        MatcherError: no such file, damaged, holding code, or of another vocabulary.
    """
    content = _read(path)
    try:
        image, text = map(_checked, content["model"][:2])
        config = _config(vars(content["opt"]), image, text, text_encoder)
        epoch, best_rsum = int(content.get("epoch", 0)), float(content.get("best_rsum", 0.0))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, MatcherError):
            raise MatcherError(f"{path}: {error}") from error
        raise MatcherError(f"{path}: not {EXPECTED}: {error!r}") from error
    if ("embed.weight" in text) != isinstance(vocabulary, Vocabulary):
        wanted = "a vocabulary file (.json)" if "embed.weight" in text else "its BERT, such as bert-base-uncased"
        raise MatcherError(f"{path}: needs another vocabulary; expected {wanted}")
    if isinstance(vocabulary, Vocabulary) and (embedded := len(text["embed.weight"])) != len(vocabulary):
        if config.matcher == "scan" or embedded != len(vocabulary) + 1:
            raise MatcherError(
                f"{path}: embeds {embedded} words, the vocabulary has {len(vocabulary)}; name the vocabulary file that it "
                "was trained with"
            )
        vocabulary = Vocabulary([*vocabulary.words, MASK])
    model = make_matcher(config, vocabulary)
    tensors = {f"image {name}": tensor for name, tensor in image.items()}
    tensors |= {f"text {name}": tensor for name, tensor in text.items()}
    try:
        model.load_state_dict({new: tensor for name, tensor in tensors.items() if (new := _renamed(name))})
    except RuntimeError as error:
        raise MatcherError(
            f"{path}: its tensors do not fit its options ({(str(error).splitlines() or [type(error).__name__])[-1].strip()})"
        ) from error
    return OriginalCheckpoint(model.eval(), epoch, best_rsum)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise MatcherError(f"{path}: refused: it holds more than tensors and options, and could run code") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise MatcherError(f"{path}: not readable ({first_line(error)}); expected {EXPECTED}") from error
    if not isinstance(content, Mapping):
        raise MatcherError(f"{path}: holds a {type(content).__name__}; expected {EXPECTED}")
    return content


def _checked(state: Any) -> Mapping[str, Tensor]:
    """The tensors of a state by name.

    Raises:
        MatcherError: something else, or numbers that no training leaves.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise MatcherError(f"a state of type {type(state).__name__}; expected tensors by name")
    for name, tensor in state.items():
        counts = name.endswith(("num_batches_tracked", "position_ids"))
        if not isinstance(tensor, Tensor) or not (counts or tensor.is_floating_point()):
            raise MatcherError(f"{name} is no tensor of floating-point numbers")
        if not torch.isfinite(tensor).all():
            raise MatcherError(f"{name} holds numbers that are not finite")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}  # of DataParallel


def _config(
    options: Mapping[str, Any], image: Mapping[str, Tensor], text: Mapping[str, Tensor], text_encoder: str
) -> ModelConfig:
    """Options as the original command line had them; sizes as the tensors say."""
    if any(name.endswith("image_encoder.fc.weight") for name in image):
        raise MatcherError("a grid model of VSE∞, which reads pixels by a CNN of its own; expected one of regions")
    if (weight := image.get("fc.weight", image.get("fc.weight_v"))) is None:
        raise MatcherError(
            f"its first state has no fc.weight, as that of images has; found {', '.join(list(image)[:3])}"
        )
    fields: dict[str, Any] = {
        "feature_dim": weight.shape[1],
        "embed_dim": weight.shape[0],
        "image_norm": not options.get("no_imgnorm", False),
        "text_norm": not options.get("no_txtnorm", False),
        "image_weight_norm": "fc.weight_g" in image,
        "image_mlp": "mlp.layers.0.weight" in image,
        "image_attention": "feedforward.attn.in_proj_weight" in image,
        "text_encoder": text_encoder,
    }
    if "embed.weight" in text:
        layers = sum(name.startswith("rnn.weight_ih_l") and not name.endswith("_reverse") for name in text)
        fields |= {
            "text_encoder": "gru",
            "word_dim": text["embed.weight"].shape[1],
            "num_layers": layers,
            "bidirectional": any(name.endswith("_reverse") for name in text),
        }
    if "gpool.linear.weight" in image:
        return ModelConfig(matcher="vse", **fields)
    if "coding_type" in options:
        if options["coding_type"] != "VHACoding" or options["pooling_type"] not in POOLINGS:
            raise MatcherError(
                f"CHAN with {options['coding_type']} and {options['pooling_type']}; expected VHACoding and one of "
                f"{', '.join(POOLINGS)}"
            )
        temperature = 1 / float(options["belta"])  # its code divides by it
        return ModelConfig(
            matcher="chan", pooling=POOLINGS[options["pooling_type"]], lse_temperature=temperature, **fields
        )
    for option, field in SIZES.items():
        if option in options and field in fields and options[option] != fields[field]:
            raise MatcherError(f"option {option} is {options[option]}, its tensors are of {fields[field]}")
    return ModelConfig(
        attention=options["cross_attn"],
        normalization=options["raw_feature_norm"],
        pooling=options["agg_func"],
        softmax_temperature=float(options["lambda_softmax"]),
        lse_temperature=float(options["lambda_lse"]),
        **fields,
    )


def _renamed(name: str) -> str:
    """Our name of a tensor, "" where the model has no such part; an unknown name stays and is refused with the others."""
    for beginning, ours in NAMES.items():
        if name.startswith(beginning):
            return ours and ours + name.removeprefix(beginning)
    return name


def read_vocabulary(name: str) -> Tokens:
    """The words of a vocabulary file, or the word pieces of a text encoder: a folder, an installed package or a hub name.

    Raises:
        MatcherError: not readable.
    """
    is_file = name.endswith(".json") or Path(name).is_file()
    return Vocabulary.from_json(name) if is_file else WordPieces.from_pretrained(name)
