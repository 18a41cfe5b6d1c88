"""Loading a detector: the one that a configuration asks for, or the one that made a store's features."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detector.locate import DEFAULT_HUB, has_weights
from detector.pending import RegionSource
from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.extraction.job import ExtractConfig

STARTER = "starter"  # what `--weights` calls the windows that need no detector
NO_WEIGHTS = (
    "note: no detector weights found, so the starter is used: 36 windows at fixed places, pooled from a small ImageNet network; "
    "it finds neither objects nor attributes\n"
    f"      the paper's detector: scan-pipeline extract --weights {DEFAULT_HUB} (or a file); see scan-pipeline doctor"
)


def with_weights(config: ExtractConfig) -> ExtractConfig:
    """The configuration, naming the starter where it names no weights and there are none; the hub is never asked unnamed.

    Raises:
        PipelineError: the starter, with options that only a detector has.
    """
    if not config.weights and not has_weights():
        config = replace(config, weights=STARTER)
    if config.weights == STARTER and not Path(STARTER).is_file():
        default = ExtractConfig()
        for name in ("num_regions", "selection", "detector"):
            if (value := getattr(config, name)) != getattr(default, name):
                raise PipelineError(
                    f"{name}={value}: for a detector; the starter has 36 windows at fixed places", "name --weights FILE"
                )
    return config


def load_extractor(config: ExtractConfig) -> RegionSource:
    """The source of regions that a configuration asks for.

    Raises:
        DetectorError: no network of the starter, or weights that cannot be read.
        PipelineError: see `with_weights`.
    """
    config = with_weights(config)
    if config.weights == STARTER and not Path(STARTER).is_file():
        from detector.windows import WindowExtractor

        return WindowExtractor(device=pick_device(config.device), precision=config.precision)
    from detector import RegionExtractor

    return RegionExtractor.from_weights(
        config.weights or None,
        selection=config.selection,
        num_regions=config.num_regions,
        device=pick_device(config.device),
        precision=config.precision,
        config_overrides=config.detector,
    )


def is_starter(extraction: Mapping[str, Any]) -> bool:
    """Whether these are the starter's features."""
    return extraction.get("source") == "windows"


def extractor_like(extraction: Mapping[str, Any], *, weights: str | None, device: torch.device) -> RegionSource:
    """The detector, or the windows, that made a store's features.

    Raises:
        PipelineError: features that no detector made, or weights other than the store's.
    """
    if "weights_sha256" not in extraction:
        raise PipelineError("the run's features were imported: no detector makes such regions of a new photo")
    config = ExtractConfig(device=str(device), precision=extraction.get("precision", "float32"))
    if is_starter(extraction):
        if weights not in (None, "", STARTER):
            raise PipelineError(f"--weights {weights}: the starter made the run's features", "leave it out")
        windows = load_extractor(replace(config, weights=STARTER))
        if windows.describe() != dict(extraction):
            raise PipelineError(
                "the run's features are windows of another version of the starter", "extract them again"
            )
        return windows
    from detector.extractor import INPUT_FIELDS

    settings = {name: extraction["detector"][name] for name in INPUT_FIELDS}
    kept = {name: extraction[name] for name in ("selection", "num_regions")}
    extractor = load_extractor(replace(config, weights=weights or "", detector=settings, **kept))
    found, expected = extractor.describe()["weights_sha256"], extraction["weights_sha256"]
    if found != expected:
        raise PipelineError(
            f"the weights found (sha256 {found[:12]}…) are not those of the run's features ({expected[:12]}…)",
            "name those with --weights",
        )
    return extractor
