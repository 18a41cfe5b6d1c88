"""SCAN: both encoders and the cross attention between them.

Letters: B batch, N images, M captions, K regions, L words, D feature dimensions, E joint space.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matcher.attention import COSINE_EPS, attend
from matcher.config import ModelConfig
from matcher.encoders import GruEncoder, ImageEncoder
from matcher.errors import MatcherError
from matcher.similarity import cross_attention_similarity
from matcher.transformer import TransformerEncoder, WordPieces
from matcher.vocabulary import Tokens, Vocabulary


class SCAN(nn.Module):
    """Stacked Cross Attention Network (Lee et al., ECCV 2018)."""

    def __init__(self, config: ModelConfig, vocabulary: Tokens):
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.image_encoder = ImageEncoder(config)
        self.text_encoder: GruEncoder | TransformerEncoder
        if isinstance(vocabulary, Vocabulary):
            self.text_encoder = GruEncoder(config, len(vocabulary))
        elif isinstance(vocabulary, WordPieces):
            self.text_encoder = TransformerEncoder(config, vocabulary)
        else:
            raise MatcherError(f"vocabulary is a {type(vocabulary).__name__}; expected Vocabulary or WordPieces")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.image_encoder.fc.bias.device

    def encode_images(self, features: Tensor) -> Tensor:
        """Region features (B, K, D) -> embeddings (B, K, E)."""
        return self.image_encoder(features)

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions -> word embeddings (B, L, E) and lengths (B,) on the CPU, start and end included."""
        tokens, lengths = pad([self.vocabulary.encode(caption) for caption in captions])
        return self.encode_tokens(tokens, lengths), lengths

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (B, L) and lengths (B,) on the CPU -> word embeddings (B, L, E)."""
        return self.text_encoder(tokens.to(self.device, non_blocking=True), lengths)

    def similarity(self, regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (N, K, E), (M, L, E) and lengths (M,) -> similarity (N, M)."""
        return cross_attention_similarity(regions, words, lengths, **self.similarity_options())

    def attention(self, regions: Tensor, words: Tensor) -> Tensor:
        """Attention between one image (K, E) and one caption (L, E), every word real: (L, K).

        Rows sum to one for t2i, columns for i2t. The same weights that the similarity is made of.
        """
        scores = (words @ regions.T).float()[None, :, None]  # (1, L, 1, K)
        options = self.similarity_options()
        names = ("attention", "normalization", "softmax_temperature")
        return attend(scores, **{name: options[name] for name in names})[0, :, 0]

    def contributions(self, regions: Tensor, words: Tensor) -> Tensor:
        """How each word and region made the score of one image (K, E) and one caption (L, E): (L, K).

        The cosine of a query with its attended vector is a sum over the context; these are its terms. So for t2i rows
        sum to the words' cosines, for i2t columns to the regions'.
        """
        weights = self.attention(regions, words)  # (L, K)
        products = weights * (words @ regions.T).float()
        if self.config.attention == "t2i":
            lengths = words.norm(dim=-1) * (weights @ regions).norm(dim=-1)  # (L,)
            return products / lengths.clamp_min(COSINE_EPS)[:, None]
        lengths = regions.norm(dim=-1) * (weights.T @ words).norm(dim=-1)  # (K,)
        return products / lengths.clamp_min(COSINE_EPS)

    def similarity_options(self) -> dict[str, Any]:
        """The configuration's part of `matcher.similarity.cross_attention_similarity`."""
        names = ("attention", "normalization", "pooling", "softmax_temperature", "lse_temperature")
        return {name: getattr(self.config, name) for name in names}


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token id lists -> (B, L) padded with 0, and lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return tokens, lengths
