"""NAAF: words that no region shows count against a pair (Zhang et al., Negative-Aware Attention Framework for Image-Text
Matching, CVPR 2022).

With s the cosines of words and regions and t the boundary between matched and mismatched words, the similarity is the mean over
words of three effects:

    negative   max s - t, where no region reaches t
    aggregated cosine of the word with its regions above t, weighted by softmax(λ s)
    relevant   Σ s, weighted by SCAN's t2i attention

It adds no parameter and nothing in the joint space to SCAN: the same product, Gram matrix and passes over (M, L, N, K). The
boundary is learned from each batch: it is where the normal densities of matched and of mismatched words cross, the second counted
α times. Outside of training a safer one is used, three deviations below the matched mean, and a word is a mismatch only where the
words like it are as well. The published code moves the boundary several times a batch, this one once.

Letters: N images, M captions, m captions of L words each, K regions, T words of some captions together, E joint space.
"""

import torch
from torch import Tensor

from matcher.attention import COSINE_EPS, SQUARE_FLOOR, Attention, attended_square, query_cosines
from matcher.config import ModelConfig
from matcher.matcher import Matcher, PairExplanation, only_direction
from matcher.similarity import CrossAttention, float32
from matcher.transformer import Tokens

PENALTY = 2.0  # α
NEIGHBOURS = 5.0  # λ of the softmax over the words of a caption that are like one
MOMENTUM = 0.3  # of the boundary
ENOUGH = 200  # words of a batch that tell the two distributions


class NAAF(Matcher):
    """Negative-Aware Attention Framework, of embeddings of length one."""

    observes = True

    def __init__(self, config: ModelConfig, vocabulary: Tokens):
        super().__init__(config, vocabulary)
        self.boundaries: Tensor
        self.register_buffer("boundaries", torch.zeros(2))  # in training, and afterwards

    def score(self, regions: Tensor, packed: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """(N, K, E), (T, E) -> (M, N)."""
        N, K, E = regions.shape
        scores = float32(packed @ regions.flatten(0, 1).T)
        with torch.autocast(scores.device.type, enabled=False):
            regions, packed = float32(regions), float32(packed)
            gram = regions @ regions.mT
            rows = [captions * words for captions, words in groups]
            columns = []
            for (m, L), part, words in zip(groups, scores.split(rows), packed.split(rows), strict=True):
                part, words = part.view(m, L, N, K), words.view(m, L, E)
                negative, above, relevance = self._effects(part, words)
                squares = attended_square(above, gram, "t2i")
                aggregated = query_cosines(part, above, squares, words.norm(dim=-1), "t2i")
                columns.append((negative + aggregated + (relevance * part).sum(-1)).mean(1))
            return torch.cat(columns)

    def explain(self, regions: Tensor, words: Tensor, direction: Attention | None = None) -> PairExplanation:
        """The terms of the three effects; what a mismatched word costs stands at the region that comes nearest to it."""
        only_direction(self, direction)
        scores = float32(words @ regions.T)  # (L, K)
        negative, above, relevance = (effect[0, :, 0] for effect in self._effects(scores[None, :, None], words[None]))
        attended = (above @ regions).square().sum(1, keepdim=True).clamp_min(SQUARE_FLOOR).sqrt()  # (L, 1)
        aggregated = above * scores / (words.norm(dim=1, keepdim=True) * attended).clamp_min(COSINE_EPS)
        contributions = aggregated + relevance * scores
        contributions.scatter_add_(1, scores.argmax(1, keepdim=True), negative[:, None])
        contributions = contributions / len(words)
        attention = torch.where(above.sum(1, keepdim=True) > 0, above, relevance)
        return PairExplanation(contributions.sum(), attention, contributions)

    def _effects(self, scores: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Negative effects (m, L, N), and the weights of the two positive ones (m, L, N, K), from cosines and (m, L, E)."""
        boundary = self.boundaries[0 if self.training else 1].to(scores.dtype)
        best = scores.amax(-1) - boundary  # (m, L, N)
        judged = best if self.training else ((words @ words.mT) * NEIGHBOURS).softmax(-1) @ best
        negative = best * (judged < 0)
        reached = scores > boundary
        logits = (scores * self.config.softmax_temperature).masked_fill(~reached, -1e9)
        relevance = CrossAttention("t2i", softmax_temperature=self.config.softmax_temperature).attend(scores)
        return negative, logits.softmax(-1) * reached, relevance

    @torch.no_grad()
    def observe(
        self, regions: Tensor, words: Tensor, lengths: Tensor, similarity: Tensor, image_of_caption: Tensor
    ) -> None:
        """Learn the boundary from the captions whose own image ranks first, against the image that ranks last."""
        right = similarity.argmax(0) == image_of_caption
        real = (torch.arange(words.shape[1]) < lengths[:, None]).to(words.device)[right]  # (captions, L)
        samples = [
            float32(words[right] @ regions[images[right]].mT).max(-1).values[real]
            for images in (image_of_caption, similarity.argmin(0))
        ]
        if len(samples[0]) < ENOUGH:
            self.boundaries.zero_()
            return
        found = boundary_between(*samples)
        if found.isnan():  # the densities do not cross
            return
        safe = samples[0].mean() - 3 * samples[0].std()
        learned = torch.stack([torch.where((b >= 0) & (b <= 1), b, torch.zeros_like(b)) for b in (found, safe)])
        self.boundaries.lerp_(learned.to(self.boundaries), 1 - MOMENTUM)


def boundary_between(matched: Tensor, mismatched: Tensor) -> Tensor:
    """Where the normal densities of two samples (T,) cross:  n(x; matched) = α n(x; mismatched); NaN where they do not."""
    (p, n), (sp, sn) = (samples.mean() for samples in (matched, mismatched)), (s.std() for s in (matched, mismatched))
    a = sp**2 - sn**2
    b = 2 * (p * sn**2 - n * sp**2)
    c = (n * sp) ** 2 - (p * sn) ** 2 + 2 * (sp * sn) ** 2 * torch.log(sn / (PENALTY * sp))
    return (-b + (b**2 - 4 * a * c).sqrt()) / (2 * a + 1e-10)
