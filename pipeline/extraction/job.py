"""What an extraction is: its configuration, and what it needs of an engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from configs.fields import knob
from pipeline.fields import CommandConfig, option
from pipeline.store.plan import PlannedShard


@dataclass(frozen=True)
class ExtractConfig(CommandConfig):
    """What `scan-pipeline extract` does."""

    images: tuple[str, ...] = option(
        (),
        "Folder of photos, with its subfolders; or tar or parquet files, such as 'data/{000..099}.tar'; or a URL of such.",
        metavar="DIR|FILES|URL",
    )
    output: str = option("", "Store to write.", metavar="DIR", unset="features/<name of the last folder>")
    weights: str = option(
        "",
        "Detector weights: a file of any known layout, a hub name, or starter: windows, without a detector.",
        metavar="FILE|NAME",
        unset="the usual places, else starter",
    )
    # caffe is what SCAN's features were made with; maxclass is airsplay's and LXMERT's; windows: 36 fixed places
    selection: str = option("caffe", "How regions are chosen.", choices=("caffe", "maxclass", "windows"))
    num_regions: int = option(36, "Regions per photo.", min=1, max=1000)
    dtype: str = option("float16", "Type of the stored features.", choices=("float16", "float32"))
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")
    # Features of the same box differ by 0.3 % or 0.04 %, and near ties fall differently, so they are other features.
    # CPUs without such arithmetic take many times longer.
    precision: str = option(
        "float32", "Of the convolutions; bf16 and fp16 are for GPUs.", choices=("float32", "bf16", "fp16")
    )
    batch_size: int = option(8, "Photos per forward pass.", min=1, max=10_000)
    workers: int = option(2, "Decoding processes; 0 decodes in the main process.", min=0, max=1000)
    limit: int = option(0, "Only the first N photos; 0: all.", min=0)
    shard_size: int = knob(
        64, "Photos per shard, 9 MB at 36 x 2048 float16; as many are lost when killed.", min=1, max=100_000
    )
    caption_columns: tuple[str, ...] = knob(
        (), "Columns of parquet, or keys of a tar's JSON, that hold captions; empty: those of known names."
    )
    retry_failures: bool = option(False, "Try again the photos that failed before.")
    share: str = knob(
        "", "0/4: extract the first of four parts of the shards, as one job of an array; empty: all of them."
    )
    engine: str = option("local", "What does the work: this process, or a Ray cluster.", choices=("local", "ray"))
    ray_address: str = knob(
        "",
        "HOST:PORT; empty: the cluster of this machine, else one for this run; auto: only the former; local: only the latter.",
    )
    ray_workers: int = knob(
        0,
        "Detectors that work at the same time; 0: one for every GPU, or for every machine where there are none.",
        min=0,
        max=100_000,
    )
    detector: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Fields of DetectorConfig, such as detector.min_size=300."}
    )


class Engine(Protocol):
    """Extracts shards, in this process or on a cluster."""

    def manifest(self) -> dict[str, Any]:
        """The store's manifest, as far as this engine's features decide it."""

    def extract(self, folder: Path, shards: Sequence[PlannedShard], bar: "tqdm[Any]") -> Iterator[int]:
        """Commit shards to a store. Yields the number of failures of each; the bar advances by photos."""

    def close(self) -> None:
        """Release workers and files."""
