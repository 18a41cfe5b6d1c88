"""Photos -> network input, ahead of the network and in worker processes that never see it."""

import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detector.preprocess import InputSettings, PreparedImage, prepare
from pipeline.errors import PipelineError
from pipeline.inputs.photos import read_image
from pipeline.store.plan import Photo

SHARED_MEMORY = 2 << 30  # bytes free in it, for photos to be handed over that way; some 40 are at the same time


def decode_photos(
    photos: Sequence[Photo], roots: Sequence[Path], settings: InputSettings, *, workers: int, ahead: int
) -> Iterator[PreparedImage | str]:
    """Each photo decoded and resized, or the reason why it cannot be, in order.

    Args:
        photos: what to decode.
        roots: image folders, by `Photo.root`.
        settings: of the detector's input.
        workers: processes; 0 decodes in this one.
        ahead: photos to keep decoded beyond the one asked for, about.

    Raises:
        PipelineError: a worker died.
    """
    workers = min(workers, len(photos))
    shared = workers > 0 and _room_to_share()
    loader = DataLoader(
        _Photos(photos, roots, settings, shared),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead // workers + 1 if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
    )
    try:
        for item in loader:
            yield item if isinstance(item, str) else replace(item, pixels=np.asarray(item.pixels))
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise PipelineError(
            f"a decoding process died ({str(error).splitlines()[0]}); this is mostly memory: use fewer --workers or a "
            "smaller --batch-size, and run the same command again to continue"
        ) from error


class _Photos(Dataset[PreparedImage | str]):
    """Picklable and small: all that a worker needs."""

    def __init__(self, photos: Sequence[Photo], roots: Sequence[Path], settings: InputSettings, shared: bool):
        self.photos, self.roots, self.settings, self.shared = photos, roots, settings, shared

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> PreparedImage | str:
        photo = self.photos[index]
        try:
            image = prepare(read_image(self.roots[photo.root] / photo.path), self.settings)
        except ValueError as error:
            return str(error)
        except MemoryError:
            return "not enough memory to decode it"
        pixels: Any = torch.from_numpy(image.pixels) if self.shared else image.pixels
        return replace(image, pixels=pixels)


def _room_to_share() -> bool:
    """Whether workers can hand over pixels in shared memory, which torch does with tensors: arrays go through a pipe,
    7 MB a photo copied four times. Containers often have next to no shared memory, and to run out of it is fatal.
    """
    try:
        return shutil.disk_usage("/dev/shm").free >= SHARED_MEMORY
    except OSError:
        return False


def _as_is(item: Any) -> Any:
    return item


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the main process's business; one thread each, as the workers are the parallelism."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
