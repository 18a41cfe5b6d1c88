"""VSE∞: one vector a side, pooled by learned weights (Chen et al., Learning the Best Pooling Strategy for Visual Semantic
Embedding, CVPR 2021, arXiv 2011.04305).

The generalised pooling operator sorts each dimension over the set, largest first, and takes a weighted sum of the sorted
values. The weight of a position depends on the size of the set alone: a small GRU reads encodings of the positions. Mean, max
and top-k means are special cases. The paper's size augmentation is `training.region_dropout` and `word_dropout` of 0.2.

Letters: B batch, N images, M captions, S vectors of a set, K regions, L words, D feature dimensions, E joint space.
"""

from dataclasses import replace
from math import log

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from matcher.attention import Attention
from matcher.config import ModelConfig
from matcher.encoders import l2_normalize
from matcher.matcher import Matcher, PairExplanation, only_direction, pad
from matcher.similarity import float32
from matcher.transformer import Tokens

POSITION_DIM = 32  # of a position's encoding, and of the GRU
TEMPERATURE = 0.1  # of the softmax over positions


class GeneralizedPooling(nn.Module):
    """Sets of vectors -> one vector each (section 3 of the paper)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(POSITION_DIM, POSITION_DIM, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(POSITION_DIM, 1, bias=False)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """(B, S, E) padded and lengths (B,) on the CPU -> (B, E)."""
        real = _real(vectors, lengths)
        by_dimension = vectors.masked_fill(~real, -torch.inf).mT.contiguous()  # sorting the last one is faster
        ordered = by_dimension.sort(-1, descending=True).values.masked_fill(~real.mT, 0)  # (B, E, S)
        return (ordered @ self.weights(lengths, vectors)[:, :, None])[:, :, 0]

    def shares(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """What each vector adds to the pooled one: (B, S, E), which sums to `forward` over S."""
        real = _real(vectors, lengths)
        order = vectors.masked_fill(~real, -torch.inf).argsort(1, descending=True)
        weights = self.weights(lengths, vectors)[:, :, None].expand_as(vectors)
        return weights.gather(1, order.argsort(1)) * vectors.masked_fill(~real, 0)

    def weights(self, lengths: Tensor, like: Tensor) -> Tensor:
        """(B, S) of the sorted positions, which sum to one over each set's own; made once for every distinct length."""
        sizes, rows = torch.unique(lengths, return_inverse=True)
        positions = _encodings(like.shape[1]).to(like.device, self.linear.weight.dtype)
        packed = pack_padded_sequence(
            positions.expand(len(sizes), -1, -1), sizes, batch_first=True, enforce_sorted=False
        )
        both, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=like.shape[1])
        logits = self.linear((both[..., :POSITION_DIM] + both[..., POSITION_DIM:]) / 2)  # (sizes, S, 1)
        weights = (logits.masked_fill(~_real(logits, sizes), -torch.inf) / TEMPERATURE).softmax(1)[:, :, 0]
        return weights.index_select(0, rows.to(weights.device)).to(like.dtype)


class VSE(Matcher):
    """Visual semantic embedding with generalised pooling on both sides."""

    one_vector = True

    def __init__(self, config: ModelConfig, vocabulary: Tokens):
        super().__init__(replace(config, image_norm=False, text_norm=False), vocabulary)  # norms come after pooling
        self.config = config
        self.image_pool, self.text_pool = GeneralizedPooling(), GeneralizedPooling()

    def encode_images(self, features: Tensor) -> Tensor:
        """Region features (B, K, D) -> one vector each, (B, 1, E)."""
        regions = self.image_encoder(features)
        return _normalized(self.image_pool(regions, _full(regions)), self.config.image_norm)[:, None]

    def encode_tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (B, L) and lengths (B,) on the CPU -> one vector each, (B, 1, E)."""
        words = super().encode_tokens(tokens, lengths)
        return _normalized(self.text_pool(words, lengths), self.config.text_norm)[:, None]

    def score(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """The dot product: (N, 1, E), (M, E) -> (M, N)."""
        return float32(packed @ regions[:, 0].T)

    def image_parts(self, features: Tensor) -> Tensor:
        """(K, D) -> (K, E): what each region adds to the image's vector."""
        regions = self.image_encoder(features[None])
        return _divided(self.image_pool.shares(regions, _full(regions))[0], self.config.image_norm)

    def caption_parts(self, caption: str) -> Tensor:
        """Caption -> (L, E): what each word adds to its vector."""
        tokens, lengths = pad([self.vocabulary.encode(caption)])
        words = super().encode_tokens(tokens, lengths)
        return _divided(self.text_pool.shares(words, lengths)[0], self.config.text_norm)

    def explain(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> PairExplanation:
        """Both vectors are sums of their parts, so the dot products of the parts add up to the score exactly.

        There is no attention in the model; shown as attention are each word's positive contributions over the regions.
        """
        only_direction(self, direction)
        contributions = float32(words @ regions.T)  # (L, K)
        positive = contributions.clamp_min(1e-12)
        return PairExplanation(contributions.sum(), positive / positive.sum(1, keepdim=True), contributions)


def _encodings(length: int) -> Tensor:
    """Sines and cosines of positions, in turns: (length, POSITION_DIM)."""
    rates = torch.exp(torch.arange(0, POSITION_DIM, 2) * (-log(10_000.0) / POSITION_DIM))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _real(vectors: Tensor, lengths: Tensor) -> Tensor:
    """(B, S, 1): which vectors of padded sets (B, S, …) are real."""
    return (torch.arange(vectors.shape[1]) < lengths[:, None])[:, :, None].to(vectors.device)


def _full(vectors: Tensor) -> Tensor:
    return torch.full((len(vectors),), vectors.shape[1])


def _normalized(vectors: Tensor, norm: bool) -> Tensor:
    return l2_normalize(vectors) if norm else vectors.float()


def _divided(parts: Tensor, norm: bool) -> Tensor:
    """Parts (S, E) of a vector, divided by its length."""
    return parts.float() / parts.float().sum(0).norm().clamp_min(1e-12) if norm else parts.float()
