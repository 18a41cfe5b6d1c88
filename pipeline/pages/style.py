"""Colors of pictures and figures, and matplotlib's settings for all of them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from pipeline.fields import SIGNATURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKGROUND, INK, FAINT, ACCENT, GOOD = "#fbfbfa", "#222222", "#6b6b6b", "#c23b4e", "#2a9d5c"
SERIES = ("#4a86b8", "#d1495b", "#3f9a54", "#a06fb4", "#c98a1b", "#808080")  # readable on light and on dark
# Boxes of a photo's best regions, best first; white text can be read on the first
REGIONS = ("#d93030", "#f0aa28", "#5ac85a")


@contextmanager
def figure_style() -> Iterator[None]:
    """Figures that are made inside have these colors. Text is drawn as it stands: a dollar sign starts no formula."""
    import matplotlib

    ink = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    background = dict.fromkeys(("figure.facecolor", "axes.facecolor"), BACKGROUND)
    plain = {"text.parse_math": False, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    settings: Any = {**ink, **background, **plain}
    with matplotlib.rc_context(settings):
        yield


def write_figure(figure: "Figure", file: IO[bytes], suffix: str, dpi: int) -> None:
    """Write a figure with the signature by which a later command knows it as one of ours."""
    kind = suffix[1:].lower()
    signed: dict[str, Any] = {"metadata": {"Creator": SIGNATURE}}
    if kind in ("jpg", "jpeg"):  # which matplotlib leaves to Pillow
        signed = {"pil_kwargs": {"comment": SIGNATURE}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an empty box shows it
        figure.savefig(file, format=kind, dpi=dpi, **signed)


def drawable(text: str) -> str:
    """Text that fonts can draw: bytes that came through a locale without their letters are read as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
