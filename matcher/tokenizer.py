"""Penn Treebank tokens, as the original code's captions went through (it ran NLTK's word tokeniser).

The conventions: punctuation stands apart, except inside words and numbers ("2,000", "t.v."); a period leaves its word
only at the end of a sentence; clitics are split off ("dog's" -> "dog 's", "isn't" -> "is n't"); a double quote becomes
`` where it opens and '' where it closes.
"""

import re

_APART = r"\s\"`«»“”„‘’;@#$%&?!*\[\](){}<>"
_TOKEN = re.compile(
    rf"""
    \.{{2,}}                                  # an ellipsis
  | --+?                                      # a dash
  | (?:(?!--|\.\.|'')[^{_APART}:,])+             # a run of ordinary characters, with a colon or comma …
    (?:[:,](?=\d)(?:(?!--|\.\.|'')[^{_APART}:,])+)*  # … only where a digit follows
  | ''
  | ``?
  | \S
    """,
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"(?<=[.?!])(?<!\b\w\.)\s+(?=[^\s'\")\]}”’])")  # not after "t.v.", nor before what closes
_CLITIC = re.compile(r"(?<=[^' ])('s|'m|'d|'ll|'re|'ve|n't|')\Z")
_LONGEST_CLITIC = 3
_CLOSING = frozenset("'\")]}>”’»")
_TWO_WORDS = {
    "cannot": ["can", "not"],
    "d'ye": ["d", "'ye"],
    "gimme": ["gim", "me"],
    "lemme": ["lem", "me"],
    "gonna": ["gon", "na"],
    "wanna": ["wan", "na"],
    "gotta": ["got", "ta"],
    "'tis": ["'t", "is"],
    "'twas": ["'t", "was"],
}
_LONGEST_OF_TWO = max(map(len, _TWO_WORDS))


def tokenize(caption: str) -> list[str]:
    """Lower-cased Treebank tokens of a caption: "A dog's ball." -> ["a", "dog", "'s", "ball", "."]."""
    return [token for sentence in _SENTENCE_END.split(caption.lower().strip()) for token in _sentence(sentence)]


def _sentence(text: str) -> list[str]:
    tokens: list[str] = []
    matches = list(_TOKEN.finditer(text))
    # The sentence's own period: nothing but closing marks may follow it.
    last = len(matches) - 1
    while last > 0 and matches[last].group() in _CLOSING:
        last -= 1
    for number, match in enumerate(matches):
        word = match.group()
        if word in ('"', "''"):
            tokens.append("``" if _opens(text, match.start()) else "''")
            continue
        period = number >= last and len(word) > 1 and word.endswith(".") and not word.endswith("..")
        tokens += [*_split_clitics(word[:-1]), "."] if period else _split_clitics(word)
    return tokens


def _opens(text: str, position: int) -> bool:
    """Whether the double quote at a position opens a quotation."""
    return position == 0 or text[position - 1] in " ([{<"


def _split_clitics(word: str) -> list[str]:
    clitics: list[str] = []
    end = len(word)
    while end > _LONGEST_OF_TWO or word[:end] not in _TWO_WORDS:
        match = _CLITIC.search(word, max(0, end - _LONGEST_CLITIC), end)
        if not match:
            break
        clitics.append(match[1])
        end = match.start()
    word = word[:end]
    return [*_TWO_WORDS.get(word, [word]), *reversed(clitics)]
