"""Fixtures for every test: the reference data where it is, and nothing waited for that no test is about."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_detector import write_small_weights

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a killed process wrote outlives it anyway; only a power failure would tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference numbers and real data; not part of the project, so tests that need it may skip."""
    folder = Path(os.environ.get("SCAN_PIPELINE_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"reference data not found in {folder} (set SCAN_PIPELINE_SHARED)")
    return folder


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny random detector: see tests/small_detector.py."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_small_weights(path)
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of a few thousand parameters, saved as the library saves its own."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from tests.toy import THINGS

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", "the", "is", "near", "##s", *THINGS]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)
