"""Encoders, the model as a whole, and its file."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from matcher.attention import Attention, Pooling
from matcher.checkpoint import load_model, save_model
from matcher.collection import collection_similarity
from matcher.config import ModelConfig
from matcher.errors import MatcherError
from matcher.matcher import pad
from matcher.scan import SCAN
from matcher.similarity import CrossAttention, PaddedWords, similarity_matrix
from matcher.vocabulary import Vocabulary
from tests.paper_loop import cross_attention_similarity
from tests.toy import DIMENSIONS, toy_world

SMALL = {"feature_dim": DIMENSIONS, "embed_dim": 8, "word_dim": 6}
CAPTIONS = ["a dog and a cat", "boat", "the tree is near a ball"]


def small_model(**changes: object) -> SCAN:
    torch.manual_seed(0)
    return SCAN(ModelConfig(**(SMALL | changes)), Vocabulary.build(toy_world().captions, 1)).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_embeddings_do_not_depend_on_their_neighbours(bidirectional: bool, norm: bool) -> None:
    model = small_model(bidirectional=bidirectional, text_norm=norm, num_layers=2)
    with torch.inference_mode():
        words, lengths = model.encode_captions(CAPTIONS)
        assert lengths.tolist() == [7, 3, 8]
        assert words.shape == (3, 8, 8)
        for row, caption in enumerate(CAPTIONS):
            alone, _ = model.encode_captions([caption])
            torch.testing.assert_close(words[row, : lengths[row]], alone[0], atol=1e-6, rtol=1e-5)
            assert not words[row, lengths[row] :].any()
    if norm:
        torch.testing.assert_close(words[1, :3].norm(dim=-1), torch.ones(3))


def test_word_embeddings_are_the_mean_of_both_directions() -> None:
    model = small_model(text_norm=False)
    tokens, lengths = pad([model.vocabulary.encode("a dog")])
    encoder = model.text_encoder
    outputs = encoder.rnn(encoder.embed(tokens))[0]
    torch.testing.assert_close(encoder(tokens, lengths), (outputs[..., :8] + outputs[..., 8:]) / 2)


def test_image_layer_norms_or_not() -> None:
    features = torch.randn(2, 5, DIMENSIONS)
    torch.testing.assert_close(small_model().encode_images(features).norm(dim=-1), torch.ones(2, 5))
    raw = small_model(image_norm=False)
    torch.testing.assert_close(raw.encode_images(features), features @ raw.image_encoder.fc.weight.T)
    weighted = small_model(image_weight_norm=True)
    magnitude = weighted.image_encoder.fc.parametrizations.weight.original0
    assert magnitude.numel() == 1  # one length for the whole matrix


@pytest.mark.parametrize("attention", ["t2i", "i2t"])
def test_attention_is_what_the_similarity_is_made_of(attention: str) -> None:
    model = small_model(attention=attention)
    world = toy_world(3)
    with torch.inference_mode():
        regions = model.encode_images(torch.from_numpy(world.source.gather(world.rows)).float())
        words, lengths = model.encode_captions(CAPTIONS)
        similarity = model.similarity(regions, words, lengths)
        sentence = words[0, : lengths[0]]
        weights = model.explain(regions[1], sentence).attention  # (L, K)
        queries, attended = (
            (sentence, weights @ regions[1]) if attention == "t2i" else (regions[1], weights.T @ sentence)
        )
        score = torch.cosine_similarity(queries, attended, dim=-1).mean()
        parts = model.explain(regions[1], sentence).contributions  # (L, K)
        per_query = parts.sum(1 if attention == "t2i" else 0)
    torch.testing.assert_close(score, similarity[1, 0])
    torch.testing.assert_close(model.explain(regions[1], sentence).score, similarity[1, 0])
    torch.testing.assert_close(per_query, torch.cosine_similarity(queries, attended, dim=-1) / len(queries))
    torch.testing.assert_close(
        weights.sum(1 if attention == "t2i" else 0).sum(),
        torch.tensor(float(len(queries) if attention == "t2i" else 5)),
    )


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_contributions_add_up_to_the_score(pooling: str, direction: Attention) -> None:
    model, world = small_model(attention="t2i", pooling=pooling), toy_world(3)
    with torch.inference_mode():
        regions = model.encode_images(torch.from_numpy(world.source.gather(world.rows)).float())
        words, lengths = model.encode_captions(CAPTIONS)
        score, _, _ = model.explain(regions[2], words[0, : lengths[0]], direction)
        sentence = words[0, : lengths[0]]
        parts = model.explain(regions[2], sentence, direction).contributions
        attention = model.explain(regions[2], sentence, direction).attention
    assert model.config.attention == "t2i"  # asking for the other direction changes nothing of the model
    context = 1 if direction == "t2i" else 0
    torch.testing.assert_close(attention.sum(context), torch.ones(parts.shape[1 - context]))
    if pooling != "LogSumExp":
        torch.testing.assert_close(parts.sum(), score)
    else:  # a weighted mean of the cosines: no more than the largest, which LogSumExp is at least
        assert parts.sum() <= score


def test_few_words_and_many_give_the_same_scores() -> None:
    """Words fewer than regions take the way of the attended vectors, more that of the Gram matrices."""
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(6, 12, 8, generator=generator), torch.randn(5, 4, 8, generator=generator)
    lengths = [4, 3, 4, 1, 2]  # 14 words together
    together = cross_attention_similarity(regions, words, lengths, attention="t2i")
    for caption in range(5):
        alone = cross_attention_similarity(
            regions, words[caption : caption + 1], lengths[caption : caption + 1], attention="t2i"
        )
        torch.testing.assert_close(alone[:, 0], together[:, caption], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ["t2i", "i2t"])
@pytest.mark.parametrize("budget", [1, 3_000, 10**9])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, attention: str, budget: int) -> None:
    model, world = small_model(attention=attention), toy_world(9)
    with torch.inference_mode():
        regions = model.encode_images(torch.from_numpy(world.source.gather(world.rows)).float())
        words, lengths = model.encode_captions(world.captions)
        whole = model.similarity(regions, words, lengths)
    padded = PaddedWords(words, lengths)
    found = model.similarities(regions, padded, memory_budget=budget)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert isinstance(found, np.memmap) == (budget < 9 * 18 * 4)
    monkeypatch.setattr("matcher.similarity.IMAGE_BLOCK", 4)
    monkeypatch.setattr("matcher.collection.ENCODE_CAPTIONS", 5)
    found = collection_similarity(model, world.source, world.rows, world.captions, memory_budget=budget)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    some = collection_similarity(model, world.source, world.rows[3:5], world.captions[:4], memory_budget=budget)
    np.testing.assert_allclose(some, whole[3:5, :4], atol=1e-6)
    assert collection_similarity(model, world.source, world.rows, []).shape == (9, 0)


def test_a_result_can_be_given(tmp_path: Path) -> None:
    regions, words = torch.randn(5, 3, 4), torch.randn(6, 7, 4)
    out = np.lib.format.open_memmap(tmp_path / "s.npy", "w+", np.float32, (5, 6))
    found = similarity_matrix(regions, PaddedWords(words, [7, 1, 2, 2, 5, 6]), CrossAttention("t2i"), out=out)
    assert found is out
    out.flush()
    wanted = cross_attention_similarity(regions, words, [7, 1, 2, 2, 5, 6], attention="t2i")
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), wanted, atol=1e-6)


def test_a_model_file_carries_everything(tmp_path: Path) -> None:
    model = small_model(attention="i2t", pooling="LogSumExp", image_weight_norm=True)
    save_model(tmp_path / "m.safetensors", model)
    found = load_model(tmp_path / "m.safetensors")
    assert found.config == model.config
    assert found.vocabulary.words == model.vocabulary.words
    with torch.inference_mode():
        torch.testing.assert_close(found.encode_captions(CAPTIONS)[0], model.encode_captions(CAPTIONS)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_damaged_model_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(MatcherError, match="not readable as a model"):
        load_model(path)
    save_model(path, small_model())
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-7], b"no model at all, but long enough to look like one"):
        path.write_bytes(content)
        with pytest.raises(MatcherError, match="not readable as a model"):
            load_model(path)
    from safetensors.torch import save

    path.write_bytes(save({"weight": torch.zeros(2)}))
    with pytest.raises(MatcherError, match="without this project's metadata"):
        load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "both"}, "expected one of t2i, i2t"),
        ({"embed_dim": 0}, "embed_dim 0: expected at least 1"),
        ({"softmax_temperature": 0.0}, "expected more than 0"),
    ],
)
def test_configurations_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        ModelConfig(**changes)
