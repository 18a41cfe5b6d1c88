"""Photos on disk: finding them in folders, and decoding them in one well-defined way.

Decoding gives BGR uint8, upright. Grayscale, palette, CMYK and 16-bit images become 8-bit BGR; transparency is dropped; of
an animation the first frame counts. The content decides what a file is, not its suffix. OpenCV decodes JPEG, PNG, BMP and
WebP, as the published detector's training did; Pillow decodes TIFF, GIF and AVIF, and with pillow-heif HEIC. A file that
does not hold a complete image raises `UnreadableImage`, whose text is the reason that is kept.
"""

import functools
import os
import stat
import warnings
from collections import Counter
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

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp"),
    *(".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"),
}
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw"}
# Pillow knows many more formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
BOXED_FORMATS = ("AVIF", "HEIF")  # in ISO base media files
OPENCV_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "WEBP"}  # MPO: what Pillow calls a JPEG with further pictures behind it
MAX_PIXELS = 120_000_000  # larger ones are refused undecoded: a few bytes can decode to gigabytes
MAX_BYTES = 1 << 30  # no image of MAX_PIXELS needs more
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
UPRIGHT_WHEN_OPENED = (
    "TIFF",
    "HEIF",
)  # Pillow and pillow-heif turn these; a HEIC's EXIF only repeats what they applied
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(PipelineError):
    """Why a file is not an image that can be used."""


def list_photos(roots: Sequence[Path | str], *, skipped: Counter[str] | None = None) -> list[Photo]:
    """Every image file below some folders, sorted by id. Hidden files and folders are left alone, links are followed.

    Args:
        roots: the folders.
        skipped: counts the other files, by suffix.

    Raises:
        PipelineError: a folder that is not there, no image at all, or two images with the same id.
    """
    skipped = Counter() if skipped is None else skipped
    photos = []
    for index, root in enumerate(map(Path, roots)):
        if not root.is_dir():
            raise PipelineError(
                f"--images {root}: {'a file' if root.exists() else 'not there'}; expected a folder of photos"
            )
        prefix = f"{os.path.basename(os.path.abspath(root))}/" if len(roots) > 1 else ""
        photos += [_photo(root, path, prefix, index) for path in _walk(root, "", set(), skipped)]
    if not photos:
        folders = ", ".join(map(str, roots))
        found = f"; {describe_skipped(skipped)}" if skipped else ""
        raise PipelineError(
            f"--images {folders}: no photo found, looked for {', '.join(sorted(SUFFIXES))} in all subfolders{found}"
        )
    photos.sort(key=lambda photo: photo.image_id)
    for left, right in pairwise(photos):
        if left.image_id == right.image_id:
            raise PipelineError(
                f"--images: two folders have the same name and both hold {left.image_id!r}",
                "rename one, or extract them apart with --output",
            )
    return photos


def describe_skipped(skipped: Counter[str]) -> str:
    """Files that are no photos, as one line: how many of which kind, and how to include camera raw files."""
    kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in skipped.most_common(8))
    more = f", {len(skipped) - 8} more kinds" if len(skipped) > 8 else ""
    raw = "; camera raw files have to be converted to JPEG first" if RAW_SUFFIXES & skipped.keys() else ""
    noun = "file" if skipped.total() == 1 else "files"
    return f"skipped {skipped.total():,} other {noun} ({kinds}{more}){raw}"


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
            data = file.read(status.st_size)  # and no more, should it have grown since
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error
    return data


def read_thumbnail(path: Path | str, longest_side: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A small version of an image file: (h, w, 3) uint8 BGR, upright, max(h, w) <= longest_side, never enlarged.

    A JPEG is decoded at a half, a quarter or an eighth where that is enough: it takes a fraction of the time and memory.

    Args:
        path: of the file.
        longest_side: in pixels.
        max_pixels: that are decoded; a JPEG's are counted after the reduction.

    Raises:
        UnreadableImage: as `read_image`; a truncated JPEG is not noticed.
    """
    data = read_image_file(path)
    with _opened(BytesIO(data)) as header:
        scales = REDUCED if header.format in ("JPEG", "MPO") else {}
        scale = next((scale for scale in scales if max(header.size) // scale >= longest_side), 1)
        _check_pixels(header.width // scale, header.height // scale, max_pixels)
    image = _decode_with_opencv(data, REDUCED[scale]) if scale > 1 else decode_image(data)
    height, width = image.shape[:2]
    factor = longest_side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))  # a line of pixels keeps one
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, from the bytes of a file."""
    if not data:
        raise UnreadableImage("empty file")
    with _opened(BytesIO(data)) as image:
        _check_pixels(image.width, image.height, max_pixels)
        if image.format not in OPENCV_FORMATS:
            return _decode_with_pillow(image)
        _check_complete(image)
    return _decode_with_opencv(data, cv2.IMREAD_COLOR)


def read_image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file, upright, without keeping its pixels.

    Raises:
        UnreadableImage: no image, one that is damaged where it says its size, or too large.
    """
    try:
        with open(path, "rb") as file, _opened(file) as image:
            sideways = _orientation(image) in SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except UnreadableImage:
        raise
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def _decode_with_opencv(data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UnreadableImage(f"cannot be decoded: {error.err or error}") from error
    if image is None:
        raise UnreadableImage("cannot be decoded: damaged, or a variant that OpenCV does not read")
    return image


def _decode_with_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 BGR, upright, of an image that was opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
        turn = TURNS.get(_orientation(image))
        turned = image if turn is None else image.transpose(turn)
        if turned.mode.startswith("I;16"):  # 16 bits: the upper eight, as OpenCV takes them
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
        elif turned.mode in ("I", "F"):
            raise UnreadableImage(f"32-bit pixels (mode {turned.mode}): expected 8 or 16 bits")
        return np.ascontiguousarray(np.asarray(turned.convert("RGB"))[:, :, ::-1])
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways on damaged files
        raise UnreadableImage(_damage(error)) from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation where it still has to be applied; 1, upright, where there is none or it cannot be read."""
    if image.format in UPRIGHT_WHEN_OPENED:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's parsers of EXIF fail in many ways on damaged files
        return 1


def _check_complete(image: Image.Image) -> None:
    """OpenCV fills what is missing of a truncated file with grey and says nothing; Pillow's decoder speaks up.

    Not so with WebP, where OpenCV refuses what is truncated, and Pillow would take gigabytes for a large canvas.
    """
    if image.format == "WEBP":
        return
    width, height = image.size
    try:
        # JPEG: decode at an eighth, which is enough to see the last byte
        image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
        image.load()
    except Exception as error:  # Pillow's decoders fail in many ways on damaged files
        raise UnreadableImage(_damage(error)) from error


def _check_pixels(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(f"{width} x {height} pixels: more than {max_pixels:,}")


def _opened(file: BinaryIO) -> Image.Image:
    """Read the header of an image file, by its content. Pixels are counted before there is memory for them."""
    boxed = file.read(8)[4:] == b"ftyp"
    file.seek(0)
    if boxed:
        _register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(file, formats=BOXED_FORMATS if boxed else FORMATS)
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
        except UnidentifiedImageError as error:
            if boxed:  # as videos are, too
                raise UnreadableImage("no AVIF or HEIC image: damaged, truncated, or a video") from error
            raise UnreadableImage(f"not an image ({', '.join(FORMATS + BOXED_FORMATS)})") from error
        except Exception as error:  # its parsers fail in many ways on damaged headers
            raise UnreadableImage(_damage(error)) from error
    _check_pixels(image.width, image.height)
    if image.format == "TIFF":  # a small picture may be a corner of one huge tile
        tags = image.tag_v2  # type: ignore[attr-defined]
        _check_pixels(tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1))
    return image


@functools.cache
def _register_heif() -> None:
    """Imported for the first file that needs it: some 40 ms that most folders do not need."""
    import pillow_heif

    pillow_heif.register_heif_opener()


def _damage(error: Exception) -> str:
    """The same text for all files with the same fault, so that reasons can be counted.

    Neither Pillow nor libheif has a class for a truncated file: their text is all that tells one, and this is the one
    place where the project looks.
    """
    text = " ".join(str(error).split())
    if any(words in text.lower() for words in ("truncated", "unexpected end of file")):
        return "truncated"
    return f"damaged: {text or type(error).__name__}"


def _walk(folder: Path, prefix: str, above: set[tuple[int, int]], skipped: Counter[str]) -> Iterator[str]:
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
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here}, skipped)
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:
            yield prefix + entry.name  # broken links too: they become failure rows, not silent holes
        else:
            skipped[suffix] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False
