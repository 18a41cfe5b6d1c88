"""Checkpoints of VSE∞ and CHAN, made here with the names that their code gives, against a plain forward of their equations."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel

from matcher.errors import MatcherError
from matcher.original import load_original, read_vocabulary
from matcher.transformer import WordPieces
from matcher.vocabulary import SPECIAL, Vocabulary
from tests.matcher.test_methods import chan_loop, gpo_loop
from tests.matcher.test_original import Evil

D, E, H = 12, 8, 16  # features, joint space, BERT
CAPTIONS = ["a dog", "the tree is near a ball"]
FEATURES = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(1))
CHAN = {"coding_type": "VHACoding", "pooling_type": "LSEPooling", "belta": 0.1, "alpha": None}


class PublishedPool(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.linear = nn.GRU(32, 32, batch_first=True, bidirectional=True), nn.Linear(32, 1, bias=False)


class PublishedMLP(nn.Module):
    def __init__(self, width: int, hidden: int, output: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, output)])
        self.bns = nn.ModuleList([nn.BatchNorm1d(hidden), nn.BatchNorm1d(output)])


def vse_image(features: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    image = nn.Module()
    image.fc, image.mlp, image.gpool = (
        nn.Linear(features, width),
        PublishedMLP(features, width // 2, width),
        PublishedPool(),
    )
    image.mlp.bns[0].running_mean.normal_()
    image.mlp.bns[0].running_var.uniform_(0.5, 2)
    return image.eval()


def vse_text(bert: str) -> nn.Module:
    text = nn.Module()
    text.bert, text.linear, text.gpool = BertModel.from_pretrained(bert), nn.Linear(H, E), PublishedPool()
    return text.eval()


def write(path: Path, states: list[dict[str, Tensor]], **options: Any) -> Path:
    content = {"epoch": 24, "model": states, "best_rsum": 513.5, "opt": argparse.Namespace(**options), "Eiters": 1}
    torch.save(content, path)
    return path


def normalized(vectors: Tensor) -> Tensor:
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-8)


def bert_states(text: nn.Module, captions: list[str], pieces: WordPieces) -> tuple[Tensor, Tensor]:
    """Projected states (M, L, E), padded, and lengths."""
    ids = [torch.tensor(pieces.encode(caption)) for caption in captions]
    tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    states = text.bert(tokens, attention_mask=(tokens != 0).float())[0]
    return text.linear(states), torch.tensor([len(row) for row in ids])


def test_vse_gives_the_published_similarities(tmp_path: Path, tiny_bert: str) -> None:
    image, text = vse_image(D, E), vse_text(tiny_bert)
    state = text.state_dict() | {
        "bert.embeddings.position_ids": torch.arange(32)[None]
    }  # as older transformers kept it
    path = write(tmp_path / "model_best.pth", [image.state_dict(), state], no_imgnorm=False, no_txtnorm=False)
    pieces = read_vocabulary(tiny_bert)
    found = load_original(path, pieces, tiny_bert)
    assert (found.model.config.variant, found.epoch, found.best_rsum) == ("vse", 24, 513.5)
    with torch.inference_mode():
        flat = FEATURES.flatten(0, 1)
        hidden = image.mlp.bns[0](image.mlp.layers[0](flat)).relu()
        regions = (image.fc(flat) + image.mlp.layers[1](hidden)).view(3, 5, E)
        words, lengths = bert_states(text, CAPTIONS, pieces)
        left = normalized(gpo_loop(image.gpool, regions, torch.full((3,), 5)))
        right = normalized(gpo_loop(text.gpool, words, lengths))
        ours = found.model.similarity(found.model.encode_images(FEATURES), *found.model.encode_captions(CAPTIONS))
    torch.testing.assert_close(ours, left @ right.T, atol=1e-5, rtol=1e-5)


def test_names_and_shapes_of_the_published_vse_are_known(tmp_path: Path, tiny_bert: str) -> None:
    image = vse_image(2048, 1024).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in image.items()}
    assert shapes["mlp.layers.0.weight"] == (512, 2048)
    assert shapes["gpool.gru.weight_hh_l0_reverse"] == (96, 32)
    text = vse_text(tiny_bert)
    text.linear = nn.Linear(H, 1024)
    path = write(tmp_path / "model_best.pth", [image, text.state_dict()], data_name="f30k")
    config = load_original(path, read_vocabulary(tiny_bert), tiny_bert).model.config
    assert (config.feature_dim, config.embed_dim, config.image_mlp, config.text_encoder) == (
        2048,
        1024,
        True,
        tiny_bert,
    )
    with pytest.raises(MatcherError, match="expected its BERT, such as bert-base-uncased"):
        load_original(path, Vocabulary(SPECIAL))


def chan_gru_states() -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    image = {f"fc.{name}": tensor for name, tensor in nn.Linear(D, E).state_dict().items()}
    image |= {f"feedforward.ln.{name}": tensor for name, tensor in nn.LayerNorm(E).state_dict().items()}
    attention = nn.MultiheadAttention(E, 8, batch_first=True).state_dict()
    image |= {f"feedforward.attn.{name}": tensor for name, tensor in attention.items()}
    text = {"embed.weight": torch.randn(8, 6)}
    text |= {f"rnn.{name}": tensor for name, tensor in nn.GRU(6, E, bidirectional=True).state_dict().items()}
    text |= {f"fc.{name}": tensor for name, tensor in nn.Linear(E, E).state_dict().items()}
    return [image, text, {}, {}]


def attended(image: dict[str, Tensor], regions: Tensor) -> Tensor:
    """One pre-norm self-attention block of 8 heads with its residual, head by head."""
    normed = nn.functional.layer_norm(regions, (E,), image["feedforward.ln.weight"], image["feedforward.ln.bias"])
    weight, bias = image["feedforward.attn.in_proj_weight"], image["feedforward.attn.in_proj_bias"]
    queries, keys, values = (normed @ weight.T + bias).chunk(3, dim=-1)
    heads = []
    for head in range(8):
        q, k, v = (part[..., head : head + 1] for part in (queries, keys, values))  # E = 8: one number a head
        heads.append((q @ k.mT).softmax(-1) @ v)
    return (
        regions
        + torch.cat(heads, -1) @ image["feedforward.attn.out_proj.weight"].T
        + image["feedforward.attn.out_proj.bias"]
    )


def test_chan_with_a_gru_gives_the_published_similarities(tmp_path: Path) -> None:
    states, vocabulary = chan_gru_states(), Vocabulary([*SPECIAL, "a", "dog", "tree", "ball"])
    found = load_original(write(tmp_path / "m.pth", states, **CHAN), vocabulary).model
    assert (found.config.variant, found.config.lse_temperature, found.config.image_attention) == ("chan", 10.0, True)
    with torch.inference_mode():
        regions = normalized(attended(states[0], FEATURES @ states[0]["fc.weight"].T + states[0]["fc.bias"]))
        torch.testing.assert_close(found.encode_images(FEATURES), regions)
        words, lengths = found.encode_captions(CAPTIONS)  # the GRU is SCAN's: tests/matcher/test_original.py
        ours = found.similarity(regions, words, lengths)
    torch.testing.assert_close(ours, chan_loop(regions, words, lengths, "LogSumExp"), atol=1e-6, rtol=1e-5)


def test_the_word_that_their_code_adds_to_the_vocabulary_file_is_added(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", chan_gru_states(), **CHAN)  # embeds 8 words
    found = load_original(path, Vocabulary([*SPECIAL, "a", "dog", "tree"])).model.vocabulary
    assert isinstance(found, Vocabulary)
    assert found.words == [*SPECIAL, "a", "dog", "tree", "<mask>"]
    with pytest.raises(MatcherError, match="embeds 8 words, the vocabulary has 6"):
        load_original(path, Vocabulary([*SPECIAL, "a", "dog"]))


def test_chan_with_bert_gives_the_published_similarities(tmp_path: Path, tiny_bert: str) -> None:
    torch.manual_seed(0)
    image, text = nn.Linear(D, E), vse_text(tiny_bert)
    del text.gpool
    states = [{f"fc.{name}": tensor for name, tensor in image.state_dict().items()}, text.state_dict(), {}, {}]
    path = write(tmp_path / "m.pth", states, **CHAN | {"pooling_type": "MeanPooling"})
    pieces = read_vocabulary(tiny_bert)
    found = load_original(path, pieces, tiny_bert).model
    with torch.inference_mode():
        words, lengths = bert_states(text, CAPTIONS, pieces)
        wanted = chan_loop(normalized(image(FEATURES)), normalized(words), lengths, "Mean")
        ours = found.similarity(found.encode_images(FEATURES), *found.encode_captions(CAPTIONS))
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_what_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = Vocabulary([*SPECIAL, "a", "dog", "tree", "ball"])
    with pytest.raises(MatcherError, match="CHAN with THACoding and LSEPooling; expected VHACoding"):
        load_original(write(tmp_path / "m.pth", chan_gru_states(), **CHAN | {"coding_type": "THACoding"}), vocabulary)
    image, *rest = chan_gru_states()
    transformer = image | {"feedforward.mlp.c_fc.weight": torch.zeros(4, E)}
    with pytest.raises(MatcherError, match="tensors do not fit its options"):
        load_original(write(tmp_path / "m.pth", [transformer, *rest], **CHAN), vocabulary)
    with pytest.raises(MatcherError, match="refused: it holds more than tensors and options"):
        load_original(write(tmp_path / "m.pth", chan_gru_states(), **CHAN, more=Evil()), vocabulary)
    assert "code was run" not in capsys.readouterr().out
