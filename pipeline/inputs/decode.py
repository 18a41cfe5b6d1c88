"""Photos -> network input, ahead of the network, in worker processes that do not hold it."""

import hashlib
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from configs.errors import first_line
from detector.preprocess import InputSettings, PreparedImage, prepare
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.photos import decode_image
from pipeline.inputs.sources import read_photo
from pipeline.inputs.storage import BLOCK
from pipeline.store.plan import Photo
from pipeline.store.roots import INSIDE, is_remote, place_of

READERS = 16  # of photos that are single files behind a URL
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
        photos: what to decode; `roots` by `Photo.root`.
        settings: of the detector's input.
        workers: processes; 0 decodes in this one.
        ahead: photos to keep decoded beyond the current one, about.

    Raises:
        PipelineError: a worker died.
    """
    workers = min(workers, len(photos))
    shared = workers > 0 and _room_to_share()
    loader = DataLoader(
        _Photos(settings, shared),
        sampler=_contents(photos, roots, ahead),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead // workers + 1 if workers else None,
        worker_init_fn=_quiet_worker,
    )
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for workers from their first moment on
    try:
        decoded = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        for item in decoded:
            yield _with_array(item)
    except RuntimeError as error:
        raise PipelineError(
            f"a decoding process died ({first_line(error)}), in most cases for lack of memory",
            "use fewer --workers or a smaller --batch-size, and run the same command again to continue",
        ) from error


class DecodingFault(Exception):
    """A fault of this code while it decoded a photo: torch reports a worker that died by a plain RuntimeError, and only that."""


class _Photos(Dataset[DecodedPhoto]):
    """Picklable and small: all that a worker needs. An item is a photo's place, or what `_contents` read."""

    def __init__(self, settings: InputSettings, shared: bool):
        self.settings, self.shared = settings, shared

    def __getitem__(self, asked: str | bytes | UnreadableImage) -> DecodedPhoto:
        try:
            return self._decoded(_read(asked) if isinstance(asked, str) else asked)
        except RuntimeError as error:
            raise DecodingFault(str(error)) from error

    def _decoded(self, content: bytes | UnreadableImage) -> DecodedPhoto:
        if isinstance(content, UnreadableImage):
            return DecodedPhoto(str(content), None)
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            image = prepare(decode_image(content), self.settings)
        except ValueError as error:
            return DecodedPhoto(str(error), sha256)
        except MemoryError:
            return DecodedPhoto("not enough memory to decode it", sha256)
        return DecodedPhoto(replace(image, pixels=self._sharable(image.pixels)), sha256)

    def _sharable(self, pixels: np.ndarray) -> Any:
        """Pixels in shared memory, where there still is room: torch itself would share them where an error is lost, and the
        command would wait for them for ever.
        """
        if self.shared:
            with suppress(RuntimeError):
                return torch.from_numpy(pixels).share_memory_()
        return pixels


def _contents(photos: Sequence[Photo], roots: Sequence[str], ahead: int) -> Iterator[str | bytes | UnreadableImage]:
    """What workers get: the place of a file, which they read themselves, or the bytes of a photo from elsewhere.

    A container is read here, in its order and ahead of the workers: each of them would read all of it. So are URLs, whose
    clients do not survive a fork.
    """
    waiting: deque[Future[str | bytes | UnreadableImage]] = deque()
    in_containers = any(INSIDE in photo.path for photo in photos)
    pool = ThreadPoolExecutor(1 if in_containers else READERS, thread_name_prefix="reader")
    try:
        for photo in photos:
            here = INSIDE not in photo.path and not is_remote(roots[photo.root])
            waiting.append(pool.submit(str if here else _read_ahead, place_of(roots[photo.root], photo.path)))
            if len(waiting) > max(ahead, READERS):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # else each photo that waits would ask a server that is gone for as long as the first did
        pool.shutdown(wait=False, cancel_futures=True)


def _read_ahead(place: str) -> bytes | UnreadableImage:
    return _read(place, ahead=BLOCK)


def _read(place: str, **ahead: int) -> bytes | UnreadableImage:
    try:
        return read_photo(place, **ahead)
    except UnreadableImage as error:
        return error


def _with_array(photo: DecodedPhoto) -> DecodedPhoto:
    """The photo with its pixels as an array, where a worker shared them as a tensor."""
    if isinstance(photo.image, str):
        return photo
    return replace(photo, image=replace(photo.image, pixels=np.asarray(photo.image.pixels)))


def _room_to_share() -> bool:
    """Whether workers can hand over pixels in shared memory, which torch does with tensors: arrays go through a pipe,
    7 MB a photo copied four times. Containers often have next to no shared memory, and other programs need it, too.
    """
    try:
        return shutil.disk_usage("/dev/shm").free >= SHARED_MEMORY
    except OSError:
        return False


def _quiet_worker(_: int) -> None:
    """The main process handles Ctrl-C; each worker has one thread, as there are several workers."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    """torch's workers end when the process that forked them does. With a fork server (the default of Python 3.14), that is not
    the command, and the server stays as long as its workers: killed, the command would leave them all behind.
    """
    command = multiprocessing.parent_process()
    assert command is not None
    multiprocessing.connection.wait([command.sentinel])
    os._exit(1)
