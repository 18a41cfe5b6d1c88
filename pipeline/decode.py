"""Photos -> network input, ahead of the network and in worker processes that never see it."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detector.preprocess import InputSettings, PreparedImage, prepare
from pipeline.errors import PipelineError
from pipeline.images import Photo, read_image


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
    loader = DataLoader(
        _Photos(photos, roots, settings),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead // workers + 1 if workers else None,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise PipelineError(
            f"a decoding process died ({str(error).splitlines()[0]}); this is mostly memory: use fewer --workers or a "
            "smaller --batch-size, and run the same command again to continue"
        ) from error


class _Photos(Dataset[PreparedImage | str]):
    """Picklable and small: all that a worker needs."""

    def __init__(self, photos: Sequence[Photo], roots: Sequence[Path], settings: InputSettings):
        self.photos, self.roots, self.settings = photos, roots, settings

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> PreparedImage | str:
        photo = self.photos[index]
        try:
            return prepare(read_image(self.roots[photo.root] / photo.path), self.settings)
        except ValueError as error:
            return str(error)
        except MemoryError:
            return "not enough memory to decode it"


def _as_is(item: Any) -> Any:
    return item


def _quiet_worker(_: int) -> None:
    """Ctrl-C is the main process's business; one thread each, as the workers are the parallelism."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
