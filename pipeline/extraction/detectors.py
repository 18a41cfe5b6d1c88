"""Loading a detector: the one that a configuration asks for, or the one that made a store's features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.extraction.job import ExtractConfig, Extractor

if TYPE_CHECKING:
    from detector import RegionExtractor


def load_extractor(config: ExtractConfig) -> Extractor:
    """The detector that a configuration asks for."""
    from detector import RegionExtractor

    return RegionExtractor.from_weights(
        config.weights or None,
        selection=config.selection,
        num_regions=config.num_regions,
        device=pick_device(config.device),
        precision=config.precision,
        config_overrides=config.detector,
    )


def extractor_like(extraction: Mapping[str, Any], *, weights: str | None, device: torch.device) -> "RegionExtractor":
    """The detector that made a store's features.

    Raises:
        PipelineError: features that no detector made, or weights other than the store's.
    """
    if "weights_sha256" not in extraction:
        raise PipelineError("the run's features were imported: no detector makes such regions of a new photo")
    from detector import RegionExtractor
    from detector.extractor import INPUT_FIELDS

    extractor = RegionExtractor.from_weights(
        weights,
        selection=extraction["selection"],
        num_regions=extraction["num_regions"],
        device=device,
        precision=extraction["precision"],
        config_overrides={name: extraction["detector"][name] for name in INPUT_FIELDS},
    )
    if extractor.weights_sha256 != extraction["weights_sha256"]:
        raise PipelineError(
            f"the weights found (sha256 {extractor.weights_sha256[:12]}…) are not those that the run's features "
            f"were made with ({extraction['weights_sha256'][:12]}…); name those with --weights"
        )
    return extractor
