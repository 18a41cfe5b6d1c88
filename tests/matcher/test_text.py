"""Tokens and vocabularies."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matcher.errors import MatcherError
from matcher.tokenizer import tokenize
from matcher.vocabulary import SPECIAL, Vocabulary


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("Two dogs play by a tree.", "two dogs play by a tree ."),
        ("A man's dog isn't here", "a man 's dog is n't here"),
        ("the dogs' bowl", "the dogs ' bowl"),
        ("2,000 people at 5:30 p.m.", "2,000 people at 5:30 p.m ."),
        ("A t.v. set", "a t.v. set"),
        ("red, white and blue", "red , white and blue"),
        ('a "stop" sign', "a `` stop '' sign"),
        ("cannot wait... really?!", "can not wait ... really ? !"),
        ("one. Two.", "one . two ."),
        ("A black-and-white (spotted) cow", "a black-and-white ( spotted ) cow"),
        ("rock & roll -- loud", "rock & roll -- loud"),
        ("café crème 犬", "café crème 犬"),
        ("", ""),
        ("  \n ", ""),
    ],
)
def test_treebank_conventions(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@given(st.text())
def test_any_text_gives_tokens_without_spaces(text: str) -> None:
    for token in tokenize(text):
        assert token
        assert token.split() == [token]


@pytest.mark.parametrize(
    "text",
    ["dog's " * 20_000, "'s" * 50_000, "it's" * 30_000, ") " * 50_000, '"' * 50_000, "a" * 300_000, "a. " * 50_000],
)
def test_time_grows_with_length_and_no_faster(text: str) -> None:
    """Twice the text takes no more than about twice the time, and no length ends in a recursion."""

    def seconds(length: int) -> float:
        started = time.process_time()
        tokenize(text[:length])
        return time.process_time() - started

    half, full = (min(seconds(length) for _ in range(3)) for length in (len(text) // 2, len(text)))
    assert full < 3 * half + 0.05


@pytest.mark.shared
@pytest.mark.parametrize("name", ["coco_precomp", "f30k_precomp"])
def test_agrees_with_nltk_on_published_captions(shared: Path, name: str) -> None:
    """The original code tokenised with NLTK. Compared per sentence, as NLTK's sentence splitter needs a download."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    from matcher.tokenizer import _SENTENCE_END

    captions = next((shared / "data/scan" / name).glob("*_caps.txt")).read_text().splitlines()
    nltk = NLTKWordTokenizer()
    differing = 0
    for caption in captions:
        sentences = _SENTENCE_END.split(caption.lower().strip())
        differing += tokenize(caption) != [token for text in sentences for token in nltk.tokenize(text)]
    assert differing <= 2


@pytest.mark.shared
@pytest.mark.parametrize(("name", "size"), [("coco_precomp", 11_353), ("f30k_precomp", 8_481)])
def test_published_vocabularies_load_and_know_their_captions(shared: Path, name: str, size: int) -> None:
    vocabulary = Vocabulary.from_json(shared / "data/scan" / f"{name}_vocab.json")
    assert len(vocabulary) == size
    captions = next((shared / "data/scan" / name).glob("*_caps.txt")).read_text().splitlines()
    ids = [token for caption in captions for token in vocabulary.encode(caption)]
    assert ids.count(3) / len(ids) < 0.01  # unknown


def test_vocabulary_orders_by_count_then_name() -> None:
    vocabulary = Vocabulary.build(["b a", "b a c", "b d"], min_count=1)
    assert vocabulary.words == [*SPECIAL, "b", "a", "c", "d"]
    assert Vocabulary.build(["b a", "b a c", "b d"], min_count=2).words == [*SPECIAL, "b", "a"]
    assert vocabulary.encode("A b zebra") == [1, 5, 4, 3, 2]
    assert vocabulary.word_positions("A b zebra") == [("a", [1]), ("b", [2]), ("zebra", [3])]
    assert "d" in vocabulary
    assert "e" not in vocabulary


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a", "b", "c", "d"], "starts with"), ([*SPECIAL, "a", "a"], "only 5 different")],
)
def test_broken_vocabularies_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(MatcherError, match=message):
        Vocabulary(words)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}"),
        *(
            json.dumps({"word2idx": ids})
            for ids in ({"<pad>": 7}, {"a": "x"}, {"a": 0, "b": 0}, {"a": 0, "b": -1}, [0])
        ),
        json.dumps({"word2idx": {"a": 0, "b": 1}, "idx2word": {"0": "b", "1": "a"}}),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "v.json"
    path.write_text(content)
    with pytest.raises(MatcherError, match=r"v\.json: not a vocabulary"):
        Vocabulary.from_json(path)


def test_the_nearest_spelling_of_a_few_words_is_looked_up() -> None:
    """It takes milliseconds a word, and a sentence may be made of nothing else."""
    signs = Vocabulary([*SPECIAL, "house", "."]).unknown("house ☕ & “house” € 5.")
    assert list(signs) == ["☕", "&", "“", "”", "€", "5"]  # each is read as an unknown word is
    found = Vocabulary([*SPECIAL, "house"]).unknown(" ".join(f"hous{letter}" for letter in "abcdfghi"))
    assert list(found.values()) == ["house"] * 4 + [""] * 4


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(MatcherError, match="no word appears 3 times in the captions; lower training"):
        Vocabulary.build(["a dog", "a cat"], min_count=3)
