"""A `transformers` encoder in the GRU's place, with its own tokenizer.

Word pieces are the words of the attention: each is compared with the regions by itself, as each word of the GRU is. To
pool pieces into words first would blur what the encoder keeps apart, and published successors of SCAN with BERT do not
do it either. The encoder's start and end marks take part, as the GRU's do.

Letters: B captions, L word pieces, H hidden size, E joint space.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from matcher.config import ModelConfig
from matcher.encoders import l2_normalize
from matcher.errors import MatcherError


class WordPieces:
    """A tokenizer and the configuration of its encoder: all that a checkpoint needs to build both again, offline."""

    def __init__(self, tokenizer: str, encoder: Mapping[str, Any]):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        limit = encoder.get("max_position_embeddings")
        self._tokenizer.enable_truncation(min(limit or 512, 512) - 2)  # RoBERTa counts positions from 2
        self.encoder = dict(encoder)

    @classmethod
    def from_pretrained(cls, name: str) -> "WordPieces":
        """Read tokenizer and configuration from a folder or the hub.

        Raises:
            MatcherError: not there, or without a fast tokenizer.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True).backend_tokenizer.to_str()
            return cls(tokenizer, json.loads(AutoConfig.from_pretrained(name).to_json_string(use_diff=False)))
        except (OSError, ValueError, AttributeError, KeyError) as error:
            raise _not_loaded(name, error) from error

    def encode(self, caption: str) -> list[int]:
        """Ids of the word pieces, start and end marks included."""
        return list(self._tokenizer.encode(caption).ids)

    def tokens(self, caption: str) -> list[str]:
        """The word pieces that `encode` has ids for, for showing them."""
        return list(self._tokenizer.encode(caption).tokens)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"tokenizer": self._tokenizer.to_str(), "encoder": self.encoder}


class TransformerEncoder(nn.Module):
    """Word pieces in context, projected into the joint space."""

    def __init__(self, config: ModelConfig, pieces: WordPieces):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.normalize = config.text_norm
        settings = dict(pieces.encoder)
        self.encoder = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings)).float()
        self._drop_pooler()
        self.fc = nn.Linear(self.encoder.config.hidden_size, config.embed_dim)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def load_pretrained(self, name: str) -> None:
        """Take the encoder's parameters from a folder or the hub.

        Raises:
            MatcherError: not there.
        """
        from transformers import AutoModel

        try:
            self.encoder = AutoModel.from_pretrained(name, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise _not_loaded(name, error) from error
        self._drop_pooler()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Ids (B, L) padded and lengths (B,) on the CPU -> (B, L, E) float32."""
        places = torch.arange(tokens.shape[1])
        mask = (places < lengths[:, None]).to(tokens.device, non_blocking=True)  # (B, L)
        embeddings = self.fc(self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state)
        return l2_normalize(embeddings) if self.normalize else embeddings.float()

    def _drop_pooler(self) -> None:
        """It reads the first token for other tasks; here it would be parameters without gradient."""
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None


def _not_loaded(name: str, error: Exception) -> MatcherError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return MatcherError(
        f"text encoder {name}: could not be loaded ({first[:160]}); expected gru, a folder with config.json, "
        "tokenizer.json and model.safetensors, or a hub name that this machine can reach"
    )
