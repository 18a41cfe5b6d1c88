"""Model files: safetensors whose metadata holds the configuration and the vocabulary, so that nothing can mismatch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from configs.files import write_atomically
from matcher.config import ModelConfig
from matcher.errors import MatcherError
from matcher.matcher import Matcher
from matcher.methods import make_matcher
from matcher.transformer import Tokens, WordPieces
from matcher.vocabulary import Vocabulary

FORMAT = "scan-pipeline/matcher"


def save_model(path: Path, model: Matcher) -> None:
    """Write a model atomically: the file is the old or the new one, never a part."""
    content: dict[str, Any] = {"config": asdict(model.config), "vocabulary": model.vocabulary.state()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content["sha256"] = digest([json.loads(json.dumps(content)), dict(sorted(tensors.items()))])
    # One entry: safetensors writes several in no fixed order, and the same model should be the same bytes.
    write_atomically(path, save(tensors, {FORMAT: json.dumps(content)}))


def load_model(path: Path | str, device: torch.device | str = "cpu") -> Matcher:
    """Read a model, ready to evaluate.

    Raises:
        MatcherError: missing, damaged, or no model of this project.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise MatcherError(f"{path}: not readable as a model ({error}); expected one written by train") from error
    if FORMAT not in metadata:
        raise MatcherError(f"{path}: safetensors without this project's metadata; expected a model written by train")
    try:
        content = json.loads(metadata[FORMAT])
        if content.pop("sha256") != digest([content, dict(sorted(tensors.items()))]):
            raise ValueError("another checksum")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        what = "damaged, its bytes are not those that were written"
        raise MatcherError(f"{path}: {what}", "copy it again, or train again") from error
    try:
        model = make_matcher(_config(content["config"], path), read_tokens(content["vocabulary"]))
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise MatcherError(f"{path}: its tensors do not match its configuration ({reason})") from error
    return model.to(device).eval()


def model_sha256(path: Path | str) -> str:
    """The checksum that a model file carries, without reading its tensors: for what is derived from the model."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads(file.metadata()[FORMAT])["sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MatcherError(f"{path}: no model with a checksum ({error}); expected one written by train") from error


def digest(value: Any) -> str:
    """SHA-256 of nested dictionaries and lists of tensors and plain values, in their order."""
    sha256 = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha256.update(f"{value.dtype} {tuple(value.shape)}".encode())
            sha256.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                sha256.update(f"{key!r}:".encode())
                add(item)
        elif isinstance(value, list | tuple):
            sha256.update(f"[{len(value)}]".encode())
            for item in value:
                add(item)
        else:
            sha256.update(f"{value!r};".encode())

    add(value)
    return sha256.hexdigest()


def read_tokens(state: Mapping[str, Any]) -> Tokens:
    """The vocabulary or word pieces whose `state()` this is."""
    return WordPieces(**state) if "tokenizer" in state else Vocabulary(**state)


def _config(values: dict[str, Any], path: Path) -> ModelConfig:
    if not isinstance(values, dict):
        raise MatcherError(f"{path}: its configuration is no object")
    types = {field.name: type(field.default) for field in fields(ModelConfig)}
    if unknown := sorted(values.keys() - types.keys()):
        raise MatcherError(f"{path}: written by a newer version (unknown field {unknown[0]})", "update scan-pipeline")
    for name, value in values.items():
        if type(value) is not types[name] and not (types[name] is float and type(value) is int):
            raise MatcherError(f"{path}: its {name} is {value!r}; expected {types[name].__name__}")
    return replace(ModelConfig(), **values)
