"""Nodes as processes: two nodes equal one server over all stores; one is killed and comes back."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from matcher.calibration import Calibration
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from pipeline.service.nodes import Nodes
from pipeline.service.run import listen
from tests.photos import write_photos
from tests.pipeline.service.servers import Process, make_server, on_a_thread, wait_for
from tests.world import scan

KEY = "secret"


@pytest.fixture(scope="module")
def servers(world: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two nodes with a store each, one server over both stores, and a coordinator."""
    folder, started = tmp_path_factory.mktemp("nodes"), []
    photos = sorted((world / "coco/train2014").glob("*.jpg"))
    shutil.copytree(world / "runs", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
        for name, some in (("left", photos[:13]), ("right", photos[13:])):
            Path(name).mkdir()
            for number, path in enumerate(some):
                shutil.copy(path, name)
                os.utime(Path(name, path.name), (1_600_000_000 + 6 * 3600 * (2 * number + (name == "left")),) * 2)
            command = ["extract", "--images", name, "--num-regions", "6", "--workers", "0", "--device", "cpu"]
            assert scan(*command).exit_code == 0
        try:
            for stores in (["left"], ["right"], ["left", "right"]):
                options = [word for store in stores for word in ("--features", f"features/{store}")]
                started.append(Process(folder, "--run", "runs/t2i_mean", *options, key=KEY))
            nodes = [word for node in started[:2] for word in ("--node", node.url)]
            started.append(Process(folder, *nodes, key=KEY))
            yield started
        finally:
            for server in started:
                server.process.kill()


def found(server: Process, **asked: Any) -> list[tuple[Any, ...]]:
    response = server.client.post("/v1/search", json=asked)
    assert response.status_code == 200, response.text
    assert response.json()["complete"]
    return [
        (
            answer["query"], answer["searched"], answer["unknown"],
            [(hit["name"], hit["rank"], pytest.approx(hit["score"], abs=1e-5), hit["weak"], hit["boxes"]) for hit in answer["hits"]],
        )
        for answer in response.json()["answers"]
    ]  # fmt: skip


@pytest.mark.slow
def test_two_nodes_equal_one(servers: list[Process]) -> None:
    *_, whole, both = servers
    for asked in (
        {"queries": ["a dog by a tree"], "limit": 20, "explain": True},
        {"queries": ["a hous", "a boat"], "limit": 4, "offset": 3},
        {"queries": ["a dog"], "filter": {"store": "features/left"}, "min_score": -1},
        {"queries": ["a dog"], "filter": {"since": "2020-09-15"}},
        {"limit": 20},
    ):
        assert found(both, **asked) == found(whole, **asked)
    names = {hit["name"]: hit["id"] for hit in listed(whole)}
    ids = {hit["name"]: hit["id"] for hit in listed(both)}
    chosen = ["COCO_train2014_000000000003.jpg", "COCO_train2014_000000000017.jpg"]  # one of each node
    for extra in ({"limit": 20}, {"combine": True, "limit": 5, "offset": 2, "queries": ["a boat"]}):
        for order in (chosen, chosen[::-1]):
            of_both = found(both, images=[ids[name] for name in order], **extra)
            assert [one[1:] for one in of_both] == [
                one[1:] for one in found(whole, images=[names[name] for name in order], **extra)
            ]
    for name in chosen:
        for path in ("", "/image", "/original", "/explanation?query=a%20dog"):
            one, other = (
                server.client.get(f"/v1/photos/{photo}{path}")
                for server, photo in ((both, ids[name]), (whole, names[name]))
            )
            assert one.status_code == 200
            assert one.headers["content-type"] == other.headers["content-type"]
            if path:
                assert one.content == other.content
        tag = both.client.get(f"/v1/photos/{ids[name]}/image").headers["etag"]
        again = both.client.get(f"/v1/photos/{ids[name]}/image", headers={"if-none-match": tag})
        assert again.status_code == 304
    assert both.client.get("/v1/photos/7-0").status_code == 404
    assert both.client.post("/v1/search", json={"queries": ["!!!"]}).status_code == 400
    assert both.client.post("/v1/search", json={"limit": 10_000, "offset": 1}).status_code == 400
    refused = both.client.post("/v1/search", json={"filter": {"store": "middle"}})
    assert refused.status_code == 400
    assert "expected one of features/left | filter.store 'middle'" in refused.json()["error"]
    for wanted in ({"folder": "nowhere"}, {"object": "nothing"}, {"since": "2020-09-15", "until": "2020-09-14"}):
        asked = {"queries": ["a dog"], "filter": wanted}
        answers = [server.client.post("/v1/search", json=asked) for server in (both, whole)]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert answers[0].json() == answers[1].json()
    assert found(both, min_score=0.5, limit=20) == found(
        whole, limit=20
    )  # photos that nothing was asked for have no score
    photo = Path(whole.folder, "left", chosen[0]).read_bytes()
    captions = [server.client.post("/v1/captions", content=photo).json() for server in (both, whole)]
    assert captions[0] == captions[1]


def listed(server: Process) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = server.client.post("/v1/search", json={"limit": 100}).json()["answers"][0]["hits"]
    return hits


@pytest.mark.slow
def test_a_node_that_is_killed_is_missed_until_it_is_back(servers: list[Process]) -> None:
    left, right, whole, both = servers
    before = found(whole, queries=["a dog"], limit=20)
    missed = next(hit["id"] for hit in listed(both) if hit["store"].endswith("right"))
    right.end(signal.SIGKILL)
    response = both.client.post("/v1/search", json={"queries": ["a dog"], "limit": 20}).json()
    assert not response["complete"]
    assert response["answers"][0]["searched"] == 13
    index = both.client.get("/v1/index").json()
    assert not index["complete"]
    assert index["nodes"][left.url] == "ready"
    assert right.url in index["nodes"][right.url]
    assert both.client.get("/ready").status_code == 200
    assert both.client.get(f"/v1/photos/{missed}").status_code == 503
    right.start()
    assert found(both, queries=["a dog"], limit=20) == before
    left.end(signal.SIGKILL)
    right.end(signal.SIGKILL)
    assert both.client.post("/v1/search", json={"queries": ["a dog"]}).status_code == 503
    assert both.client.get("/ready").status_code == 503
    for node in (left, right):
        node.start()
    assert found(both, queries=["a dog"], limit=20) == before


@pytest.mark.slow
def test_signals(servers: list[Process], small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP opens the stores again, SIGTERM ends the process."""
    _, right, _, both = servers
    monkeypatch.chdir(right.folder)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    quiet = Process(right.folder, "--run", "runs/t2i_mean", "--features", "features/right", "--watch", "0")
    shutil.copy("left/COCO_train2014_000000000000.jpg", "right/new.jpg")
    command = ["extract", "--images", "right", "--num-regions", "6", "--workers", "0", "--device", "cpu"]
    assert scan(*command).exit_code == 0
    wait_for(lambda: both.client.get("/v1/index").json()["photos"] == 21)  # looks by itself
    assert quiet.client.get("/v1/index").json()["photos"] == 7
    quiet.process.send_signal(signal.SIGHUP)
    wait_for(lambda: quiet.client.get("/v1/index").json()["photos"] == 8)
    assert quiet.end() == -signal.SIGTERM


class Other(BaseHTTPRequestHandler):
    """No node: it answers every search, though."""

    def do_GET(self) -> None:
        content = b'{"photos": 3}' if self.path == "/v1/index" else b"<html>"
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, format: str, *values: Any) -> None:
        pass


def test_what_is_no_node_is_left_out(inside: Path) -> None:
    other = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    with on_a_thread(make_server()) as (_, _, url):
        urls = (url, f"http://127.0.0.1:{other.server_port}", "http://127.0.0.1:1")
        for host in ("127.0.0.1", "0.0.0.0"):
            nodes = Nodes(ServeConfig(node=urls, host=host), Metrics())
            with TestClient(Server(nodes, Metrics()).app()) as client:
                answer = client.post("/v1/search", json={"queries": ["a dog"]}).json()
                assert not answer["complete"]
                assert answer["answers"][0]["searched"] == 20
                index = client.get("/v1/index").json()
                assert index["nodes"][urls[0]] == "ready"
                assert index["nodes"][urls[1]] == f"{urls[1]}: serves something else"
                assert "onnect" in index["nodes"][urls[2]]
                hit = answer["answers"][0]["hits"][0]
                about = client.get(f"/v1/photos/{hit['id']}").json()
                for photo in (hit, about):  # paths are for clients on this machine
                    assert bool(photo["path"]) == (host == "127.0.0.1")
    other.shutdown()


def test_a_node_with_another_model_is_left_out(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make_server(), make_server()
    assert isinstance(other.service, LocalService)
    monkeypatch.setitem(vars(other.service.generation.run), "sha256", "0" * 64)
    with on_a_thread(one) as (_, _, url), on_a_thread(other) as (_, _, second):
        nodes = Nodes(ServeConfig(node=(url, second)), Metrics())
        with TestClient(Server(nodes, Metrics()).app()) as client:
            answer = client.post("/v1/search", json={"queries": ["a dog"]}).json()
            assert not answer["complete"]
            assert answer["answers"][0]["searched"] == 20
            assert client.get("/v1/index").json()["nodes"][second].startswith("has another model")
            photo = f"{nodes.keys[1]}-{other.service.generation.library.id(0)}"
            refused = client.post("/v1/search", json={"images": [photo]})
            assert refused.status_code == 503  # what it looks like to the other model tells nothing
            assert refused.json()["error"] == "the photo's node has another model than those that answer"


def test_a_coordinator_follows_the_number_of_photos_that_weak_matches_are_told_by(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Calibration, "is_weak", lambda self, score, photos: told.append(photos) or photos > 20)
    server = make_server()
    assert isinstance(server.service, LocalService)
    index = server.service.generation.index
    with on_a_thread(server) as (_, _, url):
        nodes = Nodes(ServeConfig(node=(url,), watch=0.02), Metrics())
        with TestClient(Server(nodes, Metrics()).app()) as client:
            ask = partial(client.post, "/v1/search", json={"queries": ["a dog"]})
            assert not ask().json()["answers"][0]["hits"][0]["weak"]
            assert told[-1] == 20
            vars(server.service.generation)["index"] = replace(index, photos=1000)  # photos were added there
            wait_for(lambda: ask().json()["answers"][0]["hits"][0]["weak"])


def test_an_address_means_one_photo_in_whatever_order_the_nodes_are_named(inside: Path) -> None:
    """Two machines may have stores and photos of the same names."""
    with on_a_thread(make_server()) as (_, _, url):
        names = []
        for urls in ((url, "http://127.0.0.1:1"), ("http://127.0.0.1:1", url)):
            with TestClient(Server(Nodes(ServeConfig(node=urls), Metrics()), Metrics()).app()) as client:
                if not names:
                    (hit, *_) = client.post("/v1/search", json={"queries": ["a dog"]}).json()["answers"][0]["hits"]
                    assert hit["id"].count("-") == 1
                names.append(client.get(f"/v1/photos/{hit['id']}").json()["name"])
        assert names == [hit["name"], hit["name"]]


def test_a_store_of_two_nodes_counts_once(inside: Path) -> None:
    with on_a_thread(make_server()) as (_, _, url), on_a_thread(make_server()) as (_, _, second):
        nodes = Nodes(ServeConfig(node=(url, second)), Metrics())
        with TestClient(Server(nodes, Metrics()).app()) as client:
            answer = client.post("/v1/search", json={"queries": ["a dog"], "limit": 100}).json()
            assert not answer["complete"]
            hits = answer["answers"][0]["hits"]
            assert len({hit["name"] for hit in hits}) == len(hits) == answer["answers"][0]["searched"] == 20
            index = client.get("/v1/index").json()
            assert index["photos"] == 20
            assert (
                index["nodes"][second]
                == "has a store with the first photos of one that a node before it has: photos would count twice"
            )


def test_captions_are_asked_of_every_node_that_has_any(
    inside: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = min(Path("coco/train2014").glob("*.jpg")).read_bytes()
    without, having = make_server(), make_server(weights=str(small_weights))
    assert isinstance(without.service, LocalService)
    index = without.service.generation.index
    monkeypatch.setitem(vars(without.service.generation), "index", replace(index, features=()))
    monkeypatch.setattr(without.service.generation, "has_detector", False)
    with on_a_thread(without) as (_, _, url), on_a_thread(having) as (_, _, second):
        nodes = Nodes(ServeConfig(node=(url, second)), Metrics())
        with TestClient(Server(nodes, Metrics()).app()) as client:
            assert client.post("/v1/captions", content=photo).json()["captions"]
            refused = client.post("/v1/captions", content=b"no photo")
            assert refused.status_code == 400
            assert refused.json()["error"].startswith("not an image (")
        alone = Nodes(ServeConfig(node=(url,)), Metrics())
        with TestClient(Server(alone, Metrics()).app()) as client:
            refused = client.post("/v1/captions", content=photo)
            assert refused.status_code == 400
            assert "no node that answers has any" in refused.json()["error"]


def test_a_node_whose_weak_matches_are_not_marked_is_said(
    inside: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is a copy without its calibration.json."""
    photo = min(Path("coco/train2014").glob("*.jpg")).read_bytes()
    whole, without = make_server(weights=str(small_weights)), make_server(weights=str(small_weights))
    assert isinstance(without.service, LocalService)
    generation = without.service.generation
    monkeypatch.setitem(vars(generation.run), "calibration", None)
    monkeypatch.setitem(vars(generation), "index", replace(generation.index, features=()))  # other photos
    with on_a_thread(whole) as (_, _, url), on_a_thread(without) as (_, _, second):
        for urls, calibrated in (((url,), True), ((second,), False), ((url, second), False), ((second, url), False)):
            with TestClient(Server(Nodes(ServeConfig(node=urls), Metrics()), Metrics()).app()) as client:
                answer = client.post("/v1/search", json={"queries": ["a dog"]}).json()
                assert (answer["calibrated"], answer["complete"]) == (calibrated, True)
                captions = client.post("/v1/captions", content=photo).json()["captions"]
                assert all(caption["share"] > 0 for caption in captions) == (url in urls)  # of those that both have
        served = httpx.post(f"{second}/v1/search", json={"queries": ["a dog"]}, trust_env=False)
        assert served.json()["calibrated"] is False


def test_captions_are_the_best_of_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the starter, each node has those beside its own photos."""
    monkeypatch.chdir(tmp_path)
    for name, texts in (("a", ("a dog by a tree", "a boat", "a boat")), ("b", ("a man on a horse", "two dogs"))):
        write_photos(tmp_path / name, 1 + (name == "b"))  # two stores
        Path(name, "captions.tsv").write_text("".join(f"000.jpg\t{text}\n" for text in texts))
        assert scan("extract", "--images", name, "--weights", "starter", "--workers", "0").exit_code == 0
    photo = Path("a/000.jpg").read_bytes()
    both = make_server(run="starter", features=("features/a", "features/b"))
    whole = TestClient(both.app())
    least = (
        4 * whole.post("/v1/captions", content=photo).json()["captions"][0]["share"]
    )  # of 4 captions: the best is weak among 5
    monkeypatch.setattr("matcher.calibration.BY_CHANCE", least)
    monkeypatch.setattr("matcher.calibration.LEAST_SHARE", 1.0)
    wanted = whole.post("/v1/captions", content=photo).json()
    assert (wanted["searched"], wanted["captions"][0]["weak"]) == (5, True)
    nodes = [make_server(run="starter", features=(f"features/{name}",)) for name in "ab"]
    with on_a_thread(nodes[0]) as (_, _, url), on_a_thread(nodes[1]) as (_, _, second):
        server = Server(Nodes(ServeConfig(node=(url, second)), Metrics()), Metrics())
        with TestClient(server.app()) as client:
            found = client.post("/v1/captions", content=photo).json()
    for own, others in zip(wanted["captions"], found["captions"], strict=True):
        assert (own["text"], own["weak"]) == (others["text"], others["weak"])
    assert (found["searched"], found["complete"]) == (5, True)
    with on_a_thread(make_server(run="starter", features=("features/a",))) as (_, _, url):
        server = Server(Nodes(ServeConfig(node=(url, "http://localhost:1")), Metrics()), Metrics())
        with TestClient(server.app()) as client:
            assert client.post("/v1/captions", content=photo).json()["complete"] is False


def test_a_filter_of_what_one_node_has_and_what_another_has_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on one server over both stores; what neither node has is refused."""
    monkeypatch.chdir(tmp_path)
    for name, folder in (("a", "a"), ("b", "b/2020")):
        write_photos(tmp_path / folder, 1 + (name == "b"))  # two stores
        assert scan("extract", "--images", name, "--weights", "starter", "--workers", "0").exit_code == 0
    stores = ("features/a", "features/b")
    whole = TestClient(make_server(run="starter", features=stores).app())
    nodes = [make_server(run="starter", features=(store,)) for store in stores]
    with on_a_thread(nodes[0]) as (_, _, url), on_a_thread(nodes[1]) as (_, _, second):
        server = Server(Nodes(ServeConfig(node=(url, second)), Metrics()), Metrics())
        with TestClient(server.app()) as both:
            for store, folder, found in (("a", "2020", 0), ("b", "2020", 2), ("a", "2021", None), ("c", "2020", None)):
                body = {"queries": ["a dog"], "filter": {"store": f"features/{store}", "folder": folder}}
                for client in (whole, both):
                    answer = client.post("/v1/search", json=body)
                    assert answer.status_code == (400 if found is None else 200)
                    assert found is None or answer.json()["answers"][0]["searched"] == found


def test_nodes_search_nothing_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = scan("serve", "--port", "0", "--node", "http://localhost:1", "--run", "runs/a")
    assert said.exit_code == 2
    assert "--node: searches nothing here; leave out --run" in said.stderr
    said = scan("serve", "--port", "0", "--node", "localhost:1")
    assert "--node localhost:1: expected an address, such as http://10.0.0.5:7860" in said.stderr


def test_a_node_that_hangs_is_left_out_in_time(inside: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, on_a_thread(make_server()) as (_, _, url):
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"  # takes connections and says nothing
        nodes = Nodes(ServeConfig(node=(hanging, url), timeout=2), Metrics())
        with TestClient(Server(nodes, Metrics()).app()) as client:
            for _ in range(2):
                response = client.post("/v1/search", json={"queries": ["a dog"]})
                assert response.status_code == 200, response.text
                assert not response.json()["complete"]
                assert response.json()["answers"][0]["searched"] == 20
            assert "Timeout" in client.get("/v1/index").json()["nodes"][hanging]


def test_a_coordinator_among_the_nodes_is_a_node(inside: Path) -> None:
    coordinator = lambda *urls: Server(Nodes(ServeConfig(node=urls), Metrics()), Metrics())  # noqa: E731
    with (
        on_a_thread(make_server()) as (_, _, url),
        on_a_thread(coordinator(url)) as (_, _, above),
        TestClient(coordinator(above, url).app()) as client,
    ):
        answer = client.post("/v1/search", json={"queries": ["a dog"], "limit": 100}).json()
        assert (answer["complete"], answer["answers"][0]["searched"]) == (False, 20)  # each photo once
        asked = {"queries": ["a dog"], "filter": {"folder": "nowhere"}, "among": 1000}  # as a coordinator asks
        response = httpx.post(f"{above}/v1/search", json=asked, trust_env=False)
        assert list(response.json()["impossible"]) == ["folder"]
        assert client.get("/v1/index").json()["nodes"][url].startswith("has a store with the first photos")


def test_coordinators_that_are_nodes_of_each_other_do_not_ask_for_ever(inside: Path) -> None:
    with on_a_thread(make_server()) as (_, _, url), listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        urls = [f"http://127.0.0.1:{one.getsockname()[1]}" for one in (first, second)]
        rings = [Nodes(ServeConfig(node=(*urls, url)), Metrics()) for _ in urls]
        for nodes, listener in zip(rings, (first, second), strict=True):
            running = uvicorn.Server(uvicorn.Config(Server(nodes, Metrics()).app(), log_level="error"))
            threading.Thread(target=running.run, args=([listener],), daemon=True).start()
            wait_for(lambda running=running: running.started)
        answer = httpx.post(f"{urls[0]}/v1/search", json={"queries": ["a dog"]}, trust_env=False, timeout=30).json()
        assert (answer["complete"], answer["answers"][0]["searched"]) == (False, 20)
        index = httpx.get(f"{urls[0]}/v1/index", trust_env=False, timeout=30).json()
        assert '508: {"error": "a coordinator is a node of its own' in index["nodes"][urls[0]]
