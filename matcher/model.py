"""SCAN: both encoders and the cross attention between them.

Letters: B batch, N images, M captions, K regions, L words, D feature dimensions, E joint space.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from matcher.attention import COSINE_EPS, Attention, attend, pool_weights
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

    def similarity(self, regions: Tensor, words: Tensor, lengths: Tensor, direction: Attention | None = None) -> Tensor:
        """Embeddings (N, K, E), (M, L, E) and lengths (M,) -> similarity (N, M)."""
        return cross_attention_similarity(regions, words, lengths, **self.similarity_options(direction))

    def attention(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> Tensor:
        """Attention between one image (K, E) and one caption (L, E), every word real: (L, K).

        Rows sum to one for t2i, columns for i2t. The same weights that the similarity is made of; `direction` asks for
        those of the other attention.
        """
        scores = (words @ regions.T).float()[None, :, None]  # (1, L, 1, K)
        options = self.similarity_options(direction)
        names = ("attention", "normalization", "softmax_temperature")
        return attend(scores, **{name: options[name] for name in names})[0, :, 0]

    def contributions(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> Tensor:
        """What each word and region adds to the score of one image (K, E) and one caption (L, E): (L, K).

        The cosine of a query with its attended vector is a sum over the context; these are its terms, each times the
        weight of its query in the pooling. With Mean, Sum and Max they add up to the score; with LogSumExp to the
        weighted mean of the cosines, which is the score less a part that no word makes.
        """
        options = self.similarity_options(direction)
        weights = self.attention(regions, words, direction)  # (L, K)
        products = weights * (words @ regions.T).float()
        if options["attention"] == "t2i":
            lengths = (words.norm(dim=-1) * (weights @ regions).norm(dim=-1))[:, None]  # (L, 1)
        else:
            lengths = regions.norm(dim=-1) * (weights.T @ words).norm(dim=-1)  # (K,)
        terms = products / lengths.clamp_min(COSINE_EPS)
        context = 1 if options["attention"] == "t2i" else 0
        cosines = terms.sum(context, keepdim=True)
        return terms * pool_weights(cosines, 1 - context, options["pooling"], options["lse_temperature"])

    def similarity_options(self, direction: Attention | None = None) -> dict[str, Any]:
        """The configuration's part of `matcher.similarity.cross_attention_similarity`; `direction` in its attention's place."""
        names = ("attention", "normalization", "pooling", "softmax_temperature", "lse_temperature")
        options = {name: getattr(self.config, name) for name in names}
        return options | ({"attention": direction} if direction else {})


def pad(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token id lists -> (B, L) padded with 0, and lengths (B,)."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    return tokens, lengths
