"""Photos that are no longer those whose features are stored: in a container, put away, or edited while a server runs."""

import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import pipeline.runs
import pipeline.service.dates
from pipeline.photo_lookup import AskedPhoto
from pipeline.search import open_search
from pipeline.service.library import Library
from pipeline.store.format import PLAN
from pipeline.store.reader import open_stores
from tests.photos import write_photos
from tests.pipeline.service.servers import make_server, search
from tests.world import PHOTO, scan

EXTRACT = ["extract", "--num-regions", "6", "--workers", "0", "--device", "cpu", "--output", "features/mine"]
MINE = ["--features", "features/mine"]


@pytest.fixture
def project(inside: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and a folder of six photos of a day each."""
    shutil.copytree(inside / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    write_photos(tmp_path / "photos", 6)
    return tmp_path


def extracted(source: str) -> None:
    done = scan(*EXTRACT, "--images", source)
    assert done.exit_code == 0, done.output


def pack(photos: list[Path]) -> None:
    """A tar as webdataset writes it: names are numbers, whatever photos they are."""
    with tarfile.open("all.tar", "w") as tar:
        for number, path in enumerate(photos):
            tar.add(path, f"{number:06}.jpg")


def test_a_photo_of_a_tar_that_was_packed_again_is_not_answered_with_its_old_regions(project: Path) -> None:
    photos = sorted(Path("photos").iterdir())
    pack(photos)
    extracted("all.tar")
    before = open_search(features=["features/mine"]).find("000002.jpg").regions
    pack([*photos[:2], photos[3], photos[2], photos[4]])
    opened = open_search(features=["features/mine"])
    assert (opened.find("000002.jpg").regions.features != before.features).any()
    asked = scan("retrieve", "--query", "a dog", "--json", *MINE, "--html", "page.html")
    assert "3 of these photos changed since they were extracted (000002.jpg, …)" in asked.stderr
    hits = json.loads(asked.stdout)[0]["hits"]
    assert sorted(hit["image"][5] for hit in hits if hit["changed"]) == ["2", "3", "5"]  # the last one is in it no more
    library = Library(opened.collection)
    assert [row for row in range(6) if library.is_changed(row)] == [2, 3, 5]


def test_photos_of_two_stores_are_said_to_be_found_twice(project: Path) -> None:
    """Of a folder that was extracted first, and of the folder above it."""
    write_photos(Path("photos/trip"), 4, names="t{}.jpg")
    for folder in ("photos/trip", "photos"):
        assert scan(*EXTRACT[:-2], "--images", folder).exit_code == 0
    write_photos(Path("other"), 3)
    assert scan(*EXTRACT[:-2], "--images", "other").exit_code == 0
    note = "note: 4 photos are in features/photos and in features/trip, and are found twice; name one with --features"
    asked = scan("retrieve", "--query", "a dog", "--top", "20")
    assert (asked.exit_code, [line for line in asked.stderr.splitlines() if "twice" in line]) == (0, [note])
    assert "twice" not in scan("retrieve", "--query", "a dog", "--features", "features/photos").stderr


def test_it_is_said_where_not_all_photos_of_an_answer_are_compared(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted("photos")
    monkeypatch.setattr("pipeline.photo_lookup.MOST_COMPARED", 5)
    note = "not compared with what was extracted: photos from rank 6 on"
    asked = ("retrieve", "--query", "a dog", "--image", "001.jpg", "--captions", "captions.tsv", *MINE)
    Path("captions.tsv").write_text("".join(f"00{number}.jpg\ta dog {number}\n" for number in range(6)))
    for top, said, known in ((5, 0, 5), (6, 1, 5)):
        assert scan(*asked, "--top", str(top), "--html", "page.html").stdout.count(f"note: {note}") == said
        assert Path("page.html").read_text().count(note) == said
        photos, captions = json.loads(scan(*asked, "--top", str(top), "--json").stdout)
        assert [hit["changed"] for hit in photos["hits"]] == [False] * known + [None] * (top - known)
        assert {hit["changed"] for hit in captions["hits"]} == {False}


def test_photos_that_are_gone_are_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extracted("photos")
    monkeypatch.setattr("pipeline.photo_lookup.MOST_COMPARED", 1)  # to look where a file is reads none
    for number, name in enumerate(("004.jpg", "003.jpg"), start=1):
        Path("photos", name).unlink()
        said = scan("retrieve", "--query", "a dog", *MINE)
        assert f"note: the files of {number} of these photos are gone ({name}, …)" in said.stderr
    client = TestClient(make_server(features=("features/mine",)).app())
    for hits in (search(client, "a dog")["hits"], search(client)["hits"]):
        gone = [hit for hit in hits if hit["gone"]]
        assert sorted(hit["name"] for hit in gone) == ["003.jpg", "004.jpg"]
        assert all(client.get(f"/v1/photos/{hit['id']}").json()["gone"] for hit in gone)


def test_a_file_here_is_not_the_stored_photo_of_its_name_that_is_gone(project: Path) -> None:
    extracted("photos")
    Path("captions.tsv").write_text("".join(f"00{number}.jpg\ta dog {number}\n" for number in range(6)))
    shutil.copy("photos/003.jpg", "001.jpg")
    shutil.move("photos", "away")  # as a disk that is not connected
    said = scan("retrieve", "--image", "001.jpg", "--captions", "captions.tsv", "--json", *MINE)
    assert "001.jpg is in no store: extracting its regions" in said.stderr
    assert [hit["caption"] for hit in json.loads(said.stdout)[0]["hits"] if hit["right"]] == ["a dog 3"]
    opened = open_search(features=["features/mine"])
    found = opened.find("001.jpg")
    assert isinstance(found, AskedPhoto)
    assert found.image == "./001.jpg"
    assert len(opened.similar("001.jpg").hits) == 6  # the stored 001.jpg is another photo


def test_a_server_does_not_search_by_a_photo_that_changed(project: Path) -> None:
    extracted("photos")
    client = TestClient(make_server(features=("features/mine",)).app())
    photo = next(hit["id"] for hit in search(client, "a dog")["hits"] if hit["name"] == "002.jpg")
    assert search(client, images=[photo])["hits"]
    shutil.copy("photos/004.jpg", "photos/002.jpg")
    asked = ({"images": [photo]}, {"queries": ["a dog"], "images": [photo], "combine": True})
    refused = [client.post("/v1/search", json=one) for one in asked] + [client.get(f"/v1/photos/{photo}/embeddings")]
    assert {(one.status_code, one.json()["error"]) for one in refused} == {
        (400, "002.jpg: changed since it was extracted; extract it again")
    }
    assert [hit["name"] for hit in search(client, "a dog")["hits"] if hit["changed"]] == ["002.jpg"]


def test_a_photo_that_changed_is_marked_wherever_in_an_answer_it_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading files is what takes time, not looking when they were touched."""
    extracted("photos")
    monkeypatch.setattr("pipeline.service.library.MOST_READ", 1)
    client = TestClient(make_server(features=("features/mine",)).app())
    first, *_, before, last = (hit["name"] for hit in search(client, "a dog")["hits"])
    for name in (last, before):
        shutil.copy("photos/000.jpg" if name != "000.jpg" else "photos/001.jpg", f"photos/{name}")
        marked = [hit["name"] for hit in search(client, "a dog")["hits"] if hit["changed"]]
        assert sorted(marked) == sorted({last, name})
    for name in (first, before):
        Path(f"photos/{name}").touch()
    for found in ({first: False, before: None}, {first: False, before: True}):  # one is read for each answer
        hits = {hit["name"]: hit["changed"] for hit in search(client, "a dog")["hits"]}
        assert {name: hits[name] for name in found} == found


def test_photos_of_a_folder_that_took_the_place_of_another_are_marked(project: Path) -> None:
    """Renaming a folder touches none of its files: those of 2020 are older than the extraction of 2019."""
    photos = sorted(Path("photos").iterdir())
    for path in photos:
        path.with_name(f"{path.stem}.tmp").write_bytes(photos[photos.index(path) - 1].read_bytes())
    Path("2020").mkdir()
    for path in photos:
        path.with_name(f"{path.stem}.tmp").rename(Path("2020") / path.name)
    shutil.copy2("photos/003.jpg", "2020/003.jpg")  # the same photo in both
    time.sleep(0.05)  # a clock of files is coarse
    extracted("photos")
    client = TestClient(make_server(features=("features/mine",)).app())
    assert not any(hit["changed"] for hit in search(client, "a dog")["hits"])
    Path("photos").rename("2019")
    Path("2020").rename("photos")
    hits = search(client, "a dog")["hits"]
    assert sorted(hit["name"] for hit in hits if not hit["changed"]) == ["003.jpg"]
    assert len(hits) == 6


def test_a_server_says_that_a_store_is_not_extracted_to_its_end(project: Path) -> None:
    """As while a photo that changed is extracted again, with all of its shard."""
    extracted("photos")
    path = Path("features/mine/manifest.json")
    for complete in (True, False):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"complete": complete}))
        client = TestClient(make_server(features=("features/mine",)).app())
        told = client.post("/v1/search", json={"queries": ["a dog"]}), client.get("/v1/index")
        assert [answer.json()["complete"] for answer in told] == [complete] * 2


def test_a_photo_that_changed_while_its_shard_was_made_is_marked(project: Path) -> None:
    extracted("photos")
    store = Path("features/mine")
    planned = (store / PLAN).stat().st_mtime
    shutil.copy("photos/004.jpg", "photos/002.jpg")
    for path in store.glob("shard-*"):  # which took its name a moment later
        os.utime(path, (planned + 60, planned + 60))
    library = Library(open_stores([store]))
    assert [row for row in range(6) if library.is_changed(row)] == [2]


def test_a_day_that_was_corrected_is_told_also_where_the_files_time_was_kept(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dated(day: str) -> None:
        """As `exiftool -P` writes it."""
        path, exif = Path("photos/002.jpg"), Image.Exif()
        kept = path.stat().st_mtime_ns
        exif[0x0132] = f"{day} 12:00:00"
        Image.open(path).save(path, exif=exif)
        os.utime(path, ns=(kept, kept))

    dated("2021:05:01")
    extracted("photos")
    client = TestClient(make_server(features=("features/mine",)).app())
    asked = {"filter": {"until": "2021-12-31"}}
    assert [hit["date"] for hit in search(client, "a dog", **asked)["hits"]] == ["2021-05-01"]
    dated("2015:05:01")
    (hit,) = (hit for hit in search(client, "a dog")["hits"] if hit["name"] == "002.jpg")
    assert (hit["date"], hit["changed"]) == ("2015-05-01", True)
    monkeypatch.setattr(pipeline.service.dates, "KEPT", 0.0)
    client = TestClient(make_server(features=("features/mine",)).app())
    for day, found in (("2015:05:01", 1), ("2025:05:01", 0), ("2020:05:01", 1)):  # while the server runs
        dated(day)
        assert len(search(client, "a dog", **asked)["hits"]) == found


def test_a_photo_that_changed_is_not_answered_with_its_old_regions(own_world: Path) -> None:
    # The store finds its photos by absolute path first: those of the copy have to be the ones that are there.
    extracted = scan("extract", "--images", "coco/train2014", "--output", "features/mine", "--num-regions", "6", "--workers", "0", "--device", "cpu")  # fmt: skip
    assert extracted.exit_code == 0, extracted.output
    first, second = (Path("coco/train2014") / PHOTO.format(number) for number in (3, 4))
    old, new = (open_search(features=["features/mine"]).find(path.name).regions for path in (first, second))
    first.write_bytes(second.read_bytes())
    said: list[str] = []
    search = open_search(features=["features/mine"], report=said.append)
    found = search.find(first.name).regions
    np.testing.assert_allclose(found.boxes, new.boxes, atol=0.1)
    assert not np.array_equal(found.boxes, old.boxes)
    assert "changed since it was extracted, and captions of its name may be of the photo before" in "".join(said)
    asked = scan("retrieve", "--query", "a dog by a tree", "--top", "20", "--features", "features/mine")
    (line,) = [line for line in asked.stdout.splitlines() if line.endswith("(changed)")]
    assert first.name in line
    told = scan(
        "retrieve", "--query", "dog", "--top", "20", "--features", "features/mine", "--html", "a.html", "--json"
    )
    assert [hit["image"] for hit in json.loads(told.stdout)[0]["hits"] if hit["changed"]] == [first.name]
    assert Path("a.html").read_text().count("changed since it was extracted") == 2
    assert f"1 of these photos changed since they were extracted ({first.name}, …)" in asked.stderr
