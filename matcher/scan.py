"""SCAN: stacked cross attention between the regions of an image and the words of a caption (Lee et al., ECCV 2018).

Letters: N images, M captions, K regions, L words, T words of some captions together, E joint space.
"""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from matcher.attention import COSINE_EPS, Attention, pool_weights
from matcher.matcher import Matcher, PairExplanation
from matcher.similarity import CrossAttention


class SCAN(Matcher):
    """Stacked Cross Attention Network."""

    @property
    def direction(self) -> Attention:
        """Which side attends to the other."""
        return self.config.attention  # type: ignore[return-value]

    def score(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """Equations 1 to 9 of the paper: (N, K, E), (T, E) -> (M, N)."""
        return self.cross_attention()(regions, packed, groups)

    def score_photos(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """Regions of one photo attend to those of the other, as words do in t2i, all counting the same."""
        return replace(self.cross_attention("t2i"), pooling="Mean")(regions, packed, groups)

    def explain(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> PairExplanation:
        """Score, attention and contributions; `direction` asks for those of the other attention.

        The attention is what the similarity is made of: rows sum to one for t2i, columns for i2t.

        The cosine of a query with its attended vector is a sum over the context; the contributions are its terms, each
        times the weight of its query in the pooling. With Mean, Sum and Max they add up to the score; with LogSumExp to
        the weighted mean of the cosines, which is the score less a part that no word makes.
        """
        options = self.cross_attention(direction)
        score = options(regions[None], words, [(1, len(words))])[0, 0]
        products = (words @ regions.T).float()  # (L, K)
        weights = options.attend(products[None, :, None])[0, :, 0]  # (L, K)
        if options.attention == "t2i":
            lengths = (words.norm(dim=-1) * (weights @ regions).norm(dim=-1))[:, None]  # (L, 1)
        else:
            lengths = regions.norm(dim=-1) * (weights.T @ words).norm(dim=-1)  # (K,)
        terms = weights * products / lengths.clamp_min(COSINE_EPS)
        context = 1 if options.attention == "t2i" else 0
        cosines = terms.sum(context, keepdim=True)
        counted = pool_weights(cosines, 1 - context, options.pooling, options.lse_temperature)
        return PairExplanation(score, weights, terms * counted)

    def cross_attention(self, direction: Attention | None = None) -> CrossAttention:
        """The configured similarity; `direction` in its attention's place."""
        options: dict[str, Any] = {field.name: getattr(self.config, field.name) for field in fields(CrossAttention)}
        return CrossAttention(**options | ({"attention": direction} if direction else {}))
