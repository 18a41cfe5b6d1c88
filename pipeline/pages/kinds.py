"""What pages and pictures call the regions of a store, and what they say about the features of the starter."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.extraction.detectors import is_starter


class Kind(NamedTuple):
    """Words for one kind of regions."""

    one: str
    many: str
    note: str = ""  # "": nothing that a reader has to know


REGIONS = Kind("region", "regions")
WINDOWS = Kind(
    "window",
    "windows",
    "Features by the starter: windows at fixed places, not objects; a name is ImageNet's class of a window, where it is likely.",
)


def kind_of(extraction: Mapping[str, Any]) -> Kind:
    """The kind of a store's regions, by what made its features."""
    return WINDOWS if is_starter(extraction) else REGIONS
