"""Files made to do harm, or by chance: refused with a reason, in little memory, and nothing in them leads anywhere.

Fuzzing finds them with hypothesis here, and with libFuzzer in tests/fuzz/readers.py; tests/fuzz/found keeps what was found.
"""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.errors import UnreadableImage
from pipeline.inputs.photos import decode_image, read_image_size
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from pipeline.store.plan import read_plan
from tests.fuzz import targets
from tests.fuzz.targets import MANIFEST, MARK, PLAN, TARGETS
from tests.photos import write_photos
from tests.stores import import_any
from tests.world import scan

REPOSITORY = Path(__file__).resolve().parents[3]
FOUND = sorted((REPOSITORY / "tests/fuzz/found").glob("*/*"))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp(width: int, height: int, bits: int = 24) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + header + bytes(100)


def webp(width: int, height: int, animated: bool) -> bytes:
    """An extended WebP whose canvas is larger than the picture in it."""
    picture = targets.small_images()[4][12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + bytes([0x02 if animated else 0, 0, 0, 0]) + size
    if animated:
        frame = bytes(6) + (16).to_bytes(3, "little") + (12).to_bytes(3, "little") + bytes([100, 0, 0, 0]) + picture
        body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    else:
        body += picture
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(targets.small_images()[0])
    start = data.find(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def resized(kind: str, width: int, height: int) -> bytes:
    """A small picture whose container says that it is another size."""
    data = bytearray(targets.small_image(kind))
    at = data.find(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    data = bytearray(targets.small_image("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff(width: int, height: int, tile: int = 0) -> bytes:
    """Deflated; in tiles of a size where one is given, else in one strip."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    body = zlib.compress(bytes(999))
    place = [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(body))] if tile else (
        [(273, 4, 8), (278, 4, height), (279, 4, len(body))])  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags + place))
    table = struct.pack("<H", len(tags + place)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + table


BOMBS = {
    "gif": gif(65_535, 65_535),
    "tiff": tiff(60_000, 60_000),
    "tiff, just above": tiff(12_000, 10_001),
    "png": png(60_000, 60_000),
    "png, the largest": png(2**31 - 1, 2**31 - 1),
    "png, just above": png(12_000, 10_001),
    "bmp": bmp(60_000, 60_000),
    "bmp, upside down": bmp(60_000, -60_000),
    "bmp of bits": bmp(200_000, 200_000, 1),
    "webp": webp(16_384, 16_384, False),
    "webp, animated": webp(2**16, 2**15, True),
    "jpeg": jpeg(65_500, 65_500),
    "jpeg, just above": jpeg(12_000, 10_001),
}


# Their decoders refuse these themselves, in their own words.
BOXED_BOMBS = {
    "heic": resized("HEIF", 60_000, 60_000),
    "heic, just above": resized("HEIF", 12_000, 10_001),
    "avif": resized("AVIF", 20_000, 16_000),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_by_pixel_count(tmp_path: Path, data: bytes) -> None:
    assert len(data) < 2000
    with pytest.raises(UnreadableImage, match="more than 120,000,000"):
        decode_image(data)
    (tmp_path / "bomb").write_bytes(data)
    with pytest.raises(UnreadableImage, match="more than 120,000,000"):
        read_image_size(tmp_path / "bomb")


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """In a fresh process, as its peak counts."""
    bombs = [BOMBS["png"], *BOXED_BOMBS.values(), *BOMBS.values()]  # the first is for the imports
    for index, data in enumerate(bombs):
        (tmp_path / f"{index:02}").write_bytes(data)
    code = """
import resource, sys
from pathlib import Path
from pipeline.inputs.photos import read_image
from pipeline.errors import UnreadableImage
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def refused(path):
    try:
        read_image(path)
    except UnreadableImage:
        return True
paths = sorted(Path(sys.argv[1]).iterdir())
refused(paths[0])
before = peak()
print(sum(map(bool, map(refused, paths))), peak() - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()
    assert int(said[0]) == len(bombs)
    assert int(said[1]) < 20_000  # kB


def test_a_small_tiff_in_one_huge_tile_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "tile.tif").write_bytes(tiff(100, 100, tile=30_000))
    code = """
import resource, sys
from pipeline.inputs.photos import decode_image, read_image
from pipeline.errors import UnreadableImage
try:
    decode_image(b"BM")
except UnreadableImage:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1])
except UnreadableImage as error:
    print(error, "|", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "tile.tif")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout
    assert "30000 x 30000 pixels: more than 120,000,000" in said
    assert int(said.split("|")[1]) < 20_000  # kB


def test_bombs_are_refused_wherever_photos_come_in(inside: Path, tmp_path: Path, small_weights: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(BOMBS["png"])
    for command in (
        ["retrieve", "--image", str(tmp_path / "bomb.png")],
        ["explain", "--image", str(tmp_path / "bomb.png"), "--caption", "a dog", "--output", str(tmp_path / "e.png")],
    ):
        said = scan(*command, "--run", "runs/t2i_mean", "--device", "cpu")
        assert said.exit_code == 2, said.output
        assert "more than 120,000,000 pixels" in said.output
    config, metrics = ServeConfig(run="runs/t2i_mean", weights=str(small_weights), device="cpu"), Metrics()
    server = Server(LocalService(config, metrics, say=lambda _: None), metrics)
    answer = TestClient(server.app()).post("/v1/captions", content=BOMBS["png"])
    assert answer.status_code == 400
    assert "more than 120,000,000 pixels" in answer.json()["error"]
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos/bomb.png").write_bytes(BOMBS["png"])
    command = ["extract", "--images", str(tmp_path / "photos"), "--output", str(tmp_path / "store"), "--device", "cpu"]
    assert scan(*command, "--num-regions", "4", "--workers", "0").exit_code == 0
    assert "more than 120,000,000 pixels" in (tmp_path / "store/failures.jsonl").read_text()


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_fuzzing_found_stays_fixed(path: Path) -> None:
    TARGETS[path.parent.name][0](path.read_bytes())


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """A file with bytes changed, cut out, repeated or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "end"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 8))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            del data[at:]
    return bytes(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 10**400, -1, 1e999, float("nan")])
    | st.text(max_size=9)
    | st.sampled_from(["..", "../x", "/etc/passwd", "a\0b", "\ud800", "float16", "F16", "I32"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged_json(draw: st.DrawFn, original: Any) -> Any:
    """A JSON value of which one part, anywhere, is another or gone."""
    if isinstance(original, (dict, list)) and original and draw(st.integers(0, 5)):
        keys = list(original) if isinstance(original, dict) else list(range(len(original)))
        key = draw(st.sampled_from(keys))
        copy: Any = original.copy()
        if draw(st.integers(0, 4)):
            copy[key] = draw(damaged_json(original[key]))
        else:
            del copy[key]
        return copy
    return draw(JSON)


FUZZING = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_give_an_answer_or_a_reason(name: str) -> None:
    target, originals = TARGETS[name]

    @FUZZING
    @given(damaged(originals()))
    def check(data: bytes) -> None:
        target(data)

    check()


@FUZZING
@given(damaged_json(MARK))
def test_damaged_marks(content: Any) -> None:
    targets.mark(json.dumps(content).encode())


@FUZZING
@given(damaged_json(MANIFEST))
def test_damaged_manifests(content: Any) -> None:
    targets.manifest(json.dumps(content).encode())


@FUZZING
@given(damaged_json(PLAN))
def test_damaged_plans(content: Any) -> None:
    rows = content if isinstance(content, list) else [content]
    targets.plan("\n".join(map(json.dumps, rows)).encode())


TENSORS = targets.small_tensors()
HEADER = json.loads(TENSORS[8 : 8 + int.from_bytes(TENSORS[:8], "little")])


@FUZZING
@given(damaged_json(HEADER))
@example({"features": {"dtype": "F16", "shape": [10**400, 0], "data_offsets": [0, 0]}})
def test_damaged_headers_of_tensors(content: Any) -> None:
    header = json.dumps(content).encode()
    numbers = TENSORS[8 + int.from_bytes(TENSORS[:8], "little") :]
    targets.tensors(struct.pack("<Q", len(header)) + header + numbers)


OUTSIDE = ["../secret.jpg", "/{outside}/secret.jpg", "a/../../secret.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_imported_features_stay_inside_the_photo_folder(tmp_path: Path, name: str) -> None:
    write_photos(tmp_path, 1, names="secret.jpg")
    write_photos(tmp_path / "photos/a", 1)
    name = name.replace("/{outside}", str(tmp_path))
    np.save(tmp_path / "x_ims.npy", np.ones((1, 2, 3), np.float32))
    (tmp_path / "x_caps.txt").write_text("a dog\n" * 5)
    (tmp_path / "x_ids.txt").write_text(f"{name}\n")
    photos = str(tmp_path / "photos")
    store = import_any(tmp_path, split="x", output=str(tmp_path / "s"), images=photos)
    assert store.image_path(0) is None
    assert store.regions(0).image_size == (0, 0)  # not even looked at
    (tmp_path / "x.tsv").write_bytes(targets.small_tsv().replace(b"7\t", f"{name}\t".encode(), 1))
    store = import_any(tmp_path / "x.tsv", output=str(tmp_path / "t"), images=photos)
    assert store.image_path(0) is None
    assert [path.name for path in tmp_path.iterdir() if "shard" in path.name] == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_a_plan_stay_inside_the_photo_folder(tmp_path: Path, name: str) -> None:
    row = {"image_id": "a.jpg", "path": name, "root": 0, "shard": 0}
    (tmp_path / "images.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"images\.jsonl: damaged \(path "):
        read_plan(tmp_path)


@pytest.mark.parametrize("read", [targets.captions, targets.tsv])
def test_nothing_is_read_where_nothing_is(read: Callable[[bytes], None]) -> None:
    read(b"")
