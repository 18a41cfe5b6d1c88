"""A world small enough to learn in a second: photos hold things, captions name them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from matcher.data import CaptionedImages
from matcher.similarity import PaddedWords

THINGS = ("dog", "cat", "ball", "tree", "car", "boat", "bird", "house", "lamp", "fish")
REGIONS, DIMENSIONS = 5, 16


class ArraySource:
    """Region features (N, K, D) in memory, as a `matcher.data.FeatureSource`."""

    def __init__(self, features: np.ndarray):
        self.features = features
        _, self.num_regions, self.feature_dim = features.shape

    def __len__(self) -> int:
        return len(self.features)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.features[rows]


def toy_features(things: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) indices of things -> (N, K, D) float16: a fixed vector per thing, noise elsewhere."""
    look = np.random.default_rng(1).normal(size=(len(THINGS), DIMENSIONS))
    features = 0.3 * np.random.default_rng(seed).normal(size=(len(things), REGIONS, DIMENSIONS))
    for region in range(2):
        features[:, region] += look[things[:, region]]
    return features.astype(np.float16)


def toy_world(images: int = 40, seed: int = 0) -> CaptionedImages:
    """Images of two things each, two captions an image that name both."""
    rng = np.random.default_rng(seed)
    things = np.stack([rng.choice(len(THINGS), 2, replace=False) for _ in range(images)])
    captions = []
    for left, right in things:
        captions += [f"a {THINGS[left]} and a {THINGS[right]}", f"the {THINGS[right]} is near a {THINGS[left]}"]
    return CaptionedImages(
        ArraySource(toy_features(things, seed)), captions, np.repeat(np.arange(images), 2), np.arange(images)
    )


def drawn_detections(
    photos: int, captions: int, *, regions: int = 12, dimensions: int = 64, seed: int = 0
) -> tuple[Tensor, PaddedWords]:
    """Embeddings as those of detected regions and of sentences about some of them: (N, K, E), and words of M captions.

    A photo shows twelve of 300 things, some far more common than others; a caption names two to four of its photo's.
    Unlike windows, which overlap, regions have little in common: their mean says little about any of them.
    """
    world, rng = torch.Generator().manual_seed(123), np.random.default_rng(seed)
    things = normalize(torch.randn(300, dimensions, generator=world), dim=-1)
    fillers = normalize(torch.randn(8, dimensions, generator=world), dim=-1)
    share = 1 / np.arange(3, 303)
    shown = np.stack([rng.choice(300, regions, replace=False, p=share / share.sum()) for _ in range(photos)])
    noise = torch.Generator().manual_seed(seed)
    spread = torch.randn(photos, regions, dimensions, generator=noise) / dimensions**0.5
    embeddings = normalize(things[torch.from_numpy(shown)] + 0.5 * spread, dim=-1)
    words = torch.zeros(captions, 10, dimensions)
    lengths = []
    for caption, photo in enumerate(rng.integers(0, photos, captions).tolist()):
        named = things[torch.from_numpy(rng.choice(shown[photo], int(rng.integers(2, 5)), replace=False))]
        around = fillers[torch.from_numpy(rng.integers(1, 7, len(named)))]
        sentence = torch.cat([fillers[:1], torch.stack([around, named], 1).flatten(0, 1), fillers[7:]])
        sentence = sentence + 0.4 * torch.randn(sentence.shape, generator=noise) / dimensions**0.5
        words[caption, : len(sentence)] = normalize(sentence + 0.2 * sentence.mean(0), dim=-1)
        lengths.append(len(sentence))
    return embeddings, PaddedWords(words, lengths)


def recall_among(exact: np.ndarray, pooled: np.ndarray, candidates: int) -> float:
    """Share of the exact top ten (N, M) among so many of the best by another measure (N, M)."""
    return recall_among_any(exact, [pooled], candidates)


def recall_among_any(exact: np.ndarray, pooled: Sequence[np.ndarray], candidates: int) -> float:
    """Share of the exact top ten (N, M) among so many of the best by any of some measures (N, M)."""
    held = []
    for query, scores in enumerate(exact.T):
        found = [np.argsort(-measure[:, query])[:candidates] for measure in pooled]
        held.append(len({*np.argsort(-scores)[:10]} & {*np.concatenate(found)}))
    return sum(held) / (10 * len(held))
