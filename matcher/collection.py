"""Similarity of a collection: images read and encoded block by block, captions encoded once, memory bounded by a budget.

Letters: N images, M captions, K regions, L words, T words of some captions together, E joint space.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from matcher.data import FeatureSource
from matcher.matcher import Matcher, pad
from matcher.similarity import MEMORY_BUDGET, pack

ENCODE_CAPTIONS = 256  # captions per pass of the text encoder


def collection_similarity(
    model: Matcher,
    source: FeatureSource,
    rows: np.ndarray,
    captions: Sequence[str],
    *,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """Similarity of some images of a source to captions: (N, M) float32.

    Args:
        model: in evaluation mode.
        source: where the images' features are read from, block by block.
        rows: (N,) of the images in the source.
        captions: M sentences.
        memory_budget: bytes; see `matcher.similarity.similarity_matrix`.
        progress: show a bar.
    """
    regions = EncodedImages(model, source, rows)
    return model.similarities(
        regions,
        EncodedCaptions(model, captions),
        memory_budget=memory_budget,
        bytes_per_region=regions.bytes_per_region,
        progress=progress,
    )


class EncodedImages:
    """Region embeddings (N, K, E) of some rows of a source, read and encoded when they are asked for."""

    def __init__(self, model: Matcher, source: FeatureSource, rows: np.ndarray):
        self.model, self.source, self.rows = model, source, rows
        self.shape = len(rows), 1 if model.one_vector else source.num_regions, model.config.embed_dim
        # Encoding holds the features and a few copies of the embeddings at once.
        self.bytes_per_region = 4 * (source.feature_dim + 4 * model.config.embed_dim)
        if model.one_vector:
            self.bytes_per_region *= source.num_regions

    @torch.inference_mode()
    def __getitem__(self, images: slice) -> Tensor:
        """(n, K, E) on the model's device."""
        features = torch.from_numpy(self.source.gather(self.rows[images]))
        return self.model.encode_images(features.to(self.model.device).float())


class EncodedCaptions:
    """Word embeddings of captions, encoded when they are asked for, a few hundred captions at a time."""

    def __init__(self, model: Matcher, captions: Sequence[str]):
        self.model, self.device = model, model.device
        self.tokens = [model.vocabulary.encode(caption) for caption in captions]
        counts = torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.int64)
        self.lengths = model.embedded_lengths(counts)  # words of each caption, or the one vector of its own

    @torch.inference_mode()
    def pack(self, captions: Tensor) -> Tensor:
        """The words of some captions, one after another: (T, E)."""
        if len(self.tokens) <= ENCODE_CAPTIONS:  # queries, which both stages of a search ask for
            return pack(self._few, self.lengths, captions)
        parts = []
        for some in captions.split(ENCODE_CAPTIONS):
            tokens, lengths = pad([self.tokens[index] for index in some.tolist()])
            words = self.model.encode_tokens(tokens, lengths)
            parts.append(pack(words, self.lengths[some], torch.arange(len(some))))
        return torch.cat(parts)

    @cached_property
    def _few(self) -> Tensor:
        """Word embeddings (M, L, E) of all captions, padded."""
        return self.model.encode_tokens(*pad(self.tokens))
