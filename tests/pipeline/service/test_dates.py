"""The day of a photo is that on which it was taken, whatever kind of file it is and however its camera writes times."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipeline.service.dates import CAMERA, CHANGED, DIGITIZED, TAKEN, _taken, _time

NOON = datetime(2019, 7, 1, 12).timestamp()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.heic", "a.avif"])
@pytest.mark.parametrize("tag", [TAKEN, DIGITIZED, CHANGED])
def test_every_kind_of_photo_says_when_it_was_taken(tmp_path: Path, name: str, tag: int) -> None:
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif._ifds[CAMERA] = {TAKEN: "0000:00:00 00:00:00"}  # as cameras write that they do not know
    (exif if tag == CHANGED else exif._ifds[CAMERA])[tag] = "2019:07:01 12:00:00"
    kind = {"a.heic": "HEIF"}.get(name)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / name, kind, exif=exif.tobytes())
    assert _taken(str(tmp_path / name), (0, 0)) == NOON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2019:07:01 12:00:00", NOON),
        ("2019:07:01 12:00:00+02:00", NOON),
        ("2019-07-01T12:00:00.123Z", NOON),
        (" 2019/07/01 12:00 ", NOON),
        ("2019:07:01 24:00:00", datetime(2019, 7, 1).timestamp()),
        ("2019:07:01 12:00:60", NOON + 59),
        ("2019:07:01", datetime(2019, 7, 1).timestamp()),
        ("2019:02:29 12:00:00", 0.0),
        ("    :  :     :  :  ", 0.0),
        ("0000:00:00 00:00:00", 0.0),
        (b"\xff", 0.0),
        (None, 0.0),
    ],
)
def test_times_as_cameras_and_programs_write_them(text: object, expected: float) -> None:
    assert _time(text) == expected
