"""Photos decoded in one well-defined way, wherever they come from (`pipeline.inputs.sources`).

Decoding gives BGR uint8, upright. Grayscale, palette, CMYK and 16-bit images become 8-bit BGR; transparency is dropped; of
an animation the first frame counts. The content decides what a file is, not its suffix. OpenCV decodes JPEG, PNG and
WebP, as the published detector's training did; Pillow decodes TIFF (`tiffs`), BMP, GIF and AVIF, and with pillow-heif HEIC. A
file that does not hold a complete image raises `UnreadableImage`, whose text is the reason that is kept.
"""

import functools
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UnreadableImage
from pipeline.inputs import tiffs
from pipeline.inputs.sources import read_photo

# Pillow knows many more formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
BOXED_FORMATS = ("AVIF", "HEIF")  # in ISO base media files
# MPO: what Pillow calls a JPEG with further pictures behind it. Not BMP: OpenCV ignores the masks of its colours.
OPENCV_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
MAX_PIXELS = 120_000_000  # larger ones are refused undecoded: a few bytes can decode to gigabytes
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF tag, and its values that swap width and height
# Pillow and pillow-heif turn these when they open them; a HEIC's EXIF only repeats what they applied
UPRIGHT_WHEN_OPENED = ("TIFF", "HEIF")
AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION  # OpenCV does not know all EXIF, and the size has to be that of the pixels
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # what turns an orientation upright, after SIDEWAYS ones are transposed


def read_image(path: Path | str) -> np.ndarray:
    """Decode one image file: (H, W, 3) uint8 BGR, upright.

    Raises:
        UnreadableImage: missing, empty, no image, damaged, truncated, or too large.
    """
    return decode_image(read_photo(path))


def decode_thumbnail(data: bytes, longest_side: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A small version of an image: (h, w, 3) uint8 BGR, upright, max(h, w) <= longest_side, never enlarged.

    A JPEG is decoded at a half, a quarter or an eighth where that is enough: it takes a fraction of the time and memory.
    `max_pixels` counts what is decoded, a JPEG after that reduction.

    Raises:
        UnreadableImage: as `read_image`; a truncated JPEG is not noticed.
    """
    with open_image(BytesIO(data)) as header:
        scales = REDUCED if header.format in ("JPEG", "MPO") else {}
        scale = next((scale for scale in scales if max(header.size) // scale >= longest_side), 1)
        _check_pixels(header.width // scale, header.height // scale, max_pixels)
        if scale == 1:
            return shrunk(decode_image(data), longest_side)
        return shrunk(_upright(_decode_with_opencv(data, REDUCED[scale]), _orientation(header)), longest_side)


def shrunk(photo: np.ndarray, longest_side: int) -> np.ndarray:
    """A photo (H, W, 3), its longest side no longer than that."""
    height, width = photo.shape[:2]
    scale = longest_side / max(height, width)
    if scale >= 1:
        return photo
    size = (max(1, round(width * scale)), max(1, round(height * scale)))  # a line of pixels keeps one
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, from the bytes of a file."""
    if not data:
        raise UnreadableImage("empty file")
    with open_image(BytesIO(data)) as image:
        _check_pixels(image.width, image.height, max_pixels)
        if image.format not in OPENCV_FORMATS:
            return _upright(_decode_with_pillow(image), _orientation(image))
        _check_complete(image)
        return _upright(_decode_with_opencv(data, cv2.IMREAD_COLOR), _orientation(image))


def read_image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file, upright, without keeping its pixels.

    Raises:
        UnreadableImage: no image, one that is damaged where it says its size, or too large.
    """
    try:
        with open(path, "rb") as file, open_image(file) as image:
            sideways = _orientation(image) in SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror or error}") from error


def _decode_with_opencv(data: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | AS_STORED)
    except cv2.error as error:
        raise UnreadableImage(f"cannot be decoded: {error.err or error}") from error
    if image is None:
        raise UnreadableImage("cannot be decoded: damaged, or a variant that OpenCV does not read")
    return image


def _decode_with_pillow(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 BGR of an image that was opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray(tiffs.upper_8_bits(image, np.asarray(image)))
        elif image.mode in ("I", "F"):
            raise UnreadableImage(tiffs.unread(image.tag_v2, "the range of their values is not known"))  # type: ignore[attr-defined]
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways on damaged files
        raise UnreadableImage(_damage(error)) from error


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A photo (H, W, 3) as stored, turned upright."""
    if orientation in SIDEWAYS:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, FLIPS[orientation]) if orientation in FLIPS else pixels


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation where it still has to be applied; 1, upright, where there is none or it cannot be read."""
    if image.format in UPRIGHT_WHEN_OPENED:
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's parsers of EXIF fail in many ways on damaged files
        return 1


def _check_complete(image: Image.Image) -> None:
    """OpenCV fills the missing part of a truncated file with grey, without an error; Pillow's decoder raises one.

    WebP needs no check: OpenCV refuses truncated files, and Pillow would take gigabytes for a large canvas.
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


def open_image(file: BinaryIO) -> Image.Image:
    """Read the header of an image file, by its content. Pixels are counted before there is memory for them."""
    start = file.read(8)
    boxed = start[4:] == b"ftyp"
    file.seek(0)
    if boxed:
        _register_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if start.startswith(tiffs.STARTS):
                image: Image.Image = (tiff := tiffs.Tiff(file))
                # a small picture may be a corner of one huge tile
                _check_pixels(tiff.tag_v2.get(tiffs.TILE_WIDTH, 1), tiff.tag_v2.get(tiffs.TILE_LENGTH, 1))
            else:
                image = Image.open(file, formats=BOXED_FORMATS if boxed else FORMATS)
        except UnreadableImage:
            raise
        except Image.DecompressionBombError as error:
            raise UnreadableImage(f"more than {MAX_PIXELS:,} pixels") from error
        except UnidentifiedImageError as error:
            if boxed:  # as videos are, too
                raise UnreadableImage("no AVIF or HEIC image: damaged, truncated, or a video") from error
            raise UnreadableImage(f"not an image ({', '.join(FORMATS + BOXED_FORMATS)})") from error
        except Exception as error:  # its parsers fail in many ways on damaged headers
            raise UnreadableImage(_damage(error)) from error
    _check_pixels(image.width, image.height)
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
