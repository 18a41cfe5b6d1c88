"""Photos on disk: finding them in folders, and decoding them in one well-defined way.

Decoding: OpenCV, BGR uint8, upright by EXIF. Grayscale, palette, CMYK and 16-bit images become 8-bit BGR; transparency
is dropped; of an animation the first picture counts. The content decides what a file is, not its suffix. A file that
does not hold a whole image raises `UnreadableImage`, whose text is the reason that is kept.
"""

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import PipelineError
from pipeline.store.plan import Photo

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # Pillow knows many more, some of which start other programs
MAX_PIXELS = 120_000_000  # larger ones are refused undecoded: a few bytes can decode to gigabytes
MAX_BYTES = 1 << 30  # no image of MAX_PIXELS needs more
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height


class UnreadableImage(PipelineError):
    """Why a file is not an image that can be used."""


def list_photos(roots: Sequence[Path | str]) -> list[Photo]:
    """Every image file below some folders, sorted by id. Hidden files and folders are left alone, links are followed.

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
        prefix = f"{os.path.basename(os.path.abspath(root))}/" if several else ""
        photos += [_photo(root, path, prefix, index) for path in _walk(root, "", set())]
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


def _photo(root: Path, path: str, prefix: str, index: int) -> Photo:
    try:
        status = os.stat(root / path)
    except OSError:  # a broken link, or a file that vanished meanwhile
        return Photo(prefix + path, path, index)
    return Photo(prefix + path, path, index, status.st_size, status.st_mtime_ns)


def read_image(path: Path | str) -> np.ndarray:
    """Decode one image file: (H, W, 3) uint8 BGR, upright.

    Raises:
        UnreadableImage: missing, empty, no image, damaged, truncated, or too large.
    """
    return decode_image(read_image_file(path))


def read_image_file(path: Path | str) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImage: missing, no regular file, or too large.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting for ever
            raise UnreadableImage("not a file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"{status.st_size:,} bytes: more than {MAX_BYTES:,}")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)  # and no more, should it have grown since
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error
    return data


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
        raise UnreadableImage("cannot be decoded: damaged, or a variant that OpenCV does not read")
    return image


def read_image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file, upright, without keeping its pixels.

    Raises:
        UnreadableImage: no image, one that is damaged where it says its size, or too large.
    """
    try:
        with open(path, "rb") as file, _opened(file) as image:
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's parsers of EXIF fail in many ways on damaged files
        raise UnreadableImage(_damage(error)) from error


def _check_whole(data: bytes) -> None:
    """OpenCV fills what is missing of a truncated file with grey and says nothing; Pillow's decoder speaks up.

    Not so with WebP, where OpenCV refuses what is truncated, and Pillow would take gigabytes for a large canvas.
    """
    with _opened(BytesIO(data)) as image:
        if image.format == "WEBP":
            return
        width, height = image.size
        try:
            # JPEG: decode at an eighth, which is enough to see the last byte
            image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
            image.load()
        except Exception as error:  # Pillow's decoders fail in many ways on damaged files
            raise UnreadableImage(_damage(error)) from error


def _opened(file: BinaryIO) -> Image.Image:
    """Read the header of an image file, by its content. Pixels are counted before there is memory for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
        except UnidentifiedImageError as error:
            raise UnreadableImage(f"not an image ({', '.join(FORMATS)})") from error
        except Exception as error:  # its parsers fail in many ways on damaged headers
            raise UnreadableImage(_damage(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} pixels: more than {MAX_PIXELS:,}")
    return image


def _damage(error: Exception) -> str:
    """Alike for all files with the same fault, so that reasons can be counted."""
    text = " ".join(str(error).split())
    return "truncated" if "runcated" in text else f"damaged: {text or type(error).__name__}"


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
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield prefix + entry.name  # broken links too: they become failure rows, not silent holes


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False
