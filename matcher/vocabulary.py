"""The words a model knows: ids pad 0, start 1, end 2, unknown 3, then the words."""

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from configs.files import parse_json
from matcher.errors import MatcherError
from matcher.tokenizer import tokenize

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
PUNCTUATION = ".,!?;:'\"-()"  # of sentences, of which nobody asks whether it is known
NEAR = 0.75  # likeness of a spelling that is suggested, as difflib measures it
LOOKED_UP = 4  # unknown words of a caption whose nearest is found: each takes 30 milliseconds
MIN_COUNT = 4  # as published: rarer words are unknown


class Vocabulary:
    """Captions -> token ids. Immutable; travels inside every checkpoint."""

    def __init__(self, words: Sequence[str]):
        if tuple(words[:4]) != SPECIAL:
            raise MatcherError(f"vocabulary starts with {list(words[:4])}; expected {list(SPECIAL)}")
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            raise MatcherError(f"vocabulary of {len(self.words)} words has only {len(self._ids)} different ones")

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = MIN_COUNT) -> "Vocabulary":
        """The words that appear at least `min_count` times, most frequent first, then alphabetically.

        Raises:
            MatcherError: none does, so that all captions would be the same.
        """
        counts = Counter(token for caption in captions for token in tokenize(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        words = [word for word in kept if word not in SPECIAL]
        if not words:
            raise MatcherError(f"no word appears {min_count} times in the captions", "lower training.min_word_count")
        return cls([*SPECIAL, *words])

    @classmethod
    def from_json(cls, path: Path | str) -> "Vocabulary":
        """Read a vocabulary file of the original code: keys `word2idx`, `idx2word`, `idx`.

        Raises:
            MatcherError: not readable, or not such a file.
        """
        try:
            content = parse_json(Path(path).read_text())
            ids: dict[str, int] = content["word2idx"]
            if sorted(ids.values()) != list(range(len(ids))):  # else a word would be read as another
                raise ValueError("ids that are missing or stand twice")
            words = sorted(ids, key=ids.__getitem__)
            back = {str(number): word for number, word in enumerate(words)}
            if (content.get("idx2word") or back) != back:
                raise ValueError("word2idx and idx2word contradict each other")
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise MatcherError(
                f"{path}: not a vocabulary ({error}); expected JSON with word2idx, ids 0..n-1"
            ) from error
        return cls(words)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        return {"words": self.words}

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def encode(self, caption: str) -> list[int]:
        """Token ids of a caption, wrapped in start and end, which take part in the attention as published."""
        return [START, *(self._ids.get(token, UNKNOWN) for token in tokenize(caption)), END]

    def word_positions(self, caption: str) -> list[tuple[str, list[int]]]:
        """The words of a caption, for showing them, and where in `encode` each is; start and end are no words."""
        return [(word, [position]) for position, word in enumerate(tokenize(caption), start=1)]

    def is_cut(self, caption: str) -> bool:
        """Whether the end of a caption is left out: never."""
        return False

    def known(self, caption: str) -> list[str]:
        """The words of a caption that the model knows, punctuation apart."""
        return [token for token in tokenize(caption) if any(map(str.isalnum, token)) and token in self]

    def unknown(self, caption: str) -> dict[str, str]:
        """The words and signs of a caption that the model does not know, each with the nearest spelling that it does, or ""."""
        unknown = dict.fromkeys(token for token in tokenize(caption) if token.strip(PUNCTUATION) and token not in self)
        candidates = self.words[len(SPECIAL) :]
        looked_up = set(list(unknown)[:LOOKED_UP])
        near = {word: get_close_matches(word, candidates, n=1, cutoff=NEAR) for word in looked_up}
        return {word: next(iter(near.get(word, ())), "") for word in unknown}
