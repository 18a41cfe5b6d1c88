"""Every odd file that lives in photo collections."""

import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.photos import (
    decode_image,
    decode_thumbnail,
    read_image,
    read_image_size,
)
from pipeline.inputs.sources import RemoteFolder, describe_skipped, list_photos
from pipeline.inputs.storage import Status

pillow_heif.register_heif_opener()  # to write HEICs
REPOSITORY = Path(__file__).resolve().parents[3]

# A scene in which every corner is told apart: red, green / blue, white (RGB).
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
SCENE = CORNERS.repeat(20, 0).repeat(30, 1)  # 40 high, 60 wide


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def corners(image: np.ndarray) -> np.ndarray:
    """RGB of the four corners of a BGR image, coarsely."""
    return (image[[3, 3, -4, -4], [3, -4, 3, -4], ::-1].astype(int) + 64) // 128


SCENE_CORNERS = corners(SCENE[:, :, ::-1])


FORMATS = ["JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "HEIF"]


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_by_content(kind: str) -> None:
    image = decode_image(encoded(Image.fromarray(SCENE), kind))
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_array_equal(corners(image), SCENE_CORNERS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_come_out_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """A HEIC as an iPhone writes it: turned by its container (irot, imir), and by EXIF, which only repeats it."""
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    photo = Image.fromarray(SCENE)
    stored = photo if inverse is None else photo.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    path.write_bytes(data := encoded(stored, kind, exif=exif.tobytes()))
    if kind == "HEIF":
        assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    np.testing.assert_array_equal(corners(read_image(path)), SCENE_CORNERS)
    assert read_image_size(path) == (40, 60)
    thumbnail = decode_thumbnail(path.read_bytes(), 30)
    assert thumbnail.shape == (20, 30, 3)
    np.testing.assert_array_equal(corners(thumbnail), SCENE_CORNERS)


@pytest.mark.parametrize(("orientation", "stored"), [(2, SCENE[:, ::-1]), (6, SCENE.swapaxes(0, 1)[::-1])])
def test_exif_that_opencv_does_not_read_turns_photos(tmp_path: Path, orientation: int, stored: np.ndarray) -> None:
    """A number of four bytes in big-endian order, a PNG's EXIF that begins as a JPEG's does, and XMP alone."""
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 4, 1, orientation) + bytes(4)
    jpeg, png = (encoded(Image.fromarray(np.ascontiguousarray(stored)), kind) for kind in ("JPEG", "PNG"))
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="%d"/>' % orientation
    in_jpeg = [jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(said) + 2) + said + jpeg[2:] for said in (exif, xmp)]
    for data in (*in_jpeg, png[:33] + png_chunk(b"eXIf", exif) + png[33:]):
        (tmp_path / "photo").write_bytes(data)
        assert read_image_size(tmp_path / "photo") == (40, 60)
        for photo in (read_image(tmp_path / "photo"), decode_thumbnail(data, 30)):
            np.testing.assert_array_equal(corners(photo), SCENE_CORNERS)


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "TIFF"), ("L", "TIFF"), ("1", "TIFF"), ("P", "TIFF"), ("RGBA", "TIFF"), ("CMYK", "TIFF"),
                       ("P", "GIF"), ("L", "GIF"), ("RGBA", "AVIF"), ("L", "AVIF"), ("RGBA", "HEIF"), ("L", "HEIF")]
)  # fmt: skip
def test_modes_of_the_formats_that_pillow_decodes(mode: str, kind: str) -> None:
    if mode == "I;16":
        photo = Image.fromarray(SCENE[..., 1].astype(np.uint16) * 257)
    else:
        photo = Image.fromarray(SCENE).convert(mode)
    image = decode_image(encoded(photo, kind))
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    if mode in ("P", "RGBA", "CMYK"):
        np.testing.assert_array_equal(corners(image), SCENE_CORNERS)
    else:
        assert image[-4, -4].min() > 240
        assert image[-4, 3].max() < 120


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
        (32, (0xFF000000, 0xFF00, 0xFF)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
    ],
)
def test_masks_say_where_the_colours_of_a_bmp_are(bits: int, masks: tuple[int, ...], header: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3))
    values, expected = np.zeros((4, 6), int), np.zeros_like(rgb)
    for colour, mask in enumerate(masks):
        unit = mask & -mask
        kept = rgb[..., colour] * (mask // unit + 1) // 256
        values += kept * unit
        expected[..., colour] = kept * 255 // (mask // unit)
    pixels = values[::-1].astype(f"<u{bits // 8}").tobytes()
    after = (struct.pack("<3I", *masks) + bytes(99))[: max(header - 40, 12)]
    info = struct.pack("<IiiHHIIiiII", header, 6, 4, 1, bits, 3, len(pixels), 0, 0, 0, 0) + after
    data = struct.pack("<2sIHHI", b"BM", 14 + len(info + pixels), 0, 0, 14 + len(info)) + info + pixels
    np.testing.assert_array_equal(decode_image(data)[..., ::-1], expected)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", "HEIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    others = [Image.fromarray(SCENE[::-1, ::-1].copy())] * 2
    image = decode_image(encoded(Image.fromarray(SCENE), kind, save_all=True, append_images=others))
    np.testing.assert_array_equal(corners(image), SCENE_CORNERS)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16"])
def test_modes_become_bgr(mode: str) -> None:
    if mode == "I;16":
        data = encoded(Image.fromarray(SCENE[..., 1].astype(np.uint16) * 257), "PNG")
    else:
        data = encoded(Image.fromarray(SCENE).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    image = decode_image(data)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    if mode in ("P", "RGBA", "CMYK"):
        np.testing.assert_array_equal(corners(image), SCENE_CORNERS)
    else:
        assert image[-4, -4].min() > 240  # white stays white, 16 bit included
        assert image[-4, 3].max() < 120


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(999)))
        + png_chunk(b"IEND", b"")
    )


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\x00" * 500, "not an image"),
        (b"<html>404</html>", "not an image"),
        (encoded(Image.fromarray(SCENE), "PPM"), "not an image"),
        (encoded(NOISE, "GIF")[:-900], "truncated"),
        (encoded(NOISE, "TIFF")[:-900], "truncated"),
        (encoded(NOISE, "TIFF", compression="tiff_lzw")[:-900], "truncated|damaged|not an image"),
        (encoded(NOISE, "AVIF")[:-900], "no AVIF or HEIC image: damaged, truncated"),
        (encoded(NOISE, "HEIF")[:-900], "truncated"),
        (encoded(NOISE, "JPEG")[:-900], "truncated"),
        (encoded(NOISE, "PNG")[:-900], "truncated"),
        (encoded(NOISE, "WEBP")[:-900], "damaged|not an image|truncated"),
        (encoded(NOISE, "JPEG")[:30], "damaged|not an image|truncated"),
        (bomb(), "more than 120,000,000"),
    ],
)
def test_what_is_no_whole_image_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True, "append_images": [NOISE.rotate(90)]}])
def test_truncated_webp_is_refused_wherever_it_ends(options: dict) -> None:
    data = encoded(NOISE, "WEBP", **options)
    assert decode_image(data).shape == (64, 64, 3)
    for kept in range(1, len(data), 97):
        with pytest.raises(UnreadableImage):
            decode_image(data[:kept])
    with pytest.raises(UnreadableImage):
        decode_image(data[:-1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("AVIF", {}),
     ("HEIF", {})],
)  # fmt: skip
def test_what_pillow_decodes_is_refused_wherever_it_is_cut(kind: str, options: dict) -> None:
    data = encoded(NOISE, kind, **options)
    whole = decode_image(data)
    for kept in range(1, len(data), 97):
        try:
            cut = decode_image(data[:kept])
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(cut, whole)  # only what the picture does not need was cut


def test_thumbnails_are_small_and_never_enlarged(tmp_path: Path) -> None:
    for kind in FORMATS:
        path = tmp_path / kind
        path.write_bytes(encoded(Image.fromarray(SCENE).resize((900, 600)), kind))
        thumbnail = decode_thumbnail(path.read_bytes(), 100)
        assert thumbnail.shape in [(66, 100, 3), (67, 100, 3)]
        np.testing.assert_array_equal(corners(thumbnail), SCENE_CORNERS)
        assert decode_thumbnail(path.read_bytes(), 5000).shape == (600, 900, 3)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (20_000, 2)])
def test_thumbnails_of_extreme_shapes_keep_a_line(tmp_path: Path, size: tuple[int, int]) -> None:
    for kind in ("JPEG", "PNG"):
        (tmp_path / "photo").write_bytes(encoded(Image.new("RGB", size, (200, 10, 10)), kind))
        thumbnail = decode_thumbnail((tmp_path / "photo").read_bytes(), 64)
        assert min(thumbnail.shape) >= 1
        assert max(thumbnail.shape[:2]) == min(64, max(size))


def test_thumbnails_bound_what_they_decode(tmp_path: Path) -> None:
    """A JPEG's pixels are counted after the reduction, another format's before it is decoded."""
    for kind in ("JPEG", "PNG"):
        (tmp_path / kind).write_bytes(encoded(Image.new("RGB", (4000, 3000)), kind))
    assert decode_thumbnail((tmp_path / "JPEG").read_bytes(), 300, max_pixels=1_000_000).shape == (225, 300, 3)
    with pytest.raises(UnreadableImage, match="4000 x 3000 pixels: more than 1,000,000"):
        decode_thumbnail((tmp_path / "PNG").read_bytes(), 300, max_pixels=1_000_000)
    with pytest.raises(UnreadableImage, match="4000 x 3000 pixels: more than 1,000,000"):
        decode_image((tmp_path / "PNG").read_bytes(), max_pixels=1_000_000)


def test_heif_is_imported_when_a_file_needs_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(NOISE, "JPEG"))
    (tmp_path / "b.heic").write_bytes(encoded(NOISE, "HEIF"))
    code = """
import sys
from pipeline.inputs.photos import read_image
for name in ("a.jpg", "b.heic"):
    read_image(sys.argv[1] + "/" + name)
    print("pillow_heif" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert said.split() == ["False", "True"]


def test_suffixes_may_lie(tmp_path: Path) -> None:
    path = tmp_path / "really_a.png"
    path.write_bytes(encoded(Image.fromarray(SCENE), "JPEG"))
    np.testing.assert_array_equal(corners(read_image(path)), SCENE_CORNERS)


def test_pipes_and_missing_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="not a file"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "none.jpg")


def test_decoding_is_what_opencv_reads(tmp_path: Path) -> None:
    path = tmp_path / "noise.jpg"
    NOISE.save(path)
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))


def test_listing_is_recursive_sorted_and_survives_loops(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/10.jpeg", "a.webp", "note.txt", ".hidden.jpg", ".git/x.png", "c/d/e.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    skipped: Counter[str] = Counter()
    found = [photo.image_id for photo in list_photos([tmp_path], skipped=skipped)]
    assert skipped == {".txt": 1}
    assert found == ["a.webp", "b/10.jpeg", "b/2.JPG", "broken.png", "c/d/e.bmp", "self.jpg"]


def test_thumbnails_and_deleted_photos_that_systems_keep_are_no_photos(tmp_path: Path) -> None:
    names = ["1.jpg", "a/2.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "a/@eaDir/2.jpg/x.jpg", "#recycle/3.jpg"]
    names += [
        f"b.photoslibrary/{name}/F/F1.jpeg" for name in ("originals", "resources/derivatives", "resources/renders")
    ]
    names += [f"c.photolibrary/{name}/2009/4.jpg" for name in ("Masters", "Thumbnails")]
    kept = ["1.jpg", "a/2.jpg", "b.photoslibrary/originals/F/F1.jpeg", "c.photolibrary/Masters/2009/4.jpg"]
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in names:
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "photos" / name).touch()
            archive.add(tmp_path / "photos" / name, name)
    skipped: Counter[str] = Counter()
    assert [photo.image_id for photo in list_photos([tmp_path / "photos"], skipped=skipped)] == kept
    assert describe_skipped(skipped) == (
        "skipped 6 other files (2 @eaDir, 2 b.photoslibrary/resources, 1 #recycle, 1 c.photolibrary/Thumbnails)"
    )
    assert len(list_photos([tmp_path / "photos/b.photoslibrary"])) == 1
    assert [photo.image_id for photo in list_photos([tmp_path / "photos.tar"])] == kept
    found = Counter[str]()
    assert [name for name, _ in RemoteFolder("s3://x", dict.fromkeys(names, Status(1, 1))).photos(found)] == kept
    assert found == skipped


def test_several_folders_prefix_their_ids(tmp_path: Path) -> None:
    for name in ("train2014/1.jpg", "val2014/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    photos = list_photos([tmp_path / "train2014", tmp_path / "val2014/"])
    assert [(photo.image_id, photo.path, photo.root) for photo in photos] == [
        ("train2014/1.jpg", "1.jpg", 0),
        ("val2014/1.jpg", "1.jpg", 1),
    ]


def test_other_files_are_counted_by_kind(tmp_path: Path) -> None:
    names = ["a.jpg", "b.HEIC", "c.tif", "d.gif", "e.avif", "f.jfif", "g.CR2", "h.cr2", "sub/i.nef", "j.mov", "README"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).touch()
    skipped: Counter[str] = Counter()
    assert len(list_photos([tmp_path], skipped=skipped)) == 6
    assert describe_skipped(skipped) == (
        "skipped 5 other files (2 .cr2, 1 without a suffix, 1 .mov, 1 .nef); "
        "camera raw files have to be converted to JPEG first"
    )
    assert "raw" not in describe_skipped(Counter({".txt": 1000}))


def test_folders_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"no photo found, looked for \.avif, \.bmp"):
        list_photos([tmp_path])
    with pytest.raises(PipelineError, match="not there; expected a folder of photos"):
        list_photos([tmp_path / "nowhere"])
    (tmp_path / "a.jpg").touch()
    with pytest.raises(PipelineError, match="a file; expected a folder"):
        list_photos([tmp_path / "a.jpg"])
    with pytest.raises(PipelineError, match="two folders have the same name"):
        list_photos([tmp_path, tmp_path])
