"""What every method promises, and each method's equations against a plain loop written from its paper."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matcher.checkpoint import load_model, save_model
from matcher.collection import collection_similarity
from matcher.config import FitConfig, Method, ModelConfig
from matcher.errors import MatcherError
from matcher.fit import fit
from matcher.matcher import Matcher
from matcher.methods import METHODS, make_matcher
from matcher.naaf import NAAF, boundary_between
from matcher.similarity import PaddedWords
from matcher.vocabulary import Vocabulary
from matcher.vse import GeneralizedPooling
from tests.toy import DIMENSIONS, toy_world

WORLD = toy_world(9)
CAPTIONS = ["a dog and a cat", "boat", "the tree is near a ball"]
SMALL = ModelConfig(feature_dim=DIMENSIONS, embed_dim=8, word_dim=6)
VARIANTS = {
    "scan": SMALL,
    "chan": replace(SMALL, matcher="chan", image_attention=True),
    "chan LogSumExp": replace(SMALL, matcher="chan", pooling="LogSumExp", lse_temperature=10.0),
    "vse": replace(SMALL, matcher="vse", image_mlp=True),
    "naaf": replace(SMALL, matcher="naaf", softmax_temperature=20.0),
}
every_method = pytest.mark.parametrize("name", VARIANTS)


def small(name: str) -> Matcher:
    torch.manual_seed(0)
    model = make_matcher(VARIANTS[name], Vocabulary.build(WORLD.captions, 1)).eval()
    if isinstance(model, NAAF):
        model.boundaries.copy_(torch.tensor([0.3, 0.2]))  # as if trained: some words lie below
    return model


def features(images: int = 9) -> Tensor:
    return torch.from_numpy(WORLD.source.gather(np.arange(images))).float()


def test_every_method_has_a_name_and_a_variant_here() -> None:
    assert set(get_args(Method)) == METHODS.keys() == {config.matcher for config in VARIANTS.values()}
    assert [VARIANTS[name].variant for name in ("scan", "vse")] == ["t2i_mean", "vse"]


@every_method
def test_an_image_or_caption_does_not_depend_on_its_neighbours(name: str) -> None:
    model = small(name)
    with torch.inference_mode():
        images, (words, lengths) = model.encode_images(features()), model.encode_captions(CAPTIONS)
        for row, caption in enumerate(CAPTIONS):
            alone, own = model.encode_captions([caption])
            torch.testing.assert_close(words[row, : lengths[row]], alone[0], atol=1e-6, rtol=1e-5)
            assert own == lengths[row]
        torch.testing.assert_close(model.encode_images(features()[3:5]), images[3:5], atol=1e-6, rtol=1e-5)
    assert model.one_vector == (images.shape[1] == 1 == words.shape[1])


@every_method
@settings(deadline=None)  # a model is made in every example
@given(st.permutations(range(4)), st.permutations(range(3)))
def test_padding_order_and_company_change_nothing(name: str, rows: list[int], columns: list[int]) -> None:
    model = small(name)
    with torch.inference_mode():
        images, (words, lengths) = model.encode_images(features(4)), model.encode_captions(CAPTIONS)
        whole = model.similarities(images, PaddedWords(words, lengths))
        padded = torch.cat([words, torch.full((3, 2, 8), 1e6)], dim=1)
        found = model.similarities(images[rows], PaddedWords(padded[columns], lengths[columns]))
        np.testing.assert_allclose(found, whole[rows][:, columns], atol=1e-6)
        alone = model.similarities(images[:1], PaddedWords(words[:1], lengths[:1]))
        np.testing.assert_allclose(alone, whole[:1, :1], atol=1e-6)


@every_method
@pytest.mark.parametrize("budget", [1, 3_000, 10**9])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, budget: int) -> None:
    model = small(name)
    tokens = [model.vocabulary.encode(caption) for caption in WORLD.captions]
    with torch.inference_mode():
        words, _ = model.encode_captions(WORLD.captions)
        lengths = torch.tensor([len(ids) for ids in tokens])  # as training calls it: tokens, whatever the method
        whole = model.similarity(model.encode_images(features()), words, lengths)
    monkeypatch.setattr("matcher.similarity.IMAGE_BLOCK", 4)
    monkeypatch.setattr("matcher.collection.ENCODE_CAPTIONS", 5)
    found = collection_similarity(model, WORLD.source, WORLD.rows, WORLD.captions, memory_budget=budget)
    np.testing.assert_allclose(found, whole, atol=1e-6)


@every_method
def test_an_explanation_is_that_of_the_score(name: str) -> None:
    model = small(name)
    with torch.inference_mode():
        words, lengths = model.encode_captions(CAPTIONS[:1])
        score = model.similarities(model.encode_images(features(3)), PaddedWords(words, lengths))[2, 0]
        found = model.explain(model.image_parts(features(3)[2]), model.caption_parts(CAPTIONS[0]))
    assert found.attention.shape == found.contributions.shape == (7, 5)  # start and end are words too
    assert float(found.score) == pytest.approx(score, abs=1e-6)
    torch.testing.assert_close(found.attention.sum(1), torch.ones(7))
    if model.config.pooling == "Mean":
        torch.testing.assert_close(found.contributions.sum(), found.score)
    else:
        assert found.contributions.sum() <= found.score
    if name != "scan":
        with pytest.raises(MatcherError, match="has t2i attention alone"):
            model.explain(model.image_parts(features(3)[2]), model.caption_parts(CAPTIONS[0]), "i2t")


@every_method
def test_a_photo_is_most_like_itself(name: str) -> None:
    model = small(name)
    with torch.inference_mode():
        images = model.encode_images(features())
        scores = model.similarities(images, PaddedWords(images, [images.shape[1]] * 9), between_photos=True)
    assert scores.argmax(0).tolist() == list(range(9))


@every_method
def test_trains_resumes_bit_for_bit_and_has_a_file(tmp_path: Path, name: str) -> None:
    recipe = FitConfig(
        epochs=3, batch_size=16, learning_rate=5e-3, decay_epochs=(), min_word_count=1, region_dropout=0.3
    )
    dev = toy_world(9, seed=5)
    whole = fit(VARIANTS[name], recipe, toy_world(40), dev, tmp_path / "whole", progress=False)
    fit(VARIANTS[name], replace(recipe, epochs=1), toy_world(40), dev, tmp_path / "parts", progress=False)
    parts = fit(VARIANTS[name], recipe, toy_world(40), dev, tmp_path / "parts", progress=False)
    assert parts.best_rsum == whole.best_rsum > 150  # chance: 122
    models = [load_model(tmp_path / run / "best.safetensors") for run in ("whole", "parts")]
    for left, right in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(left, right)
    save_model(tmp_path / "again.safetensors", models[0])
    assert load_model(tmp_path / "again.safetensors").config == VARIANTS[name]


def test_the_walkthrough_of_contributing_is_a_matcher(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    source = text.split("```python\n")[1].split("```")[0]
    namespace: dict = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), namespace)
    monkeypatch.setitem(METHODS, "scan", namespace["Means"])
    test_padding_order_and_company_change_nothing.hypothesis.inner_test("scan", [2, 0, 3, 1], [1, 2, 0])  # type: ignore[attr-defined]
    test_an_explanation_is_that_of_the_score("scan")


def random_sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    regions = torch.randn(3, 5, 8, generator=generator, dtype=dtype)
    words = torch.randn(4, 6, 8, generator=generator, dtype=dtype)
    return regions, words, torch.tensor([6, 1, 3, 4])


def chan_loop(regions: Tensor, words: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Pan et al. 2023, section 3: pair by pair, word by word."""
    rows = []
    for image in regions:
        row = []
        for caption, length in zip(words, lengths.tolist(), strict=True):
            best = torch.stack([torch.stack([word @ region for region in image]).max() for word in caption[:length]])
            row.append(best.mean() if pooling == "Mean" else (10 * best).exp().sum().log() / 10)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["chan", "chan LogSumExp"])
def test_chan_is_the_papers_loop(name: str) -> None:
    model, (regions, words, lengths) = small(name), random_sets()
    torch.testing.assert_close(
        model.similarity(regions, words, lengths), chan_loop(regions, words, lengths, model.config.pooling)
    )
    regions.requires_grad_()
    words.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, w: model.similarity(r, w, lengths), (regions, words))


def naaf_loop(
    regions: Tensor, words: Tensor, lengths: Tensor, boundary: float, temperature: float, neighbours: float
) -> Tensor:
    """Zhang et al. 2022, section 3.3, pair by pair, with every attended vector built; neighbours 0: as in training."""
    rows = []
    for image in regions:
        row = []
        for caption, length in zip(words, lengths.tolist(), strict=True):
            sentence = caption[:length]
            cosines = sentence @ image.T  # (L, K)
            clipped = torch.nn.functional.leaky_relu(cosines, 0.1)
            relevance = (temperature * clipped / (clipped.pow(2).sum(0).sqrt() + 1e-8)).softmax(1)
            best = cosines.amax(1) - boundary
            effects = []
            for word in range(length):
                effect = (relevance[word] * cosines[word]).sum()
                judged = (neighbours * sentence @ sentence[word]).softmax(0) @ best if neighbours else best[word]
                if judged < 0:
                    effect = effect + best[word]
                above = cosines[word] > boundary
                if above.any():
                    attended = (temperature * cosines[word][above]).softmax(0) @ image[above]
                    effect = effect + torch.cosine_similarity(sentence[word], attended, dim=0)
                effects.append(effect)
            row.append(torch.stack(effects).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [True, False])
def test_naaf_is_the_papers_loop(training: bool) -> None:
    model, (regions, words, lengths) = small("naaf").train(training), random_sets()
    regions, words = (torch.nn.functional.normalize(sets, dim=-1) for sets in (regions, words))
    found = model.similarity(regions, words, lengths)
    wanted = naaf_loop(regions, words, lengths, *((0.3, 20, 0) if training else (0.2, 20, 5)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)  # the boundary itself is float32
    assert torch.autograd.gradcheck(
        lambda r, w: model.train(training).similarity(r, w, lengths),
        (regions.clone().requires_grad_(), words.clone().requires_grad_()),
    )


def test_naaf_learns_where_matched_and_mismatched_words_part() -> None:
    generator = torch.Generator().manual_seed(0)
    matched, mismatched = (m + d * torch.randn(20_000, generator=generator) for m, d in ((0.6, 0.1), (0.2, 0.05)))
    found = float(boundary_between(matched, mismatched))
    densities = [
        float(torch.distributions.Normal(m, d).log_prob(torch.tensor(found)).exp())
        for m, d in ((0.6, 0.1), (0.2, 0.05))
    ]
    assert 0.2 < found < 0.6
    assert densities[0] == pytest.approx(2 * densities[1], rel=0.1)
    model = small("naaf")
    regions, words, lengths = torch.eye(50)[:, None], torch.eye(50)[:, None].repeat(1, 5, 1), torch.full((50,), 5)
    words = words + 0.1 * torch.randn(words.shape, generator=generator)
    model.boundaries.zero_()
    model.observe(regions, words, lengths, torch.eye(50), torch.arange(50))
    assert 0 < model.boundaries[0] < model.boundaries[1] < 0.7  # safe: 1 - 3 x 0.1, times the momentum
    model.observe(
        regions, words, lengths, torch.eye(50).flip(0), torch.arange(50)
    )  # no image ranks first: too few words
    assert not model.boundaries.any()


def gpo_loop(pool: GeneralizedPooling, vectors: Tensor, lengths: Tensor) -> Tensor:
    """Chen et al. 2021, section 3: one set at a time, one dimension at a time."""
    pooled = []
    for one, length in zip(vectors, lengths.tolist(), strict=True):
        encodings = torch.zeros(length, 32, dtype=vectors.dtype)
        for position in range(length):
            for pair in range(16):
                angle = torch.tensor(position / 10_000 ** (2 * pair / 32), dtype=vectors.dtype)
                encodings[position, 2 * pair], encodings[position, 2 * pair + 1] = angle.sin(), angle.cos()
        states = pool.gru(encodings[None])[0][0]  # (length, 64)
        logits = ((states[:, :32] + states[:, 32:]) / 2) @ pool.linear.weight[0]
        weights = (logits / 0.1).softmax(0)
        values = [weights @ one[:length, e].sort(descending=True).values for e in range(vectors.shape[2])]
        pooled.append(torch.stack(values))
    return torch.stack(pooled)


def test_generalised_pooling_is_the_papers_loop() -> None:
    torch.manual_seed(0)
    pool, (_, words, lengths) = GeneralizedPooling().double(), random_sets()
    found = pool(words, lengths)
    torch.testing.assert_close(found, gpo_loop(pool, words, lengths), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pool.shares(words, lengths).sum(1), found)
    torch.testing.assert_close(pool.weights(lengths, words).sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(pool(words[:1, [3, 1, 2, 0, 4, 5]], lengths[:1]), found[:1])  # a set has no order
    assert torch.autograd.gradcheck(lambda w: pool(w, lengths), (words.clone().requires_grad_(),))
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(pool, {"linear.weight": weight}, (words, lengths)),
        (pool.linear.weight.detach().requires_grad_(),),
    )


def test_self_attention_needs_a_fitting_width() -> None:
    with pytest.raises(MatcherError, match="expected a multiple of 8"):
        replace(SMALL, embed_dim=12, image_attention=True)
