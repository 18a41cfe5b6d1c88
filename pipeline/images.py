"""Photos on disk: finding them in folders, and decoding them in one well-defined way.

Decoding: OpenCV, BGR uint8, upright by EXIF. Grayscale, palette, CMYK and 16-bit images become 8-bit BGR; transparency
is dropped. A file that does not hold a whole image raises `UnreadableImage`, whose text is the reason that is kept.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import PipelineError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
MAX_PIXELS = 120_000_000  # larger ones are refused unread: a few bytes can decode to gigabytes


class UnreadableImage(PipelineError):
    """Why a file is not an image that can be used."""


@dataclass(frozen=True)
class Photo:
    """An image file: where it is, and the id that names it everywhere."""

    image_id: str  # path below its root; below the root's name where there are several roots
    path: str  # POSIX path below its root
    root: int  # index of the root


def list_photos(roots: Sequence[Path | str]) -> list[Photo]:
    """Every image file below some folders, sorted by id.

    Raises:
        PipelineError: a folder that is not there, no image at all, or two images with the same id.
    """
    several = len(roots) > 1
    photos = []
    for index, root in enumerate(map(Path, roots)):
        if not root.is_dir():
            raise PipelineError(
                f"--images {root}: {'a file' if root.exists() else 'not there'}; expected a folder of photos"
            )
        prefix = f"{root.resolve().name}/" if several else ""
        photos += [Photo(prefix + path, path, index) for path in _walk(root, "", set())]
    if not photos:
        folders = ", ".join(map(str, roots))
        raise PipelineError(
            f"--images {folders}: no photo found; looked for {', '.join(sorted(SUFFIXES))} in all subfolders"
        )
    photos.sort(key=lambda photo: photo.image_id)
    for left, right in pairwise(photos):
        if left.image_id == right.image_id:
            raise PipelineError(
                f"--images: two folders are named alike and both hold {left.image_id!r}; rename one or extract them apart"
            )
    return photos


def read_image(path: Path | str) -> np.ndarray:
    """Decode one image file: (H, W, 3) uint8 BGR, upright.

    Raises:
        UnreadableImage: missing, empty, no image, damaged, truncated, or too large.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error
    return decode_image(data)


def decode_image(data: bytes) -> np.ndarray:
    """As `read_image`, from the bytes of a file."""
    if not data:
        raise UnreadableImage("empty file")
    _check_whole(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnreadableImage(f"cannot be decoded: {error.err or error}") from error
    if image is None:
        raise UnreadableImage("cannot be decoded: damaged, or a format that OpenCV does not read")
    return image


def _check_whole(data: bytes) -> None:
    """OpenCV fills what is missing of a truncated file with grey and says nothing; Pillow's decoder speaks up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UnreadableImage(f"{width} x {height} pixels: more than {MAX_PIXELS:,}")
                image.draft("RGB", (width // 8, height // 8))  # JPEG: decode at 1/8, enough to see the last byte
                image.load()
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image, or a format that is not supported") from error
    except Exception as error:  # Pillow's decoders fail in many ways on damaged files
        raise UnreadableImage(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from error


def _walk(folder: Path, prefix: str, above: set[tuple[int, int]]) -> Iterator[str]:
    """POSIX paths of image files below a folder. Links are followed, but never back into a folder that we are in."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not entry.name.startswith("."):
            yield prefix + entry.name  # broken links too: they become failure rows, not silent holes


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False
