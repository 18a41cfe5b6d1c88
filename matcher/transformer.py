"""A `transformers` encoder in the GRU's place, with its own tokenizer.

Word pieces are the words of the attention: each is compared with the regions by itself, as each word of the GRU is. To
pool pieces into words first would blur what the encoder keeps apart, and published successors of SCAN with BERT do not
do it either. The encoder's start and end marks take part, as the GRU's do.

A frozen encoder is no part of the model: only the layer on top is trained and saved, and the encoder is found again by its
name, and known by the hash of its weights.

Letters: B captions, L word pieces, H hidden size, E joint space.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import trange

from configs.errors import first_line
from configs.files import file_sha256
from matcher.bert import Bert
from matcher.config import ModelConfig
from matcher.encoders import beside, l2_normalize
from matcher.errors import MatcherError
from matcher.vocabulary import PAD, Vocabulary

PACKAGE = "package:"  # before the name of an installed package that ships an encoder
APOSTROPHES = {"'", "\u2019"}
ENCODED_AT_ONCE = 32  # captions
CACHE_BYTES = 2 << 30  # of a frozen encoder's states that training keeps; captions beyond that are encoded every epoch


class WordPieces:
    """A tokenizer and the configuration of its encoder: all that a checkpoint needs to build both again, offline."""

    def __init__(self, tokenizer: str, encoder: Mapping[str, Any], weights_sha256: str = ""):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        limit = encoder.get("max_position_embeddings")
        self._tokenizer.enable_truncation(min(limit or 512, 512) - 2)  # RoBERTa counts positions from 2
        # Not where transformers found it: that is a folder of this machine.
        self.encoder = {key: value for key, value in encoder.items() if key != "_name_or_path"}
        self.weights_sha256 = weights_sha256  # of a frozen encoder
        self._unknown = json.loads(tokenizer)["model"].get("unk_token")  # None: every byte has a piece

    @classmethod
    def from_pretrained(cls, name: str, *, frozen: bool = False) -> "WordPieces":
        """Read tokenizer and configuration from a folder, an installed package or the hub.

        Raises:
            MatcherError: not there, or without a fast tokenizer.
        """
        from transformers import AutoConfig, AutoTokenizer

        folder = encoder_folder(name)
        sha256 = _weights_sha256(folder) if frozen else ""
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer.to_str()
            return cls(tokenizer, json.loads(AutoConfig.from_pretrained(folder).to_json_string(use_diff=False)), sha256)
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise _not_loaded(name, error) from error

    def encode(self, caption: str) -> list[int]:
        """Ids of the word pieces, start and end marks included."""
        return list(self._tokenizer.encode(caption).ids)

    def word_positions(self, caption: str) -> list[tuple[str, list[int]]]:
        """The words of a caption, for showing them, and where in `encode` the pieces of each are; marks are no words.

        Parts that an apostrophe joins, as in "dog's", are one word.
        """
        encoding = self._tokenizer.encode(caption)
        spans: list[tuple[int, int]] = []  # of each word in the caption
        pieces: list[list[int]] = []
        before = None  # the word of the piece before
        for position, ((start, end), word) in enumerate(zip(encoding.offsets, encoding.word_ids, strict=True)):
            if word is None:  # a mark
                continue
            touches = bool(spans) and start == spans[-1][1]
            if word == before or (touches and {caption[start:end], caption[start - 1]} & APOSTROPHES):
                spans[-1] = spans[-1][0], end
                pieces[-1].append(position)
            else:
                spans.append((start, end))
                pieces.append([position])
            before = word
        return [(caption[start:end].strip(), own) for (start, end), own in zip(spans, pieces, strict=True)]

    def known(self, caption: str) -> list[str]:
        """The word pieces that spell a caption, punctuation and marks apart."""
        pieces = self._tokenizer.encode(caption).tokens[1:-1]
        return [piece for piece in pieces if piece != self._unknown and any(map(str.isalnum, piece))]

    def unknown(self, caption: str) -> dict[str, str]:
        """The words of a caption that no pieces spell, as of a script that the encoder never read; no suggestions."""
        encoding = self._tokenizer.encode(caption)
        spans = zip(encoding.tokens, encoding.offsets, strict=True)
        return {caption[start:end]: "" for token, (start, end) in spans if token == self._unknown}

    def is_cut(self, caption: str) -> bool:
        """Whether the end of a caption is left out: the encoder has no place for so many pieces."""
        return bool(self._tokenizer.encode(caption).overflowing)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        state = {"tokenizer": self._tokenizer.to_str(), "encoder": self.encoder}
        return {**state, "weights_sha256": self.weights_sha256} if self.weights_sha256 else state


Tokens = Vocabulary | WordPieces  # captions -> token ids, the first and the last of which stand for start and end


class TransformerEncoder(nn.Module):
    """Word pieces in context, projected into the joint space."""

    def __init__(self, config: ModelConfig, pieces: WordPieces):
        super().__init__()
        self.normalize = config.text_norm
        self.frozen: FrozenEncoder | None = None
        if config.text_encoder_frozen:
            self.frozen = FrozenEncoder(config.text_encoder, pieces.weights_sha256)
        else:
            from transformers import AutoConfig, AutoModel

            settings = dict(pieces.encoder)
            self.encoder = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).float()
            _drop_pooler(self.encoder)
        width = int(pieces.encoder["hidden_size"])
        self.fc = nn.Linear(width, config.embed_dim - config.class_dim)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        if config.classes and config.class_dim != width:
            raise MatcherError(f"class_dim {config.class_dim}: expected {width}, the text encoder's width")
        self.class_share = config.class_share
        # Beside the names of classes: the mean state of captions, which is no word's own.
        self.register_buffer("usual", torch.zeros(width) if config.classes else None)
        self.usual: Tensor | None

    def load_pretrained(self, name: str) -> None:
        """Take the encoder's parameters from a folder, an installed package or the hub; a frozen one has them already.

        Raises:
            MatcherError: not there.
        """
        if self.frozen is None:
            self.encoder = _load_encoder(name)

    def pretrained_parameters(self) -> set[nn.Parameter]:
        """Parameters that training starts from and changes."""
        return set(self.encoder.parameters()) if self.frozen is None else set()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Ids (B, L) padded and lengths (B,) on the CPU -> (B, L, E) float32."""
        if self.frozen is not None:
            states = self.frozen.states(tokens, lengths, kept=self.training)
        else:
            states = _states(self.encoder, tokens, lengths)
        embeddings = self.fc(states)
        embeddings = l2_normalize(embeddings) if self.normalize else embeddings.float()
        if self.usual is not None:
            embeddings = beside(embeddings, l2_normalize(states - self.usual), self.class_share)
        return embeddings


class FrozenEncoder:
    """An encoder that is not trained. No module: it has no parameters to train, to save or to average over processes."""

    def __init__(self, name: str, sha256: str):
        found = _weights_sha256(encoder_folder(name))
        if found != sha256:
            raise MatcherError(
                f"text encoder {name}: its weights have sha256 {found[:12]}…, the model was trained with {sha256[:12]}…",
                "install the version that the model names, or train again",
            )
        try:
            encoder = Bert(Path(encoder_folder(name)))
        except KeyError:  # another architecture
            encoder = _load_encoder(name)
        self._encoder = encoder.eval().requires_grad_(False)
        self._kept: dict[bytes, Tensor] = {}  # token ids -> (L, H) float16 on the CPU
        self._room = CACHE_BYTES

    @torch.no_grad()
    def remember(self, captions: Iterable[np.ndarray], device: torch.device, *, progress: bool = False) -> None:
        """Keep the states of captions, each as its ids (L,), which training meets once an epoch; as many as there is room for.

        States differ in their last bits with the captions that are encoded beside them. Here that is always the same ones, so that a
        resumed run equals an uninterrupted one.
        """
        self._encoder.to(device)
        # Captions of like length together: padding costs as words do
        ordered = sorted({ids.astype(np.int64).tobytes() for ids in captions}, key=lambda key: (len(key), key))
        for start in trange(0, len(ordered), ENCODED_AT_ONCE, desc="captions", disable=not progress, leave=False):
            keys = ordered[start : start + ENCODED_AT_ONCE]
            ids = [torch.from_numpy(np.frombuffer(key, np.int64).copy()) for key in keys]
            lengths = torch.tensor(list(map(len, ids)))
            tokens = pad_sequence(ids, batch_first=True, padding_value=PAD).to(device)
            states = _states(self._encoder, tokens, lengths).half().cpu()
            for key, own, length in zip(keys, states, lengths.tolist(), strict=True):
                self._kept[key] = own[:length].clone()
            self._room -= sum(self._kept[key].nbytes for key in keys)
            if self._room <= 0:
                return

    @torch.no_grad()
    def states(self, tokens: Tensor, lengths: Tensor, *, kept: bool) -> Tensor:
        """Ids (B, L) padded and lengths (B,) on the CPU -> (B, L, H) float32; `kept`: where `remember` has them, those."""
        self._encoder.to(tokens.device)
        if not kept:
            return _states(self._encoder, tokens, lengths)
        rows = tokens.cpu().numpy()
        keys = [rows[index, :length].tobytes() for index, length in enumerate(lengths.tolist())]
        missing = [index for index, key in enumerate(keys) if key not in self._kept]
        states = torch.zeros(*tokens.shape, self._encoder.config.hidden_size, device=tokens.device)
        missing.sort(key=lengths.tolist().__getitem__)  # captions of like length together: padding costs as words do
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            some = missing[start : start + ENCODED_AT_ONCE]
            longest = int(lengths[some[-1]])
            states[some, :longest] = _states(self._encoder, tokens[some, :longest], lengths[some]).float()
        for index in set(range(len(keys))).difference(missing):
            states[index, : int(lengths[index])] = self._kept[keys[index]].to(states)
        return states


def encoder_folder(name: str) -> str:
    """The folder of an encoder in an installed package, for "package:NAME"; other names as they are.

    The package is looked up, not imported.

    Raises:
        MatcherError: not installed, or without an encoder.
    """
    if not name.startswith(PACKAGE):
        return name
    package = name.removeprefix(PACKAGE)
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise MatcherError(f"text encoder {name}: the package is not installed", f"pip install {package}") from None
    folders = [Path(str(file.locate())).parent for file in files if file.name == "config.json"]
    for folder in folders:
        if (folder / "model.safetensors").is_file():
            return str(folder)
    raise MatcherError(f"text encoder {name}: no folder with config.json and model.safetensors in the package")


def _weights_sha256(folder: str) -> str:
    """The hash of a local encoder's weights.

    Raises:
        MatcherError: not a local file.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise MatcherError(
            f"{path}: not there; a frozen text encoder is a folder or an installed package with this file"
        )
    return file_sha256(path)


def _load_encoder(name: str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    folder, shown = encoder_folder(name), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for a tenth of a second
    try:
        encoder = AutoModel.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    _drop_pooler(encoder)
    return encoder


def _drop_pooler(encoder: Any) -> None:
    """It reads the first token for other tasks; here it would be parameters without gradient."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None


def _states(encoder: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Ids (B, L) padded and lengths (B,) on the CPU -> the last layer's states (B, L, H)."""
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]  # (B, L)
    mask = mask.to(tokens.device, non_blocking=True)
    states: Tensor = encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    return states


def _not_loaded(name: str, error: Exception) -> MatcherError:
    return MatcherError(
        f"text encoder {name or repr(name)}: could not be loaded ({first_line(error)}); expected gru, a folder with config.json, "
        "tokenizer.json and model.safetensors, package: and an installed package, or a hub name that this machine can reach"
    )
