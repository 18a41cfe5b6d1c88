"""TIFFs: their tags decide who decodes them truly.

| TIFF | decoded by |
|---|---|
| compressed, or its samples plane by plane (PlanarConfiguration 2) | libtiff in Pillow: Pillow's own decoder makes garbage of planes of 16 bits |
| any other of a kind that Pillow knows | Pillow |
| grey of 12 or 16 bits | as above; `upper_8_bits` scales and inverts it, which Pillow does not |
| other kinds: float, 16-bit grey with alpha, five bands, … | nobody: the reason says what was found |

OpenCV is no help: it multiplies colours by alpha, and turns an image tile by tile.
"""

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import II, MM, OPEN_INFO, PREFIXES, ImageFileDirectory_v2, TiffImageFile

from pipeline.errors import UnreadableImage

STARTS = tuple(PREFIXES)  # of a TIFF
BITS, PHOTOMETRIC, SAMPLES, PLANAR, TILE_WIDTH, TILE_LENGTH = 258, 262, 277, 284, 322, 323  # tags
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
WHITE_IS_ZERO = 0  # PHOTOMETRIC
PLANE_BY_PLANE = 2  # PLANAR
NUMBERS = {1: "unsigned", 2: "signed", 3: "float"}  # SAMPLE_FORMAT

# Kinds that Pillow decodes, but does not open. Bits are packed in the same way in both orders of bytes.
for order in (II, MM):
    for photometric in (WHITE_IS_ZERO, 1):
        OPEN_INFO.setdefault((order, photometric, (1,), 1, (12,), ()), ("I;16", "I;12"))
OPEN_INFO.setdefault((MM, WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


class Tiff(TiffImageFile):
    """A TIFF that was opened, whose planes libtiff decodes.

    Raises:
        UnreadableImage: of a kind that nobody decodes.
    """

    def _open(self) -> None:
        try:
            super()._open()
            if self.mode == "RGBA" and EXTRA_SAMPLES not in self.tag_v2 and self.use_load_libtiff:
                self.tag_v2[EXTRA_SAMPLES] = (0,)  # no alpha: else colours are divided by it where it has a plane
                self._setup()
        except SyntaxError as error:
            if BITS in self.tag_v2 and SAMPLES in self.tag_v2:  # else its tags are cut off
                raise UnreadableImage(unread(self.tag_v2, str(error))) from error
            raise

    @property
    def use_load_libtiff(self) -> bool:  # which Pillow sets for compressed files
        return self.is_compressed or self.tag_v2.get(PLANAR) == PLANE_BY_PLANE

    @use_load_libtiff.setter
    def use_load_libtiff(self, is_compressed: bool) -> None:
        self.is_compressed = is_compressed


def unread(tags: ImageFileDirectory_v2, why: str) -> str:
    """The reason for which a TIFF of this kind is not read."""
    bits, numbers = max(tags[BITS]), max(tags.get(SAMPLE_FORMAT, (1,)))
    return (
        f"TIFF with {tags.get(SAMPLES)} x {bits} bits a pixel ({NUMBERS.get(numbers, 'undefined')}, "
        f"PhotometricInterpretation {tags.get(PHOTOMETRIC)}): {why}; expected a common kind, such as grey or RGB of 8 or 16 bits; "
        "convert it to PNG or JPEG"
    )


def upper_8_bits(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint8, where 0 is black, of the pixels of a grey TIFF (H, W) of 12 or 16 bits, as OpenCV takes them of a PNG."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    grey = (pixels >> (tags[BITS][0] - 8)).astype(np.uint8)
    return ~grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey
