"""Pooled vectors of real photos: windows of Flickr8k, with models that were trained for a moment."""

from pathlib import Path

import numpy as np
import pytest
import torch

from matcher.collection import EncodedCaptions, EncodedImages
from matcher.config import ModelConfig
from matcher.loss import infonce_loss
from matcher.matcher import pad
from matcher.pooled import fit_pooled, fit_pooled_words
from matcher.scan import SCAN
from matcher.similarity import CrossAttention, similarity_matrix
from matcher.vocabulary import Vocabulary
from tests.toy import ArraySource, recall_among

STEPS, BATCH = 150, 64


def trained(features: np.ndarray, captions: list[str], attention: str) -> SCAN:
    """A model after a moment of training: five captions a photo, (N, K, D)."""
    torch.manual_seed(0)
    config = ModelConfig(attention=attention, feature_dim=192, embed_dim=128, word_dim=100, softmax_temperature=6.0)
    model, rng = SCAN(config, Vocabulary.build(captions)), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(STEPS):
        photos = rng.choice(len(features), BATCH, replace=False)
        texts = [captions[5 * photo + rng.integers(5)] for photo in photos]
        tokens, lengths = pad([model.vocabulary.encode(text) for text in texts])
        regions = model.encode_images(torch.from_numpy(features[photos]).float())
        similarity = model.similarity(regions, model.encode_tokens(tokens, lengths), lengths)
        optimizer.zero_grad()
        infonce_loss(similarity, torch.arange(BATCH), scale=15.0).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["t2i", "i2t"])
def test_candidates_hold_the_exact_best(shared: Path, attention: str) -> None:
    folder = shared / "data/flickr8k"
    features, dev = (np.load(folder / f"{split}_ims.npy", mmap_mode="r") for split in ("train", "dev"))
    captions, held_out = ((folder / f"{split}_caps.txt").read_text().splitlines() for split in ("train", "dev"))
    model = trained(features, captions, attention)
    gallery = np.concatenate([features[3000:], dev])
    regions = EncodedImages(model, ArraySource(gallery), np.arange(len(gallery)))[0 : len(gallery)]
    some = regions[np.random.default_rng(1).choice(len(gallery), 800, replace=False)]
    words = EncodedCaptions(model, captions[3::25][:600])
    head = fit_pooled(some, words, model.similarities(some, words))
    asked = EncodedCaptions(model, held_out[::100])
    exact = model.similarities(regions, asked)
    pooled = head.photo_vectors(regions).astype(np.float32) @ head.query_vectors(asked).T
    own = np.argsort(-exact[3000:, :], axis=0)[:100]
    print({count: recall_among(exact, pooled, count) for count in (50, 100, 200, 500)}, "of", len(gallery))
    assert np.mean([(20 * m in own[:, m]) for m in range(exact.shape[1])]) > 0.5  # it has learned something
    assert recall_among(exact, pooled, 100) > 0.97
    if attention == "t2i":  # where the best word decides
        best_word = CrossAttention("t2i", pooling="Max", softmax_temperature=6.0)
        exact, head = similarity_matrix(regions, asked, best_word), fit_pooled_words(some, words)
        assert recall_among(exact, head.best_word_scores(head.photo_vectors(regions), asked), 100) > 0.97
