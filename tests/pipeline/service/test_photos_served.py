"""Photos of a server: which photo an address means, what is sent of it, and within which bounds."""

import asyncio
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.service import library, local
from pipeline.service.http import Server
from pipeline.service.local import Generation, LocalService
from pipeline.service.schema import ImageQuery
from pipeline.store.reader import open_stores
from tests.photos import write_photos
from tests.pipeline.service.servers import make_server, search
from tests.stores import make_store
from tests.world import scan

IMAGE = "COCO_train2014_000000000003.jpg"


def test_photos_and_explanations(client: TestClient, generation: Generation) -> None:
    photo = generation.library.id(generation.collection.row(IMAGE))
    response = client.get(f"/v1/photos/{photo}/image", params={"size": "32"})
    assert response.headers["content-type"] == "image/jpeg"
    picture = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) == 32
    data = client.get(f"/v1/photos/{photo}/explanation", params={"query": "a dog"}).json()
    assert data["words"] == ["a", "dog"]
    assert data["image"] == IMAGE
    about = client.get(f"/v1/photos/{photo}").json()
    assert about["name"] == IMAGE
    assert about["store"] == "features/train2014"
    assert (about["width"], about["height"]) == Image.open(about["path"]).size


def test_a_photo_that_was_replaced_since_it_was_found_is_not_shown_as_the_found_one(
    client: TestClient, generation: Generation
) -> None:
    """As by a page that was open all the time: its scores are of the photo before, and its pictures would be of the new one."""
    hit = next(hit for hit in search(client, queries=["a dog"])["hits"] if hit["name"] == IMAGE)
    address, version = f"/v1/photos/{hit['id']}", hit["version"]
    of_version = ("explanation?query=a+dog&", "image?", "original?")
    shown = [f"{address}/{part}version={version}" for part in of_version]
    assert [client.get(one).status_code for one in shown] == [200, 200, 200]
    path = Path(hit["path"])
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(content)  # by now extracted anew, for all that the page knows
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for one in shown:
        refused = client.get(one)
        assert refused.status_code == 400
        assert refused.json()["error"] == f"{IMAGE}: changed since it was found; search again"
    version = client.get(address).json()["version"]
    assert client.get(f"{address}/image", params={"version": version}).status_code == 200


def test_an_address_means_one_photo_and_changes_with_it(client: TestClient, generation: Generation) -> None:
    row = generation.collection.row(IMAGE)
    address = f"/v1/photos/{generation.library.id(row)}"
    first = client.get(f"{address}/image")
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    assert client.get(f"{address}/image", headers={"if-none-match": tag}).status_code == 304
    path = Path(generation.library.place(row))
    os.utime(path, (1, 1))
    changed = client.get(f"{address}/image", headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert changed.content == first.content
    content = path.read_bytes()
    path.write_bytes(Path(generation.library.place(0 if row else 1)).read_bytes())
    os.utime(path, (1, 1))  # as unpacked from an archive that gives all files one time
    other = client.get(f"{address}/image", headers={"if-none-match": changed.headers["etag"]})
    assert other.status_code == 200
    assert other.content != first.content
    path.write_bytes(content)
    original = client.get(f"{address}/original")
    assert original.headers["cache-control"] == "private, no-cache"
    assert original.content == path.read_bytes()
    assert IMAGE in original.headers["content-disposition"]


def test_an_id_stays_with_its_photo_whatever_else_is_searched(tmp_path: Path) -> None:
    for name in "ab":
        make_store(tmp_path / name, ["2019/x.jpg", f"2019/{name}.jpg"])
    alone = library.Library(open_stores([tmp_path / "b"]))
    both = library.Library(open_stores([tmp_path / "a", tmp_path / "b"], tell_apart=True))
    assert both.names == ["a/2019/x.jpg", "2019/a.jpg", "b/2019/x.jpg", "2019/b.jpg"]
    assert [both.row(alone.id(row)) for row in (0, 1)] == [2, 3]
    assert len({both.id(row) for row in range(4)}) == 4
    assert both.folders == ["2019"]


def test_stores_of_one_name_are_told_apart_without_the_folders_of_this_machine(
    inside: Path, small_weights: Path, tmp_path: Path
) -> None:
    stores = [tmp_path / folder / "features/photos" for folder in "ab"]
    for store in stores:
        photos = store.parents[1] / "photos"
        write_photos(photos, 3, shapes=[(48, 64)])
        command = ["extract", "--images", str(photos), "--output", str(store), "--weights", str(small_weights)]
        assert scan(*command, "--num-regions", "6", "--workers", "0", "--device", "cpu").exit_code == 0
    client = TestClient(make_server(features=tuple(map(str, stores)), host="0.0.0.0").app())
    names = client.get("/v1/index").json()["stores"]
    assert names == ["photos (1)", "photos (2)"]
    for name in names:
        answer = search(client, "a dog", limit=40, filter={"store": name})
        assert answer["searched"] == 3
        assert {(hit["store"], hit["name"]) for hit in answer["hits"]} == {
            (name, f"{name}/00{n}.jpg") for n in range(3)
        }
    assert str(tmp_path) not in client.post("/v1/search", json={"queries": ["a dog"], "limit": 40}).text
    refused = client.post("/v1/search", json={"queries": ["a dog"], "filter": {"store": "photos"}})
    assert refused.json()["error"].endswith("expected one of photos (1), photos (2)")


def test_a_store_that_is_called_as_another_would_be_numbered_keeps_its_name(tmp_path: Path) -> None:
    names = ("a/photos", "b/photos", "c/photos (1)")
    stores = [make_store(tmp_path / name, [f"{number}.jpg"]) for number, name in enumerate(names)]
    assert library.Library(open_stores([store.path for store in stores])).store_names == [
        "photos (2)",
        "photos (3)",
        "photos (1)",
    ]


def test_a_file_is_sent_whatever_bytes_its_name_has(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jpg")  # from a system of Latin-1
    path.write_bytes(b"a photo")
    monkeypatch.setattr(generation.collection, "image_place", lambda row: str(path))
    sent = client.get(f"/v1/photos/{generation.library.id(0)}/original")
    assert (sent.status_code, sent.content, sent.headers["content-type"]) == (200, b"a photo", "image/jpeg")
    assert sent.headers["content-disposition"] == "inline; filename*=utf-8''caf%E9.jpg"


def test_a_photo_that_is_too_large_is_refused_before_it_is_decoded(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, address = tmp_path / "large.png", f"/v1/photos/{generation.library.id(0)}/image"
    Image.new("1", (10_900, 10_900)).save(path)
    monkeypatch.setattr(generation.collection, "image_place", lambda row: str(path))
    refused = client.get(address)
    assert refused.status_code == 400
    assert refused.json()["error"].endswith("10900 x 10900 pixels: more than 50,000,000")
    assert str(tmp_path) not in refused.text
    for size in ((3000, 1), (1, 3000)):
        Image.new("RGB", size).save(path)
        assert client.get(address, params={"size": "64"}).status_code == 200


def test_photos_are_decoded_two_at_a_time(
    server: Server, generation: Generation, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, decoding, most, condition = set[int](), 0, 0, threading.Condition()

    def tag(row: int, side: int) -> str:  # of every request, before it waits
        with condition:
            asked.add(row)
            condition.notify_all()
        return str(row)

    def thumbnail(row: int, side: int) -> bytes:
        nonlocal decoding, most
        with condition:
            decoding += 1
            most = max(most, decoding)
            assert condition.wait_for(lambda: len(asked) == 6, 60)
            decoding -= 1
        return b""

    async def all_at_once(service: LocalService) -> None:
        requests: list[Any] = [SimpleNamespace(path_params={"id": photo}, headers={}) for photo in photos]
        await asyncio.gather(*(service.image(request, ImageQuery()) for request in requests))

    assert isinstance(server.service, LocalService)
    photos = [generation.library.id(row) for row in range(6)]
    monkeypatch.setattr(server.service, "_decoding", asyncio.Semaphore(local.DECODERS))  # of this event loop
    monkeypatch.setattr(generation.library, "tag", tag)
    monkeypatch.setattr(generation.library, "thumbnail", thumbnail)
    asyncio.run(all_at_once(server.service))
    assert most == 2


def test_thumbnails_are_kept_within_bounds(generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CACHE", 3000)
    for row in range(20):
        generation.library.thumbnail(row, 64)
    assert sum(map(len, generation.library._thumbnails.values())) <= 3000


def test_large_photos_that_are_sent_are_decoded_within_bounds(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOST_PIXELS", 2000)
    monkeypatch.setattr(local, "UPLOAD_SIDE", 40)
    photo = np.zeros((320, 240, 3), np.uint8)
    sent = [client.post("/v1/captions", content=cv2.imencode(kind, photo)[1].tobytes()) for kind in (".jpg", ".png")]
    assert [response.status_code for response in sent] == [200, 400]
    assert "240 x 320 pixels: more than 2,000" in sent[1].json()["error"]


def test_what_words_look_at_is_not_drawn_on_another_photo(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/photos/{generation.library.id(0)}/explanation"
    assert client.get(path, params={"query": "a dog"}).status_code == 200
    monkeypatch.setattr(generation.library, "is_changed", lambda row: True)
    assert "changed since it was extracted" in client.get(path, params={"query": "a dog"}).json()["error"]


def test_a_photo_that_is_replaced_and_extracted_again_is_another_until_the_server_looks(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(inside / "runs/t2i_mean")
    shutil.copytree(inside / "coco/train2014", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    extract = ["extract", "--images", "photos", "--num-regions", "6", "--workers", "0", "--device", "cpu"]
    assert scan(*extract).exit_code == 0
    server = make_server(run=run)
    assert isinstance(server.service, LocalService)
    client, names = TestClient(server.app()), sorted(os.listdir("photos"))
    ids = {name: server.service.generation.library.id(row) for row, name in enumerate(names)}

    def changed() -> list[str]:
        found = client.post("/v1/search", json={"queries": ["a dog"], "limit": 100}).json()["answers"][0]["hits"]
        assert len(found) == len(names)
        return [hit["name"] for hit in found if hit["changed"]]

    assert changed() == []
    shutil.copy(Path("photos", names[3]), Path("photos", names[5]))
    assert scan(*extract).exit_code == 0
    assert changed() == [names[5]]
    for path in (f"/v1/photos/{ids[names[5]]}/explanation?query=a+dog", f"/v1/photos/{ids[names[5]]}/embeddings"):
        assert "changed since it was extracted" in client.get(path).json()["error"]
    similar = client.post("/v1/search", json={"images": [ids[names[5]]]})
    assert similar.status_code == 400
    assert "changed since it was extracted" in similar.json()["error"]
    assert client.post("/v1/search", json={"images": [ids[names[4]]]}).status_code == 200
    asyncio.run(server.service.reload())
    assert changed() == []
