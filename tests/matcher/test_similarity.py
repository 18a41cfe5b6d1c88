"""The similarity against the published implementation's numbers, the paper's loop, and its own symmetries."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from matcher.attention import Attention, Normalization, Pooling, attend
from matcher.errors import MatcherError
from matcher.loss import triplet_loss
from matcher.metrics import ranks, recalls
from tests.paper_loop import cross_attention_similarity, paper_similarity

TEMPERATURES = {"t2i": 9.0, "i2t": 4.0}
VARIANTS = [(a, n, p) for a in get_args(Attention) for n in get_args(Normalization) for p in get_args(Pooling)]
options = st.sampled_from(VARIANTS)


def arguments(attention: str, normalization: str, pooling: str) -> dict:
    return {
        "attention": attention,
        "normalization": normalization,
        "pooling": pooling,
        "softmax_temperature": TEMPERATURES[attention],
        "lse_temperature": 6.0,
    }


def random_pair(
    images: int, captions: int, seed: int, longest: int = 9, regions: int = 7
) -> tuple[Tensor, Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(images, regions, 16, generator=generator)
    words = torch.randn(captions, longest, 16, generator=generator)
    lengths = torch.randint(1, longest + 1, (captions,), generator=generator).tolist()
    return torch.nn.functional.normalize(vectors, dim=-1), torch.nn.functional.normalize(words, dim=-1), lengths


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "reference" / "scan_golden.npz"))


@pytest.mark.shared
@pytest.mark.parametrize("variant", VARIANTS, ids="/".join)
def test_similarities_and_losses_are_the_published_ones(
    golden: dict[str, np.ndarray], variant: tuple[str, str, str]
) -> None:
    key = "/".join(variant)
    regions, words, lengths = (torch.from_numpy(golden[name]) for name in ("regions", "words", "lengths"))
    found = cross_attention_similarity(regions, words, lengths, **arguments(*variant))
    np.testing.assert_allclose(found, golden[key], atol=1e-5)
    for rule in ("hardest", "sum"):
        loss = triplet_loss(found[:, ::5], torch.arange(12), margin=0.2, hardest=rule == "hardest")
        np.testing.assert_allclose(loss, golden[f"{key}/{rule}/loss"], rtol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("rule", ["hardest", "sum"])
@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("attention", get_args(Attention))
def test_gradients_are_the_published_ones(
    golden: dict[str, np.ndarray], attention: str, pooling: str, rule: str
) -> None:
    key = f"{attention}/clipped_l2norm/{pooling}/{rule}"
    regions = torch.from_numpy(golden["regions"]).requires_grad_()
    words = torch.from_numpy(golden["words"][::5]).requires_grad_()
    similarity = cross_attention_similarity(
        regions, words, golden["lengths"][::5], **arguments(attention, "clipped_l2norm", pooling)
    )
    triplet_loss(similarity, torch.arange(12), margin=0.2, hardest=rule == "hardest").backward()
    for name, tensor in {"grad_regions": regions, "grad_words": words}.items():
        wanted = golden[f"{key}/{name}"]
        np.testing.assert_allclose(tensor.grad, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.shared
def test_ranks_and_recalls_are_the_published_ones(golden: dict[str, np.ndarray]) -> None:
    similarity = golden["t2i/clipped_l2norm/LogSumExp"]
    found = ranks(similarity, np.arange(60) // 5)
    np.testing.assert_array_equal(found.caption_retrieval, golden["caption_ranks"])
    np.testing.assert_array_equal(found.image_retrieval, golden["image_ranks"])
    metrics = recalls(found)
    for task in ("caption_retrieval", "image_retrieval"):
        one = getattr(metrics, task)
        np.testing.assert_allclose([one.r1, one.r5, one.r10, one.median, one.mean], golden[task], rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids="/".join)
def test_agrees_with_the_paper_and_its_gradients(variant: tuple[str, str, str]) -> None:
    regions, words, lengths = random_pair(5, 6, seed=3)
    results = []
    for function in (cross_attention_similarity, paper_similarity):
        leaves = [regions.clone().requires_grad_(), words.clone().requires_grad_()]
        similarity = function(*leaves, lengths, **arguments(*variant))
        weights = torch.linspace(-1, 1, similarity.numel()).view_as(similarity)  # any scalar of all of them
        (similarity * weights).sum().backward()
        results.append((similarity.detach(), *(leaf.grad for leaf in leaves)))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@given(options, st.integers(1, 5), st.integers(1, 6), st.integers(0, 999), st.data())
def test_padding_order_and_company_change_nothing(
    variant: tuple[str, str, str], images: int, captions: int, seed: int, data: st.DataObject
) -> None:
    regions, words, lengths = random_pair(images, captions, seed)
    whole = cross_attention_similarity(regions, words, lengths, **arguments(*variant))
    assert whole.shape == (images, captions)
    rows, columns = (data.draw(st.permutations(range(size))) for size in (images, captions))
    padded = torch.cat([words, torch.full((captions, 3, 16), 1e6)], dim=1)[columns]
    for column, caption in enumerate(columns):
        padded[column, lengths[caption] :] = torch.nan  # what stands behind a caption is never read
    shuffled = cross_attention_similarity(
        regions[rows], padded, [lengths[caption] for caption in columns], **arguments(*variant)
    )
    torch.testing.assert_close(shuffled, whole[rows][:, columns], atol=1e-6, rtol=1e-6)
    alone = cross_attention_similarity(regions[:1], words[:1], lengths[:1], **arguments(*variant))
    torch.testing.assert_close(alone, whole[:1, :1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", get_args(Attention))
def test_a_caption_of_one_word(attention: str) -> None:
    regions, words, _ = random_pair(3, 1, seed=0)
    found = cross_attention_similarity(regions, words, [1], **arguments(attention, "clipped_l2norm", "Mean"))
    wanted = paper_similarity(regions, words, [1], **arguments(attention, "clipped_l2norm", "Mean"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("variant", VARIANTS, ids="/".join)
def test_zero_vectors_give_finite_scores_and_gradients(variant: tuple[str, str, str]) -> None:
    regions = torch.zeros(2, 3, 4, requires_grad=True)
    words = torch.zeros(2, 5, 4, requires_grad=True)
    similarity = cross_attention_similarity(regions, words, [5, 2], **arguments(*variant))
    similarity.sum().backward()
    assert regions.grad is not None
    assert words.grad is not None
    for tensor in (similarity, regions.grad, words.grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("attention", get_args(Attention))
@pytest.mark.parametrize("normalization", get_args(Normalization))
def test_attention_sums_to_one_over_its_context(attention: Attention, normalization: Normalization) -> None:
    scores = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0))
    weights = attend(scores, attention=attention, normalization=normalization, softmax_temperature=9.0)
    torch.testing.assert_close(
        weights.sum(3 if attention == "t2i" else 1).flatten(), torch.ones(30 if attention == "t2i" else 42)
    )


def test_autocast_keeps_everything_but_the_product_in_float32() -> None:
    regions, words, lengths = random_pair(4, 5, seed=1)
    kwargs = arguments("t2i", "clipped_l2norm", "LogSumExp")
    exact = cross_attention_similarity(regions, words, lengths, **kwargs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_attention_similarity(regions, words, lengths, **kwargs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": torch.zeros(2, 5, 8)}, "with one D"),
        ({"regions": torch.zeros(0, 3, 16)}, "empty"),
        ({"lengths": [1, 2, 3]}, r"expected \(2,\)"),
        ({"lengths": [0, 2]}, r"0\.\.2; expected 1\.\.5"),
        ({"lengths": [6, 2]}, r"2\.\.6; expected 1\.\.5"),
        ({"attention": "image"}, "expected one of t2i, i2t"),
        ({"normalization": "l3norm"}, "expected one of clipped_l2norm"),
        ({"pooling": "LSE"}, "expected one of LogSumExp"),
    ],
)
def test_misuse_is_refused(changes: dict, message: str) -> None:
    call = {"regions": torch.zeros(1, 3, 16), "words": torch.zeros(2, 5, 16), "lengths": [5, 2], "attention": "t2i"}
    with pytest.raises(MatcherError, match=message):
        cross_attention_similarity(**(call | changes))
