"""Photos -> network input, ahead of the network and in worker processes that never see it."""

import hashlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from detector.preprocess import InputSettings, PreparedImage, prepare
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.photos import decode_image
from pipeline.inputs.sources import read_photo
from pipeline.store.plan import Photo
from pipeline.store.roots import place_of

SHARED_MEMORY = 2 << 30  # bytes free in it, for photos to be handed over that way; some 40 are at the same time


@dataclass(frozen=True)
class DecodedPhoto:
    """A photo as the network takes it."""

    image: PreparedImage | str  # or the reason why it cannot be decoded
    sha256: str | None  # of the file as it was read; None where it could not be


def decode_photos(
    photos: Sequence[Photo], roots: Sequence[str], settings: InputSettings, *, workers: int, ahead: int
) -> Iterator[DecodedPhoto]:
    """Each photo decoded and resized, or the reason why it cannot be, in order.

    Args:
        photos: what to decode.
        roots: of the sources, by `Photo.root`.
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
            yield _with_array(item)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise PipelineError(
            f"a decoding process died ({str(error).splitlines()[0]}); this is mostly memory: use fewer --workers or a "
            "smaller --batch-size, and run the same command again to continue"
        ) from error


class _Photos(Dataset[DecodedPhoto]):
    """Picklable and small: all that a worker needs."""

    def __init__(self, photos: Sequence[Photo], roots: Sequence[str], settings: InputSettings, shared: bool):
        self.photos, self.roots, self.settings, self.shared = photos, roots, settings, shared

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> DecodedPhoto:
        photo = self.photos[index]
        try:
            content = read_photo(place_of(self.roots[photo.root], photo.path))
        except UnreadableImage as error:
            return DecodedPhoto(str(error), None)
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            image = prepare(decode_image(content), self.settings)
        except ValueError as error:
            return DecodedPhoto(str(error), sha256)
        except MemoryError:
            return DecodedPhoto("not enough memory to decode it", sha256)
        pixels: Any = torch.from_numpy(image.pixels) if self.shared else image.pixels
        return DecodedPhoto(replace(image, pixels=pixels), sha256)


def _with_array(photo: DecodedPhoto) -> DecodedPhoto:
    """The photo with its pixels as an array, where a worker shared them as a tensor."""
    if isinstance(photo.image, str):
        return photo
    return replace(photo, image=replace(photo.image, pixels=np.asarray(photo.image.pixels)))


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
