"""What an extraction is: its configuration, and what it needs of a detector and of an engine."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from detector.pending import Pending
from detector.preprocess import InputSettings, PreparedImage
from pipeline.errors import PipelineError
from pipeline.store.plan import PlannedShard


@dataclass(frozen=True)
class ExtractConfig:
    """What `scan-pipeline extract` does."""

    images: tuple[str, ...] = ()  # folders of photos, searched recursively
    output: str = ""  # store folder; "": features/ and the name of the last image folder
    weights: str = ""  # detector weights, a file or a hub name; "": the usual places
    selection: str = "caffe"  # "caffe" (what SCAN's features were made with) or "maxclass" (airsplay, LXMERT)
    num_regions: int = 36  # K, regions kept per photo
    dtype: str = "float16"  # of the stored features: float16 or float32
    device: str = "auto"  # "auto" takes a GPU where there is one
    # Of the network's convolutions: float32, bf16 or fp16. Features of the same box differ by 0.3 % or 0.04 %, and near ties
    # are decided otherwise, so they are other features. For GPUs: CPUs without such arithmetic take many times longer.
    precision: str = "float32"
    batch_size: int = 8  # photos per call of the detector
    workers: int = 2  # decoding processes; 0 decodes in the main process
    limit: int = 0  # only the first so many photos; 0: all
    shard_size: int = 64  # photos per shard, 9 MB at 36 x 2048 float16; as many are lost when killed
    retry_failures: bool = False  # extract the shards with failed photos again
    share: str = ""  # "0/4": this job does the first of four parts of the shards, say an array job's; "": all of them
    engine: str = "local"  # "local": this process; "ray": workers of a Ray cluster
    ray_address: str = ""  # HOST:PORT; "": the cluster of this machine, else one for this run; "auto", "local": only the former, latter
    ray_workers: int = 0  # detectors at work at once; 0: one for every GPU, or for every machine where there are none
    detector: dict[str, Any] = field(default_factory=dict)  # fields of DetectorConfig, such as min_size

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "float32"):
            raise PipelineError(f"dtype {self.dtype!r}: expected float16 or float32")
        if self.precision not in ("float32", "bf16", "fp16"):
            raise PipelineError(f"precision {self.precision!r}: expected float32, bf16 or fp16")
        if self.engine not in ("local", "ray"):
            raise PipelineError(f"engine {self.engine!r}: expected local or ray")
        counts = {"batch_size": 1, "shard_size": 1, "num_regions": 1, "workers": 0, "limit": 0, "ray_workers": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise PipelineError(f"{name} {getattr(self, name)}: expected at least {least}")


class Extractor(Protocol):
    """A source of regions; `detector.RegionExtractor` is one."""

    num_regions: int
    feature_dim: int
    object_names: list[str]
    attribute_names: list[str]
    input_settings: InputSettings

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the features are, as JSON."""

    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        """Start a batch of images of one resized shape; a source that works on the CPU returns a finished one."""


class Engine(Protocol):
    """Extracts shards, in this process or on a cluster."""

    def manifest(self) -> dict[str, Any]:
        """The store's manifest, as far as this engine's features decide it."""

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Commit shards to a store. Yields the number of failures of each; the bar advances by photos."""

    def close(self) -> None:
        """Release workers and files."""


def refuse_lost_folders(roots: Sequence[Path]) -> None:
    """An unmounted disk is not a folder of unreadable photos.

    Raises:
        PipelineError: a folder that is missing or empty.
    """
    for root in roots:
        if not root.is_dir() or next(os.scandir(root), None) is None:
            raise PipelineError(
                f"--images {root}: its photos are gone", "mount it again and run the same command to continue"
            )
