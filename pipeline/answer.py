"""What a search answers: photos or captions with their scores, and the regions that made them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """One region that speaks for a photo."""

    # Absolute pixels; of a photo of unknown size as they were imported: fractions of it, or pixels where they are beyond 1
    xyxy: tuple[float, float, float, float]
    weight: float  # share of the score, 0..1
    name: str  # "brown dog", "" where the store carries no classes


@dataclass(frozen=True)
class Hit:
    """One result: a photo with its best regions, or a caption with the image that it was written for."""

    rank: int  # 1 is best
    score: float
    image: str  # id in the store
    path: str = ""  # of the photo, where it still is
    caption: str = ""
    caption_id: int | str = ""
    right: bool = False  # of a caption: it was written for the photo asked with, or a copy of it in the stores
    boxes: tuple[Box, ...] = ()
    image_size: tuple[int, int] = (0, 0)  # (height, width) that the boxes are in; (0, 0): not known
    weak: bool = False  # no better than the sentences of other photos score; never of a run without calibration
    changed: bool | None = None  # its file is another one than was extracted; None: not compared

    @property
    def marks(self) -> list[str]:
        """What a reader should know of it."""
        return ["weak match"] * self.weak + ["changed since it was extracted"] * bool(self.changed)


@dataclass(frozen=True)
class Answer:
    """The results of one query."""

    query: str
    searched: int
    hits: tuple[Hit, ...]
    path: str = ""  # of the photo asked with
    compared: int = 0  # photos of those searched that were compared exactly; 0: all
    unknown: tuple[tuple[str, str], ...] = ()  # words that the run never learned, each with the nearest it did, or ""

    @property
    def weak(self) -> bool:
        """Whether even the best result is a weak match."""
        return bool(self.hits) and self.hits[0].weak

    def __str__(self) -> str:
        some = f"; {self.compared:,} compared exactly" if self.compared else ""
        some += "; below a photo: share of its score, box" if any(hit.boxes for hit in self.hits) else ""
        lines = [f"{self.query!r}  (best {len(self.hits)} of {self.searched:,}{some})"]
        lines += [f"note: {text}" for text in self.notes()]
        for hit in self.hits:
            what = f"{hit.caption}  [{hit.image}]" if hit.caption else hit.path or hit.image
            what = what.replace("\n", r"\n").replace("\t", r"\t")  # a name may hold them, and is one row
            lines.append(
                f"{hit.rank:4}{'*' if hit.right else ' '} {hit.score:7.4f}  {what}{'  (weak)' if hit.weak else ''}{'  (changed)' if hit.changed else ''}"
            )
            digits = 2 if hit.image_size == (0, 0) else 0
            for box in hit.boxes:
                corners = ", ".join(f"{value:.{digits}f}" for value in box.xyxy)
                lines.append(f"{'':15}{box.weight:4.0%}  [{corners}]  {box.name}".rstrip())
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """What a reader should know before the results."""
        words = [f"{word!r}" + (f" (nearest: {near!r})" if near else "") for word, near in self.unknown]
        notes = [f"unknown to the run and left out of the meaning: {', '.join(words)}"] if words else []
        notes += ["no good match: the best is weak"] if self.weak else []
        unsure = next((hit.rank for hit in self.hits if hit.changed is None), 0)
        return notes + ([f"not compared with what was extracted: photos from rank {unsure} on"] if unsure else [])
