"""Model files: safetensors whose metadata holds the configuration and the vocabulary, so that nothing can mismatch."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from matcher.config import ModelConfig
from matcher.errors import MatcherError
from matcher.model import SCAN
from matcher.transformer import WordPieces
from matcher.vocabulary import Tokens, Vocabulary

FORMAT = "scan-pipeline/matcher"


def save_model(path: Path, model: SCAN) -> None:
    """Write a model atomically: the file is the old or the new one, never a part."""
    # One entry: safetensors writes several in no fixed order, and the same model should be the same bytes.
    metadata = {FORMAT: json.dumps({"config": asdict(model.config), "vocabulary": model.vocabulary.state()})}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(tensors, metadata))


def load_model(path: Path | str, device: torch.device | str = "cpu") -> SCAN:
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
    content = json.loads(metadata[FORMAT])
    model = SCAN(_config(content["config"], path), read_tokens(content["vocabulary"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise MatcherError(
            f"{path}: its tensors do not match its configuration ({str(error).splitlines()[-1]})"
        ) from error
    return model.to(device).eval()


def read_tokens(state: Mapping[str, Any]) -> Tokens:
    """The vocabulary or word pieces whose `state()` this is."""
    return WordPieces(**state) if "tokenizer" in state else Vocabulary(**state)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, bring it to disk, and give it its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _config(values: dict[str, Any], path: Path) -> ModelConfig:
    known = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(values.keys() - known):
        raise MatcherError(f"{path}: written by a newer version (unknown field {unknown[0]}); update scan-pipeline")
    return replace(ModelConfig(), **values)
