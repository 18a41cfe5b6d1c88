"""The day of a photo is that on which it was taken, whatever kind of file it is and however its camera writes times."""

import tarfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.service.dates import CAMERA, CHANGED, DIGITIZED, TAKEN, _taken, _time
from pipeline.service.library import Library
from pipeline.service.schema import Filter
from pipeline.store.reader import open_stores
from tests.pipeline.service.servers import make_server, wait_for
from tests.world import PHOTO, extract_again

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
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / name, name)
    assert _taken(f"{tmp_path}/photos.tar::{name}", (0, 0)) == NOON


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


def test_days_at_the_ends_of_the_calendar(own_world: Path) -> None:
    library = Library(open_stores(["features/train2014"]))
    assert library.rows(Filter(until="9999-12-31")).tolist() == list(range(20))
    library.dates._known = np.where(np.arange(20) < 5, 0.0, library.dates.all())  # photos of no known date
    assert len(library.rows(Filter(until="2999-01-01"))) == 15


def test_photos_before_1970_have_a_date_and_those_of_no_date_have_none(
    own_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(open_stores(["features/train2014"]))
    monkeypatch.setattr(library.dates, "of", ([-86400.0 * 365 * 5] * 3 + [0.0] * 4 + [1.6e9] * 13).__getitem__)
    assert library.rows(Filter(until="1966-01-01")).tolist() == [0, 1, 2]
    assert library.rows(Filter(since="1960-01-01")).tolist() == [0, 1, 2, *range(7, 20)]
    assert len(library.rows(Filter(since="0001-01-01"))) == 16


def test_a_filter_by_days_waits_for_the_days_on_which_photos_were_taken(
    own_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Path("coco/train2014", PHOTO.format(3))
    exif = Image.Exif()
    exif[0x0132] = "2019:07:01 12:00:00"
    Image.open(photo).save(photo, exif=exif)
    extract_again()
    taken = _taken.__wrapped__
    monkeypatch.setattr("pipeline.service.dates._taken", lambda *of: time.sleep(0.02) or taken(*of))
    store = open_stores(["features/mine"])
    library = Library(store)
    assert [store.image_ids[row] for row in library.rows(Filter(until="2019-12-31"))] == [photo.name]
    assert store.image_ids[library.newest(None)[-1]] == photo.name
    assert library.photo(store.row(photo.name), local=True).date == "2019-07-01"
    monkeypatch.setattr("pipeline.service.library.PATIENCE", 0.01)  # a list does not wait for ever
    assert len(Library(store).newest(None)) == 20
    server = make_server(features=("features/mine",))
    with TestClient(server.app()) as client:
        pages = []
        for offset in (0, 10):  # the second one when the days are known
            pages.append(client.post("/v1/search", json={"offset": offset, "limit": 10}).json())
            wait_for(lambda: server.service.generation.library.dates.changes == 1)
    assert pages[0]["generation"] != pages[1]["generation"]  # so that a client begins again
