"""A model ready to train: its vocabulary from the captions, its starting point from files where it has one."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from matcher.config import FitConfig, ModelConfig
from matcher.encoders import GruEncoder
from matcher.errors import MatcherError
from matcher.matcher import Matcher
from matcher.methods import make_matcher
from matcher.transformer import TransformerEncoder, WordPieces
from matcher.vocabulary import SPECIAL, Vocabulary


def build_model(
    config: ModelConfig,
    recipe: FitConfig,
    captions: Iterable[str],
    report: Callable[[str], Any] = lambda _: None,
) -> Matcher:
    """A model with fresh parameters, drawn from torch's generator.

    Args:
        config: of the model.
        recipe: `min_word_count` and `word_vectors` are read.
        captions: of train and dev; the GRU's vocabulary is built from them.
        report: takes a line on how many words have a vector.

    Raises:
        MatcherError: a text encoder or word vectors that cannot be read.
    """
    if config.classes:
        raise MatcherError(
            "classes: names of classes are added to a trained run (python -m pipeline.starter.add_names)"
        )
    if config.text_encoder != "gru":
        if recipe.word_vectors:
            raise MatcherError(f"word_vectors: {config.text_encoder} brings its own; they are for text_encoder=gru")
        model = make_matcher(config, WordPieces.from_pretrained(config.text_encoder, frozen=config.text_encoder_frozen))
        assert isinstance(model.text_encoder, TransformerEncoder)
        model.text_encoder.load_pretrained(config.text_encoder)
        return model
    vocabulary = Vocabulary.build(captions, recipe.min_word_count)
    model = make_matcher(config, vocabulary)
    if recipe.word_vectors:
        assert isinstance(model.text_encoder, GruEncoder)
        lacking = read_word_vectors(Path(recipe.word_vectors), vocabulary, model.text_encoder.embed.weight)
        found = len(vocabulary) - len(SPECIAL) - len(lacking)
        some = f"; {len(lacking):,} start at random, such as {', '.join(lacking[:3])}" if lacking else ""
        report(f"word vectors: {recipe.word_vectors} has {found:,} words of the vocabulary{some}")
    return model


@torch.no_grad()
def read_word_vectors(path: Path, vocabulary: Vocabulary, weight: torch.Tensor) -> list[str]:
    """Start word embeddings (V, W) from a file of "word number … number" lines (GloVe; some of its words have blanks: ". . .").

    Returns the words that the file lacks, in the vocabulary's order; they keep what they have, as the marks do.

    Raises:
        MatcherError: not readable, vectors of another length, or no word of the vocabulary.
    """
    ids = {word: index for index, word in enumerate(vocabulary.words)}
    found: set[str] = set()
    width = weight.shape[1]
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                word, *values = re.split("[ \t]+", line.rstrip())
                if number == 1 and len(values) == 1:
                    continue  # word2vec's text format opens with counts
                if len(values) > width and not all(map(_is_number, values)):
                    continue  # a word with blanks, which no vocabulary has
                if len(values) != width:
                    raise MatcherError(
                        f"{path}: line {number} has {len(values)} numbers, the embeddings {width}; "
                        f"set model.word_dim={len(values)}, or choose another file"
                    )
                if word in ids:
                    weight[ids[word]] = vector = torch.tensor([float(value) for value in values])
                    if not vector.isfinite().all():
                        raise ValueError("numbers that are not finite")
                    found.add(word)
    except OSError as error:
        raise MatcherError(f"{path}: word vectors not readable ({error})") from error
    except UnicodeDecodeError as error:
        raise MatcherError(
            f"{path}: no text; unpack word vectors that are compressed, and write word2vec's .bin as text"
        ) from error
    except ValueError as error:
        if isinstance(error, MatcherError):
            raise
        raise MatcherError(f"{path}: line {number} is damaged ({error}); expected a word and its numbers") from error
    if not found:
        raise MatcherError(f"{path}: no word of the vocabulary in it; expected lines of a word and its numbers")
    return [word for word in vocabulary.words[len(SPECIAL) :] if word not in found]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
