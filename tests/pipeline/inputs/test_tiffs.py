"""TIFFs of every common layout become the pixels that were written; what is not read is named."""

import itertools
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UnreadableImage
from pipeline.inputs.photos import decode_image, decode_thumbnail, read_image, read_image_size

NONE, LZW, DEFLATE = 1, 5, 8  # Compression
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5  # PhotometricInterpretation
HEIGHT, WIDTH = 24, 40


def lzw(data: bytes) -> bytes:
    """LZW that never learns: a code to clear comes before its codes need ten bits."""
    codes = [code for at in range(0, len(data), 250) for code in (256, *data[at : at + 250])] + [257]
    return packed_bits(np.array(codes), 9)


def packed_bits(values: np.ndarray, bits: int) -> bytes:
    return np.packbits(values[:, None] >> np.arange(bits - 1, -1, -1) & 1).tobytes()


def packed(pixels: np.ndarray, bits: int, order: str) -> bytes:
    if bits == 12:  # each row starts with a byte of its own
        return b"".join(packed_bits(row.reshape(-1), bits) for row in pixels)
    return pixels.astype(f"{order}u{bits // 8}").tobytes()


def tiff(
    pixels: np.ndarray,
    bits: int,
    photometric: int,
    *,
    plane_by_plane: bool = False,
    compression: int = NONE,
    tile: int = 0,
    rows: int = HEIGHT,
    order: str = "<",
    orientation: int = 1,
    extra: Sequence[int] = (),
    sample_format: int = 1,
) -> bytes:
    """A TIFF of pixels (H, W, samples), written without a library, whose errors it could share."""
    height, width, samples = pixels.shape
    groups = np.split(pixels, samples, axis=2) if plane_by_plane else [pixels]
    across, down = (tile or width), (tile or rows)
    compress = {NONE: bytes, LZW: lzw, DEFLATE: zlib.compress}[compression]
    pieces = []
    for group, y, x in itertools.product(groups, range(0, height, down), range(0, width, across)):
        piece = group[y : y + down, x : x + across]
        if tile:
            piece = np.pad(piece, ((0, tile - piece.shape[0]), (0, tile - piece.shape[1]), (0, 0)))
        pieces.append(compress(packed(piece, bits, order)))
    offsets, counts = (324, 325) if tile else (273, 279)
    tags: dict[int, Sequence[int]] = {
        256: [width], 257: [height], 258: [bits] * samples, 259: [compression], 262: [photometric], 274: [orientation],
        277: [samples], 284: [2 if plane_by_plane else 1], 339: [sample_format] * samples,
        offsets: [0] * len(pieces), counts: [len(piece) for piece in pieces],
        **({322: [tile], 323: [tile]} if tile else {278: [rows]}), **({338: extra} if extra else {}),
    }  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4  # where values lie that do not fit into their entry
    start = after + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    tags[offsets] = [start + sum(map(len, pieces[:index])) for index in range(len(pieces))]
    entries = beyond = b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        entries += struct.pack(f"{order}HHI", tag, 4, len(values))
        entries += content if len(values) == 1 else struct.pack(f"{order}I", after + len(beyond))
        beyond += content if len(values) > 1 else b""
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    return head + entries + bytes(4) + beyond + b"".join(pieces)


def random_pixels(samples: int, bits: int) -> np.ndarray:
    return np.random.default_rng(samples * bits).integers(0, 1 << bits, (HEIGHT, WIDTH, samples))


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a file of this orientation holds."""
    sideways = upright.swapaxes(0, 1)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: sideways,
        6: sideways[::-1],
        7: sideways[::-1, ::-1],
        8: sideways[:, ::-1],
    }[orientation]


@pytest.mark.parametrize("plane_by_plane", [False, True])
@pytest.mark.parametrize(
    ("samples", "bits", "photometric", "extra"),
    [
        (1, 8, BLACK_IS_ZERO, ()),
        (1, 12, BLACK_IS_ZERO, ()),
        (1, 16, BLACK_IS_ZERO, ()),
        (1, 8, WHITE_IS_ZERO, ()),
        (1, 12, WHITE_IS_ZERO, ()),
        (1, 16, WHITE_IS_ZERO, ()),
        (2, 8, BLACK_IS_ZERO, (2,)),
        (3, 8, RGB, ()),
        (3, 16, RGB, ()),
        (4, 8, RGB, (2,)),  # alpha
        (4, 16, RGB, (2,)),
        (4, 8, RGB, (0,)),  # a band that is neither colour nor alpha
        (4, 16, RGB, (0,)),
        (4, 8, RGB, ()),  # a band that is not said to be anything
        (4, 16, RGB, ()),
        (4, 8, CMYK, ()),
        (4, 16, CMYK, ()),
    ],
)
def test_pixels_are_those_that_were_written(
    samples: int, bits: int, photometric: int, extra: Sequence[int], plane_by_plane: bool
) -> None:
    upright = random_pixels(samples, bits)
    upper = upright >> (bits - 8)
    if photometric == CMYK:
        upper = np.asarray(Image.fromarray(upper.astype(np.uint8), "CMYK").convert("RGB"))
    rgb = upper[..., :3] if samples > 2 else upper[..., [0, 0, 0]]
    expected = (255 - rgb if photometric == WHITE_IS_ZERO else rgb)[..., ::-1]
    for compression, (tile, rows), order, orientation in itertools.product(
        (NONE, LZW, DEFLATE), ((0, 7), (0, HEIGHT), (16, 0)), "<>", range(1, 9)
    ):
        layout = {
            "compression": compression, "tile": tile, "rows": rows, "order": order, "orientation": orientation,
        }  # fmt: skip
        data = tiff(
            stored(upright, orientation), bits, photometric, extra=extra, plane_by_plane=plane_by_plane, **layout
        )
        np.testing.assert_array_equal(decode_image(data), expected, err_msg=str(layout))


def test_colours_before_alpha_was_multiplied_are_shown() -> None:
    colours, alpha = random_pixels(3, 8) // 2, np.full((HEIGHT, WIDTH, 1), 128)
    for bits, plane_by_plane in itertools.product((8, 16), (False, True)):
        premultiplied = np.dstack([colours, alpha]) << (bits - 8)
        data = tiff(premultiplied, bits, RGB, extra=(1,), plane_by_plane=plane_by_plane)
        np.testing.assert_allclose(decode_image(data)[..., ::-1], np.minimum(colours * 255 / 128, 255), atol=1.01)


def test_planes_have_the_size_and_the_thumbnail_of_the_photo(tmp_path: Path) -> None:
    photo = np.full((HEIGHT, WIDTH, 3), (0x2000, 0x4000, 0x8000))
    path = tmp_path / "planes.tif"
    path.write_bytes(tiff(stored(photo, 6), 16, RGB, plane_by_plane=True, orientation=6))
    assert read_image_size(path) == read_image(path).shape[:2] == (HEIGHT, WIDTH)
    assert decode_thumbnail(path.read_bytes(), 10).tolist() == [[[0x80, 0x40, 0x20]] * 10] * 6


@pytest.mark.parametrize(
    ("samples", "bits", "photometric", "sample_format", "found"),
    [
        (2, 16, BLACK_IS_ZERO, 1, r"2 x 16 bits a pixel \(unsigned, PhotometricInterpretation 1\)"),
        (5, 8, RGB, 1, r"5 x 8 bits a pixel \(unsigned, PhotometricInterpretation 2\)"),
        (9, 8, BLACK_IS_ZERO, 1, r"9 x 8 bits a pixel \(unsigned, PhotometricInterpretation 1\)"),
        (3, 32, RGB, 3, r"3 x 32 bits a pixel \(float, PhotometricInterpretation 2\)"),
        (1, 32, BLACK_IS_ZERO, 3, r"1 x 32 bits a pixel \(float, PhotometricInterpretation 1\)"),
        (1, 16, BLACK_IS_ZERO, 2, r"1 x 16 bits a pixel \(signed, PhotometricInterpretation 1\)"),
        (3, 12, RGB, 1, r"3 x 12 bits a pixel \(unsigned, PhotometricInterpretation 2\)"),
    ],
)
def test_what_is_not_read_is_named(samples: int, bits: int, photometric: int, sample_format: int, found: str) -> None:
    data = tiff(random_pixels(samples, bits), bits, photometric, sample_format=sample_format)
    with pytest.raises(UnreadableImage, match=f"^TIFF with {found}: .*; convert it to PNG or JPEG$"):
        decode_image(data)


def test_planes_that_are_cut_are_refused_wherever_they_end() -> None:
    data = tiff(random_pixels(3, 16), 16, RGB, plane_by_plane=True, rows=7)
    for kept in range(1, len(data), 97):
        with pytest.raises(UnreadableImage, match=r"damaged|truncated|not an image"):
            decode_image(data[:kept])


def test_a_tile_whose_width_is_a_word_is_damaged() -> None:
    data = tiff(random_pixels(3, 8), 8, RGB, compression=DEFLATE, tile=16)
    width, word = struct.pack("<HHI", 322, 4, 1), struct.pack("<HHI", 322, 2, 1)
    assert data.count(width) == 1
    with pytest.raises(UnreadableImage, match=r"^damaged: "):
        decode_image(data.replace(width, word))
