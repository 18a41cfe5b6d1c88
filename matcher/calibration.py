"""When is a match weak? Scores of held-out sentences tell how high photos score that have nothing to do with a query.

A score means little by itself: among many photos, some unrelated one scores high by chance. So the share of unrelated pairs that
reach a score, times the number of photos searched, is what counts: how many photos chance alone would put that high. Of captions
for a photo the same counts: an unrelated pair is one whichever side asks.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import json_sha256
from matcher.errors import MatcherError

FILE = "calibration.json"  # in a run folder
BY_CHANCE = 2.0  # unrelated photos, or captions, that score as high as a weak match; of the starter, one would mark twice as many right matches
LEAST_SHARE = 0.05  # of unrelated pairs, which reach a score that tells nothing, however few are searched
MOST = 1000  # a collection larger than this holds related photos to most sentences: no more is asked of them
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4)  # shares of the unrelated pairs


@dataclass(frozen=True)
class Calibration:
    """How unrelated pairs of photo and sentence score, and how right pairs do."""

    shares: tuple[float, ...]  # falling, of the unrelated pairs that reach …
    scores: tuple[float, ...]  # … these scores, rising
    right: tuple[float, ...]  # scores that 90 %, 50 % and 10 % of the right pairs reach

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.scores) or not self.shares:
            raise MatcherError(
                f"calibration of {len(self.shares)} shares and {len(self.scores)} scores; expected as many"
            )

    def share(self, score: float) -> float:
        """Share of unrelated pairs of photo and sentence that score as high, about; beyond the table its last share counts."""
        return float(np.exp(np.interp(score, self.scores, np.log(self.shares))))

    def is_weak(self, score: float, searched: int) -> bool:
        """Whether chance alone may well put a photo, or a caption, that high among so many."""
        return is_by_chance(self.share(score), searched)

    def to_file(self, model_sha256: str) -> dict[str, Any]:
        """What its file says: the model that it is of, and a checksum of all of it."""
        content = {"model_sha256": model_sha256, **asdict(self)}
        return content | {"sha256": json_sha256(content)}

    @classmethod
    def of_file(cls, content: Mapping[str, Any], model_sha256: str, path: Path | str = FILE) -> "Calibration | None":
        """From what its file says. None: nothing, or of another model: of one before, or another run.

        Raises:
            MatcherError: other numbers than were written, which a file from before there was a checksum cannot tell; or something else.
        """
        written = {key: value for key, value in content.items() if key != "sha256"}
        if "sha256" in content and content["sha256"] != json_sha256(written):
            raise MatcherError(f"{path}: damaged, not the numbers that were written", "copy the run again")
        if not content or content.get("model_sha256", model_sha256) != model_sha256:
            return None
        try:
            return cls(*(tuple(map(float, content[name])) for name in ("shares", "scores", "right")))
        except (KeyError, TypeError, ValueError) as error:
            raise MatcherError(f"{path}: not a calibration ({type(error).__name__}: {error})") from error


def is_by_chance(share: float, searched: int) -> bool:
    """Whether a share of unrelated pairs is two or more of so many photos, or of captions of a photo, or one in twenty of them."""
    return min(searched, MOST) * share >= min(BY_CHANCE, LEAST_SHARE * searched)


def calibrate(similarity: np.ndarray, image_of_caption: np.ndarray) -> Calibration | None:
    """From held-out photos and their sentences.

    Args:
        similarity: (N, M) of every photo to every sentence.
        image_of_caption: (M,) the photo that each sentence was written for.

    Returns:
        None where there is one photo only, and so no unrelated pair.
    """
    N, M = similarity.shape
    if N < 2 or not M:
        return None
    own = np.zeros(similarity.shape, dtype=bool)
    own[image_of_caption, np.arange(M)] = True
    wrong = similarity[~own]
    levels = [level for level in LEVELS if level * wrong.size >= 1] or [LEVELS[0]]
    scores = np.quantile(wrong, [1 - level for level in levels])
    right = np.quantile(similarity[own], [0.1, 0.5, 0.9])
    return Calibration(tuple(levels), tuple(scores.tolist()), tuple(right.tolist()))
