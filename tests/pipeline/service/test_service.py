"""Every route: what it answers, and what its OpenAPI document says of it."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from openapi_spec_validator import validate
from starlette.routing import Route
from starlette.testclient import TestClient

import pipeline.index
import pipeline.search
from pipeline.gallery import first_stage, ranking
from pipeline.service import merging
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import Generation, LocalService
from pipeline.service.schema import SearchRequest
from tests.pipeline.service.servers import images, make_server, search, wait_for
from tests.world import extract_again, scan

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


def test_pages_of_several_queries_are_of_one_list_and_end_where_fusion_ends(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["a dog", "a tree"]
    monkeypatch.setattr(merging, "FUSED", 7)
    whole = images(search(client, *asked, combine=True, limit=7))
    pages = [images(search(client, *asked, combine=True, limit=2, offset=offset)) for offset in range(0, 6, 2)]
    assert [name for page in pages for name in page] == whole[:6]
    assert len(set(whole)) == 7
    refused = client.post("/v1/search", json={"queries": asked, "combine": True, "limit": 2, "offset": 6})
    assert refused.status_code == 400
    assert refused.json()["error"] == "offset and limit: expected at most 7 together of a combined answer"


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


def test_captions_files_that_come_and_go_are_noticed(own_world: Path, small_weights: Path) -> None:
    said: list[str] = []
    data = json.loads(Path("runs/t2i_mean/data.json").read_text())
    data["data"]["folder"] = str(Path("runs/t2i_mean").resolve())  # not that of the world that this one was copied from
    Path("runs/t2i_mean/data.json").write_text(json.dumps(data))
    file = Path("coco/annotations/captions_train2014.json")
    client = TestClient(make_server(weights=str(small_weights), say=said.append).app())
    photo = Path("coco/train2014", IMAGE).read_bytes()
    assert client.post("/v1/captions", content=photo).json()["searched"] == 40
    kept = file.read_bytes()
    file.unlink()
    refused = client.post("/v1/captions", content=photo)
    assert refused.status_code == 400, (said, refused.json())
    assert refused.json()["error"].startswith("no captions for a new photo: neither the run nor the photos have any")
    assert not client.get("/v1/index").json()["uploads"]
    Path("coco/train2014/captions.csv").write_text(f"image,caption\n{IMAGE},a house\n")
    for _ in range(2):
        (found,) = client.post("/v1/captions", content=photo).json()["captions"]
        assert found["text"] == "a house"
    assert len([line for line in said if "captions.csv" in line]) == 1  # that the run's are gone is said once
    file.write_bytes(kept)
    assert client.post("/v1/captions", content=photo).json()["searched"] == 40


def test_photos_that_were_renamed_are_another_generation(own_world: Path) -> None:
    extract_again()
    before = Generation(ServeConfig(run="runs/t2i_mean", features=("features/mine",), device="cpu"))
    for path in Path("coco/train2014").glob("*.jpg"):
        path.rename(path.with_name(f"new_{path.name}"))
    extract_again()
    after = Generation(ServeConfig(run="runs/t2i_mean", features=("features/mine",), device="cpu"))
    assert [shard.sha256 for shard in before.collection.shards] == [shard.sha256 for shard in after.collection.shards]
    assert before.name != after.name


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
