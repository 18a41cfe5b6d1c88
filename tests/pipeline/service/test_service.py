"""Every route: what it answers, and what its OpenAPI document says of it."""

import asyncio
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from openapi_spec_validator import validate
from PIL import Image
from starlette.routing import Route
from starlette.testclient import TestClient

import pipeline.index
import pipeline.search
from pipeline.gallery import first_stage, ranking
from pipeline.service import library, local, merging
from pipeline.service.http import Server
from pipeline.service.local import Generation, LocalService
from pipeline.service.schema import ImageQuery, SearchRequest
from pipeline.store.reader import open_stores
from tests.photos import write_photos
from tests.pipeline.service.servers import images, make_server, search, wait_for
from tests.stores import make_store
from tests.world import scan

IMAGE = "COCO_train2014_000000000003.jpg"


def test_search_answers_as_retrieve_does(client: TestClient, generation: Generation) -> None:
    answer = search(client, "a dog by a tree", limit=5)
    said = scan("retrieve", "--run", "runs/t2i_mean", "--query", "a dog by a tree", "--top", "5")
    lines = [line.removesuffix("  (weak)") for line in said.stdout.splitlines()]
    assert images(answer) == [line.split("/")[-1] for line in lines if line.endswith(".jpg")]
    assert answer["searched"] == answer["candidates"] == 20
    rest = search(client, "a dog by a tree", limit=15, offset=5)
    assert [hit["rank"] for hit in rest["hits"]] == list(range(6, 21))
    assert len({*images(answer), *images(rest)}) == 20
    response = client.post("/v1/search", json={"queries": ["a dog", "a boat"]}).json()
    assert [one["query"] for one in response["answers"]] == ["a dog", "a boat"]
    assert response["run"] == "t2i_mean"
    assert response["model"] == generation.run.sha256
    assert response["generation"] == client.get("/v1/index").json()["generation"]
    assert response["complete"] is True
    assert response["milliseconds"] > 0


def test_regions_scores_and_unknown_words_are_told(client: TestClient) -> None:
    bare, explained = search(client, "a hous by a tree"), search(client, "a hous by a tree", explain=True)
    assert bare["unknown"] == {"hous": "house"}
    assert all(hit["boxes"] == [] for hit in bare["hits"])
    assert all(len(hit["boxes"]) == 3 for hit in explained["hits"])
    scores = [hit["score"] for hit in bare["hits"]]
    some = search(client, "a hous by a tree", min_score=scores[3])
    assert [hit["score"] for hit in some["hits"]] == scores[:4]


def test_paths_are_for_clients_on_this_machine(client: TestClient, server: Server, inside: Path) -> None:
    assert str(inside) in str(search(client, "dog"))
    other = make_server(key="secret", host="0.0.0.0")
    remote = TestClient(other.app(), headers={"Authorization": "Bearer secret"})
    for asked in ({"queries": ["dog"]}, {}):
        assert str(inside) not in remote.post("/v1/search", json=asked).text
    assert str(inside) not in remote.get("/v1/index").text


def test_the_library_is_listed_newest_first_and_filtered(inside: Path) -> None:
    photos = sorted((inside / "coco/train2014").glob("*.jpg"))
    for index, path in enumerate(photos):
        os.utime(path, (1_600_000_000 + 86400 * index,) * 2)
    client = TestClient(make_server().app())
    first, rest = (search(client, limit=12, offset=offset) for offset in (0, 12))
    assert images(first) + images(rest) == [path.name for path in reversed(photos)]
    day = first["hits"][3]["date"]
    assert images(search(client, filter={"since": day, "until": day})) == [photos[-4].name]
    assert search(client, "dog", filter={"since": day})["searched"] == 4
    for name in ("features/train2014", "train2014"):
        assert search(client, filter={"store": name})["searched"] == 20
    refused = client.post("/v1/search", json={"filter": {"store": "features/other"}})
    assert refused.status_code == 400
    assert refused.json()["error"] == "filter.store 'features/other': no such store; expected one of features/train2014"
    assert client.post("/v1/search", json={"filter": {"since": "yesterday"}}).status_code == 400


def test_a_filter_that_nothing_can_pass_is_refused(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["2019/été", "2019", "2020"], np.array([0, 1] + [2] * 18)
    monkeypatch.setitem(vars(generation.library), "_distinct_folders", folders)
    for name in ("2019", "2019/", "./2019"):
        assert search(client, filter={"folder": name})["searched"] == 2
    assert search(client, filter={"folder": "2019/été/"})["searched"] == 1
    known = generation.collection.stores[0].object_names[0]
    for wanted, error in (
        ({"folder": "201"}, "filter.folder '201': no photo's name has such a folder"),
        ({"object": known.upper() + "x"}, f"no store searched has such a class; did you mean {known}?"),
    ):
        response = client.post("/v1/search", json={"filter": wanted})
        assert response.status_code == 400
        assert error in response.json()["error"]


def test_results_of_several_queries_do_not_end_where_fusion_read_first(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["a dog", "a tree"]
    whole = images(search(client, *asked, combine=True, limit=20))
    monkeypatch.setattr(merging, "FUSED", 3)
    assert images(search(client, *asked, combine=True, limit=20)) == whole
    assert len(whole) == 20


def test_a_filter_of_classes_is_brute_force(client: TestClient, generation: Generation) -> None:
    collection = generation.collection
    for name in collection.stores[0].object_names[:50]:
        shows = {
            image
            for row, image in enumerate(collection.image_ids)
            if name in [collection.names_of(row).objects[i] for i in collection.regions(row).object_ids]
        }
        answer = search(client, "a dog", limit=20, filter={"object": name})
        assert set(images(answer)) == shows
        assert answer["searched"] == len(shows)


def test_weak_matches_are_marked(client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [hit["score"] for hit in search(client, "a dog", limit=20)["hits"]]
    middle = (scores[2] + scores[3]) / 2
    calibration = SimpleNamespace(is_weak=lambda score, photos: photos == 20 and score < middle)
    monkeypatch.setitem(vars(generation.run), "calibration", calibration)
    hits = search(client, "a dog", limit=20)["hits"]
    assert [hit["weak"] for hit in hits] == [score < middle for score in scores]
    weak = {hit["id"] for hit in hits if hit["weak"]}
    both = search(client, "a dog", images=[hits[0]["id"]], combine=True, limit=20)["hits"]
    assert {hit["id"] for hit in both if hit["weak"]} == weak  # for the sentence, however similar


def test_photos_like_a_photo(client: TestClient, generation: Generation) -> None:
    own = generation.library.id(3)
    alike = search(client, images=[own], limit=20)
    assert alike["image"] == own
    assert len(alike["hits"]) == alike["searched"] == 19  # itself apart
    both = search(client, "a boat", images=[own], combine=True, limit=20)
    assert sorted(images(both)) == sorted(images(alike))
    ranks = [
        {hit["id"]: hit["rank"] for hit in answer["hits"]} for answer in (alike, search(client, "a boat", limit=20))
    ]
    fused = {hit["id"]: hit["score"] for hit in both["hits"]}
    for photo, score in fused.items():
        assert score == pytest.approx(sum(1 / (60 + one[photo]) for one in ranks))
    assert list(fused.values()) == sorted(fused.values(), reverse=True)
    apart = client.post("/v1/search", json={"queries": ["a boat"], "images": [own]}).json()["answers"]
    assert [(one["query"], one["image"]) for one in apart] == [("a boat", ""), ("", own)]
    text = client.get(f"/v1/photos/{own}/embeddings").json()["embeddings"]
    foreign = search(client, embeddings=[text], limit=20)
    assert foreign["hits"][0]["id"] == own
    assert [hit["score"] for hit in foreign["hits"][1:]] == [hit["score"] for hit in alike["hits"]]


def test_a_calibration_that_comes_after_its_model_is_taken(own_world: Path) -> None:
    """A training writes both, one after the other; the server may look in between."""
    file = Path("runs/t2i_mean/calibration.json")
    kept = file.read_bytes()
    file.write_text("{}")
    server = make_server(watch=0.02)
    assert isinstance(server.service, LocalService)
    assert server.service.generation.run.calibration is None
    with TestClient(server.app()):
        file.write_bytes(kept)
        wait_for(lambda: server.service.generation.run.calibration)


def test_candidates_come_from_the_index(own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pipeline.search, pipeline.index):
        monkeypatch.setattr(module, "EXACT_BELOW", 10)
    monkeypatch.setattr(first_stage, "LEAST_MEASURED", 2)
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", 1)
    before = make_server()
    assert isinstance(before.service, LocalService)
    assert TestClient(before.app()).get("/v1/index").json()["candidates"] == 0
    seen = before.service.generation.stamp()
    assert scan("index", "--run", "runs/t2i_mean", "--device", "cpu").exit_code == 0
    assert before.service.generation.stamp() != seen  # so the server opens them again
    monkeypatch.setattr(ranking, "DEEPER", 1)
    monkeypatch.setattr(first_stage.Measured, "among", lambda self, photos: 12)
    client = TestClient(make_server().app())
    index = client.get("/v1/index").json()
    assert index["candidates"] == 12
    assert index["generation"] != before.service.generation.name
    for asked, candidates in (({}, 12), ({"candidates": 15}, 15), ({"exact": True}, 20)):
        answer = search(client, "a dog", limit=3, **asked)
        assert (answer["searched"], answer["candidates"]) == (20, candidates)
    exact = search(client, "a dog", limit=20, exact=True)
    assert [hit["rank"] for hit in exact["hits"]] == list(range(1, 21))


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


def test_captions_for_a_photo_that_is_sent(
    client: TestClient, inside: Path, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client.post("/v1/captions", content=(inside / "coco/train2014" / IMAGE).read_bytes()).json()
    scores = [caption["score"] for caption in answer["captions"]]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    middle = (scores[0] + scores[-1]) / 2
    judge = SimpleNamespace(share=lambda score: float(score < middle))
    monkeypatch.setitem(vars(generation.run), "calibration", judge)
    answer = client.post("/v1/captions", content=(inside / "coco/train2014" / IMAGE).read_bytes()).json()
    assert answer["searched"] == 40
    assert [caption["weak"] for caption in answer["captions"]] == [score < middle for score in scores]
    refused = client.post("/v1/captions", content=b"no photo")
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("not an image (")


def test_captions_that_were_edited_are_those_that_are_found(own_world: Path, small_weights: Path) -> None:
    client = TestClient(make_server(weights=str(small_weights)).app())
    photo, file = Path("coco/train2014", IMAGE).read_bytes(), Path("coco/annotations/captions_train2014.json")
    assert client.post("/v1/captions", content=photo).json()["captions"][0]["text"].startswith("A ")
    file.write_text(file.read_text().replace("A ", "One "))
    after = client.post("/v1/captions", content=photo).json()["captions"]
    assert {caption["text"].split()[0] for caption in after} == {"One"}


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


def test_the_process_and_its_counters(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {"status": "ready"}
    search(client, "a dog")
    client.get("/v1/photos/0")
    text = client.get("/metrics").text
    assert "scan_pipeline_photos 20.0" in text
    assert 'scan_pipeline_request_seconds_count{route="/v1/photos/{id}",status="404"}' in text


def test_the_openapi_document_is_valid_and_holds_every_route_and_limit(client: TestClient, server: Server) -> None:
    document = client.get("/openapi.json").json()
    validate(document)
    assert set(document["paths"]) == {route.path for route in server.app().routes if isinstance(route, Route)}
    asked = document["components"]["schemas"]["SearchRequest"]["properties"]
    assert set(asked) == set(SearchRequest.__dataclass_fields__)
    assert asked["limit"] == {
        "type": "integer", "minimum": 1, "maximum": 10_000, "default": 10, "description": "Photos of an answer.",
    }  # fmt: skip
    assert asked["queries"]["items"]["maxLength"] == 500


def test_many_clients_get_the_answers_of_one(client: TestClient) -> None:
    queries = ["a dog", "a tree", "a boat by a house", "a ball"]
    alone = [search(client, query) for query in queries]
    with client, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: search(client, query), queries * 6))
    assert list(map(images, together)) == list(map(images, alone)) * 6
