"""A world small enough to learn in a second: photos hold things, captions name them."""

import numpy as np

from matcher.data import CaptionedImages

THINGS = ("dog", "cat", "ball", "tree", "car", "boat", "bird", "house", "lamp", "fish")
REGIONS, DIMENSIONS = 5, 16


class ArraySource:
    """Region features (N, K, D) in memory, as a `matcher.data.RegionSource`."""

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
