"""Pooled vectors: they find what the exact similarity ranks best, where a mean of regions does not."""

from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from matcher.attention import Pooling
from matcher.errors import MatcherError
from matcher.pooled import PooledHead, fit_pooled, fit_pooled_words, query_features
from matcher.similarity import CrossAttention, PaddedWords, similarity_matrix
from tests.toy import drawn_detections, recall_among, recall_among_any

REGIONS, WORDS = drawn_detections(2000, 60, seed=1)
FIT = drawn_detections(600, 300, seed=2)
DIRECTIONS = {"t2i": 9.0, "i2t": 4.0}


def score_of(attention: str, pooling: str = "LogSumExp") -> CrossAttention:
    return CrossAttention(attention, pooling=pooling, softmax_temperature=DIRECTIONS[attention], lse_temperature=5.0)  # type: ignore[arg-type]


def head_of(score: CrossAttention) -> PooledHead:
    return fit_pooled(*FIT, similarity_matrix(*FIT, score))


def scores(head: PooledHead) -> np.ndarray:
    return head.photo_vectors(REGIONS).astype(np.float32) @ head.query_vectors(WORDS).T


@cache  # seconds of computing, which several tests look at
def compared(attention: str, pooling: str) -> tuple[np.ndarray, PooledHead, np.ndarray]:
    """Exact similarities (N, M), the head of such, and what it scores (N, M)."""
    score = score_of(attention, pooling)
    head = head_of(score)
    return similarity_matrix(REGIONS, WORDS, score), head, scores(head)


@pytest.mark.parametrize("attention", DIRECTIONS)
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_candidates_of_detected_regions_hold_the_exact_best_where_means_do_not(attention: str, pooling: str) -> None:
    exact, head, pooled = compared(attention, pooling)
    found = recall_among(exact, pooled, 200)
    means = normalize(REGIONS.mean(1), dim=-1) @ query_features(WORDS, head.codewords)[:, len(head.codewords) :].T
    assert found > recall_among(exact, means.numpy(), 200) + 0.05
    assert found > (0.4 if pooling == "Max" else 0.9)  # one word decides Max, and no sum over words tells which


def test_where_the_best_word_decides_each_word_is_a_query() -> None:
    exact, _, pooled = compared("t2i", "Max")
    head = fit_pooled_words(*FIT)
    found = recall_among(exact, head.best_word_scores(head.photo_vectors(REGIONS), WORDS), 200)
    assert found > recall_among(exact, pooled, 200) + 0.1
    one = PaddedWords(WORDS.words[3:4], WORDS.lengths[3:4])
    vectors = head.photo_vectors(REGIONS[:50])
    np.testing.assert_allclose(
        head.best_word_scores(vectors, one), head.best_word_scores(vectors, WORDS)[:, 3:4], atol=1e-4
    )


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_candidates_of_any_member_hold_the_best_of_an_ensemble(pooling: str) -> None:
    members = [compared(attention, pooling) for attention in DIRECTIONS]
    exact = np.add(*[member[0] for member in members])
    pooled = [member[2] for member in members]
    found = recall_among_any(exact, pooled, 200)
    assert found > recall_among(exact, pooled[0], 200)
    assert found > (0.5 if pooling == "Max" else 0.9)


def test_a_head_is_small_repeatable_and_the_same_from_its_state() -> None:
    _, head, _ = compared("t2i", "LogSumExp")
    vectors = head.photo_vectors(REGIONS)
    assert vectors.dtype == np.int8
    assert vectors.shape == (2000, 256)
    again = PooledHead.of_state(head_of(score_of("t2i")).state())
    assert np.array_equal(again.photo_vectors(REGIONS), vectors)
    np.testing.assert_allclose(again.query_vectors(WORDS), head.query_vectors(WORDS), rtol=1e-6)
    each = np.concatenate([head.photo_vectors(REGIONS[:1]), head.photo_vectors(REGIONS[1:])])
    assert np.abs(each.astype(int) - vectors).max() <= 1  # a photo's vector is its own


def test_vectors_are_in_units_of_the_similarity() -> None:
    exact, _, pooled = compared("t2i", "Mean")
    centred = exact - exact.mean(0), pooled - pooled.mean(0)
    slope = float((centred[0] * centred[1]).sum() / (centred[1] ** 2).sum())
    assert 0.8 < slope < 1.3


@pytest.mark.parametrize("size", [8, 40])
def test_few_words_and_one_region_will_do(size: int) -> None:
    regions, words = _random(size)
    score = score_of("t2i")
    head = fit_pooled(regions, words, similarity_matrix(regions, words, score))
    assert np.isfinite(head.query_vectors(words)).all()
    assert head.photo_vectors(regions).shape[0] == size


def _random(size: int) -> tuple[torch.Tensor, PaddedWords]:
    generator = torch.Generator().manual_seed(size)
    words = PaddedWords(torch.randn(size, 1, 16, generator=generator), [1] * size)
    return torch.randn(size, 1, 16, generator=generator), words


def test_shapes_that_do_not_fit_are_refused() -> None:
    regions, words = _random(8)
    with pytest.raises(MatcherError, match="one number for each pair"):
        fit_pooled(regions, words, np.zeros((3, 8), np.float32))
    with pytest.raises(MatcherError, match="not the arrays of a pooled head"):
        PooledHead.of_state({"codewords": np.zeros((2, 3))})
    state = fit_pooled(regions, words, np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)).state()
    with pytest.raises(MatcherError, match="do not fit each other"):
        PooledHead.of_state(state | {"center": np.zeros(3)})
