"""Pixels -> regions: the Visual Genome Faster R-CNN of bottom-up attention.

Letters: B images of a batch, K regions kept per image, R proposals, A anchors per cell, C objects, T attributes,
D feature dimensions. Boxes are XYXY in absolute pixels.
"""

from typing import Any

from detector.errors import DetectorError
from detector.regions import Regions

__all__ = ["DetectorError", "RegionExtractor", "Regions"]


def __getattr__(name: str) -> Any:
    if name == "RegionExtractor":  # brings torch and detectron2: only for those who ask
        from detector.extractor import RegionExtractor

        return RegionExtractor
    raise AttributeError(f"module 'detector' has no attribute {name!r}")
