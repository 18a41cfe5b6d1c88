"""CHAN: every word takes its best region alone (Pan et al., Fine-grained Image-Text Matching by Cross-modal Hard Aligning
Network, CVPR 2023).

    s(image, caption) = pool over words i of  max over regions k of  cos(word i, region k)

The paper pools by LogSumExp with a GRU and by the mean with BERT. Its code leaves the LogSumExp undivided, so that its
similarities are λ = 10 times ours, and its margin of 0.05 is 0.005 here. No Gram matrix, no attended vector: MaxSim, which
late-interaction engines search.

Letters: N images, M captions, K regions, L words, T words of some captions together, E joint space.
"""

import torch
from torch import Tensor

from matcher.attention import Attention, pool, pool_weights
from matcher.matcher import Matcher, PairExplanation, only_direction
from matcher.similarity import float32


class CHAN(Matcher):
    """Cross-modal Hard Aligning Network."""

    def score(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """(N, K, E), (T, E) -> (M, N)."""
        N, K, _ = regions.shape
        scores = (packed @ regions.flatten(0, 1).T).view(-1, N, K)
        best = float32(scores).amax(-1)  # (T, N); equally good regions share the gradient
        parts = best.split([captions * words for captions, words in groups])
        pooled = [
            pool(part.view(captions, words, N), 1, **self._pooling)
            for (captions, words), part in zip(groups, parts, strict=True)
        ]
        return torch.cat(pooled)

    def explain(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> PairExplanation:
        """Each word attends to its best region alone, and adds its cosine times its weight in the pooling."""
        only_direction(self, direction)
        cosines, best = float32(words @ regions.T).max(1, keepdim=True)  # (L, 1)
        attention = torch.zeros(len(words), len(regions), device=words.device).scatter(1, best, 1.0)
        contributions = attention * cosines * pool_weights(cosines, 0, *self._pooling.values())
        return PairExplanation(pool(cosines[:, 0], 0, **self._pooling), attention, contributions)

    @property
    def _pooling(self) -> dict:
        return {"pooling": self.config.pooling, "lse_temperature": self.config.lse_temperature}
