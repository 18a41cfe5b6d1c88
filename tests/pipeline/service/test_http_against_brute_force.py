"""Answers of a server, and of a coordinator of nodes, against every pair compared, one by one."""

import base64
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.runs import TrainedRun
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from pipeline.service.nodes import Nodes
from tests.drawn import (
    CHANGED,
    CLASSES,
    CLOSE,
    DAYS,
    MODELS,
    WIDTH,
    DrawnStore,
    Photo,
    Runs,
    World,
    at,
    embeddings,
    regions,
    score,
    with_index,
    worlds,
)
from tests.pipeline.service.servers import make_server
from tests.pipeline.service.test_against_brute_force import (
    FEW,
    MANY,
    SENTENCES,
    SOME,
    check_boxes,
    in_order,
    is_weak,
    runs,
)

__all__ = ["runs"]


class Asked:
    """A server or a coordinator over a world."""

    def __init__(self, client: TestClient, ids: Sequence[str], coordinates: bool):
        self.client, self.ids, self.coordinates = client, list(ids), coordinates

    def post(self, body: Mapping[str, Any]) -> httpx.Response:
        found: httpx.Response = self.client.post("/v1/search", json=body)
        return found


@contextmanager
def serving(world: World, run: TrainedRun, candidates: int = 0) -> Iterator[tuple[Asked, Asked]]:
    """One server over all stores, and a coordinator of one for each."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.chdir(world.base)
        stack.enter_context(with_index(candidates))
        patch.setattr("pipeline.search.load_run", lambda folder, device: run)  # reading its settings takes longest
        whole, *parts = (
            make_server(run=str(run.folder), features=tuple(map(str, paths)))
            for paths in (world.paths, *([path] for path in world.paths))
        )
        assert isinstance(whole.service, LocalService)
        library = whole.service.generation.library
        ids = [library.id(row) for row in range(len(library))]
        urls = [f"http://127.0.0.1:{number}" for number in range(1, len(parts) + 1)]
        nodes = Nodes(ServeConfig(node=tuple(urls), watch=0.0), Metrics())
        transports = {url: httpx.ASGITransport(app=part.app()) for url, part in zip(urls, parts, strict=True)}
        nodes.client = httpx.AsyncClient(mounts=transports, verify=False)
        for part in parts:
            assert isinstance(part.service, LocalService)
            stack.callback(part.service.batches.close)
            stack.callback(part.service.uploads.close)
        one = stack.enter_context(TestClient(whole.app()))
        both = stack.enter_context(TestClient(Server(nodes, Metrics()).app()))
        keyed = [f"{nodes.keys[row.store]}-{name}" for name, row in zip(ids, world.rows, strict=True)]
        yield Asked(one, ids, False), Asked(both, keyed, True)


def time_of(world: World, row: int) -> float:
    found = world.rows[row]
    day = found.photo.taken if found.photo.taken >= 0 else found.photo.day
    return at(day) if found.place else 0.0


def passing(world: World, wanted: Mapping[str, str], least: float) -> list[int] | None:
    """The rows that pass a filter; None: nothing can."""
    since, until = (wanted.get(name, "") for name in ("since", "until"))
    names = [row.photo.name for row in world.rows]
    folder = wanted.get("folder", "").removeprefix("./").rstrip("/")
    classes = {name for store in world.drawn for name in CLASSES[store.classes]}
    if (
        (folder and not any(name.startswith(f"{folder}/") for name in names))
        or (wanted.get("object") and wanted["object"] not in classes)
        or (since and until and since > until)
    ):
        return None
    found = []
    for number, row in enumerate(world.rows):
        store, time = world.drawn[row.store], time_of(world, number)
        day = datetime.fromtimestamp(time).strftime("%Y-%m-%d") if time else ""
        shown = regions(row.photo.look, store)
        objects = [
            CLASSES[store.classes][kind]
            for kind, sure in zip(shown.object_ids, shown.object_scores, strict=True)
            if CLASSES[store.classes] and sure >= least
        ]
        if (
            wanted.get("store", "") in ("", str(world.paths[row.store]), world.store_names[row.store])
            and (not folder or row.photo.name.startswith(f"{folder}/"))
            and (not (since or until) or day)
            and (not since or day >= since)
            and (not until or day <= until)
            and (not wanted.get("object") or wanted["object"] in objects)
        ):
            found.append(number)
    return found


@st.composite
def bodies(draw: st.DrawFn, world: World) -> dict[str, Any]:
    """A request, with rows in place of ids, and looks in place of embeddings."""
    days = st.integers(-1, DAYS).map(lambda day: datetime.fromtimestamp(at(0) + 86400 * day).strftime("%Y-%m-%d"))
    filters = st.fixed_dictionaries(
        {},
        optional={
            "store": st.sampled_from(
                [*map(str, world.paths), *(name for name in world.store_names if "(" not in name)]
            ),  # nodes count theirs
            "folder": st.sampled_from(("2", "./2/", "2/3", "22", "nowhere")),
            "since": days,
            "until": days,
            "object": st.sampled_from(("dog", "tree", "boat", "cat")),
        },
    )
    row = st.integers(0, len(world.rows) - 1)
    return {
        "queries": draw(st.lists(SENTENCES, max_size=3)),
        "images": draw(st.lists(row, max_size=2)),
        "embeddings": draw(st.lists(row.map(lambda one: world.rows[one].photo.look), max_size=1)),
        "combine": draw(st.booleans()),
        "limit": draw(st.integers(1, 40)),
        "offset": draw(st.just(0) | st.integers(0, 20)),
        "filter": draw(st.just({}) | filters),
        "min_score": draw(st.none() | st.floats(-1, 1)),
        "candidates": draw(st.integers(0, 30)),
        "exact": draw(st.booleans()),
        "explain": draw(st.booleans()),
        "among": draw(st.just(0) | st.integers(1, 2000)),
    }


def sent(body: Mapping[str, Any], asked: Asked, run: TrainedRun) -> dict[str, Any]:
    texts = [
        base64.b64encode(embeddings(run, look).numpy().astype("<f4").tobytes()).decode() for look in body["embeddings"]
    ]
    return {**body, "images": [asked.ids[row] for row in body["images"]], "embeddings": texts}


def check_hits(answer: Mapping[str, Any], asked: Asked, world: World) -> list[int]:
    """What a hit says of its photo; returns the rows."""
    rows = [asked.ids.index(hit["id"]) for hit in answer["hits"]]
    assert len(set(rows)) == len(rows)
    for row, hit in zip(rows, answer["hits"], strict=True):
        found, time = world.rows[row], time_of(world, row)
        assert hit["path"] == found.place
        assert hit["store"] == str(world.paths[found.store])
        assert hit["name"].endswith(found.photo.name)
        assert (hit["height"], hit["width"]) == (20 + found.photo.look, WIDTH + found.store)
        assert hit["time"] == time
        assert hit["date"] == (datetime.fromtimestamp(time).strftime("%Y-%m-%d") if time else "")
    return rows


def check_answer(
    answer: Mapping[str, Any], query: str | int, body: Mapping[str, Any], asked: Asked, world: World, run: TrainedRun,
    some: Sequence[int], kind: float,
) -> None:  # fmt: skip
    """An answer to a sentence or a look, among some rows."""
    scores = {row: score([run], world.rows[row].photo.look, query) for row in some}
    least = -math.inf if body["min_score"] is None else body["min_score"]
    rows = in_order(scores, body["offset"], body["limit"], least)
    assert check_hits(answer, asked, world) == rows
    assert answer["searched"] == answer["candidates"] == len(some)
    assert answer["query"] == (query if isinstance(query, str) else "")
    assert set(answer["unknown"]) == ({"zebra"} & set(query.split()) if isinstance(query, str) else set())
    among = body["among"] or len(world.rows)
    for rank, (row, hit) in enumerate(zip(rows, answer["hits"], strict=True), body["offset"] + 1):
        found = world.rows[row]
        assert hit["rank"] == rank
        assert abs(hit["score"] - score([run], found.photo.look, query)) < CLOSE
        assert (hit["changed"], hit["gone"]) == (found.photo.state in CHANGED, found.photo.state == "gone")
        weak = is_weak([run], hit["score"], among) if isinstance(query, str) else False
        assert weak in (None, hit["weak"])
        if body["explain"] and isinstance(query, str):
            check_boxes([SimpleNamespace(**box) for box in hit["boxes"]], found, world, run, query, kind)
        else:
            assert not hit["boxes"]


def check_fused(
    answer: Mapping[str, Any], body: Mapping[str, Any], asked: Asked, run: TrainedRun, world: World
) -> None:
    """One answer for all against the answers to each."""
    alone = {**body, "combine": False, "limit": 1000, "offset": 0, "min_score": None}
    answers = asked.post(sent(alone, asked, run)).json()["answers"]
    own = {asked.ids[row] for row in body["images"]}
    scores: dict[str, float] = defaultdict(float)
    good = {hit["id"] for one in answers if one["query"] for hit in one["hits"] if not hit["weak"]}
    for one in answers:
        for hit in one["hits"]:
            if hit["id"] not in own:
                scores[hit["id"]] += 1 / (60 + hit["rank"])
    least = -math.inf if body["min_score"] is None else body["min_score"]
    wanted = sorted((value for value in scores.values() if value >= least), reverse=True)[body["offset"] :][
        : body["limit"]
    ]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(wanted)
    check_hits(answer, asked, world)
    for rank, hit in enumerate(answer["hits"], body["offset"] + 1):
        assert hit["rank"] == rank
        assert hit["score"] == pytest.approx(scores[hit["id"]])
        assert hit["weak"] == (bool(body["queries"]) and hit["id"] not in good)


def check_request(body: Mapping[str, Any], asked: Asked, world: World, run: TrainedRun, kind: float) -> Any:
    """What a request is answered; the rows of the answers, in order, or None where it is refused."""
    response, some = asked.post(sent(body, asked, run)), passing(world, body["filter"], kind)
    changed = any(world.rows[row].photo.state in CHANGED for row in body["images"])
    if (some is None and not body["among"]) or changed:
        assert response.status_code == 400, response.text
        return None
    assert response.status_code == 200, response.text
    content, some = response.json(), some or []
    assert content["complete"]
    questions = [*body["queries"], *body["images"], *body["embeddings"]]
    if not questions:
        (answer,) = content["answers"]
        order = sorted(some, key=lambda row: (-time_of(world, row), row))
        assert check_hits(answer, asked, world) == order[body["offset"] :][: body["limit"]]
        assert answer["searched"] == len(some)
        assert not any(hit["rank"] or hit["score"] or hit["weak"] for hit in answer["hits"])
    elif body["combine"] and len(questions) > 1:
        (answer,) = content["answers"]
        check_fused(answer, body, asked, run, world)
    else:
        assert len(content["answers"]) == len(questions)
        kinds = [("query", query) for query in body["queries"]] + [("image", row) for row in body["images"]]
        kinds += [("look", look) for look in body["embeddings"]]
        for (what, question), answer in zip(kinds, content["answers"], strict=True):
            among = [row for row in some if row != question] if what == "image" else some
            query = world.rows[question].photo.look if what == "image" else question
            assert answer["image"] == (asked.ids[question] if what == "image" else "")
            check_answer(answer, query, body, asked, world, run, among, kind)
    return [[asked.ids.index(hit["id"]) for hit in answer["hits"]] for answer in content["answers"]]


def check_explanation(data: st.DataObject, servers: Sequence[Asked], world: World, run: TrainedRun) -> None:
    number, query = data.draw(st.integers(0, len(world.rows) - 1)), data.draw(SENTENCES)
    photo, store = world.rows[number].photo, world.drawn[world.rows[number].store]
    path = "/v1/photos/{}/explanation"
    found = [asked.client.get(path.format(asked.ids[number]), params={"query": query}) for asked in servers]
    is_there = photo.state in ("there", "touched") and photo.taken >= 0 and store.has_boxes
    assert [one.status_code for one in found] == [200 if is_there else 400] * len(servers), found[0].text
    if is_there:
        one, other = (answer.json() for answer in found)
        assert one | {"image": ""} == other | {"image": ""}  # which one server calls STORE/ID where it has several
        wanted = score([run], photo.look, query, stored=False)
        assert abs(found[0].json()["score"] - wanted) < CLOSE


def check_http(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    run = runs[data.draw(st.integers(0, len(MODELS) - 1), "run")]
    with tempfile.TemporaryDirectory() as folder:
        kind = data.draw(st.sampled_from((0.0, 0.6)))
        world = World(drawn, Path(folder), {"source": "windows" if kind else "hand"})
        with serving(world, run) as (one, both):
            for _ in range(data.draw(st.integers(1, 6))):
                check_explanation(data, (one, both), world, run)
                body = data.draw(bodies(world))
                found = check_request(body, one, world, run, kind)
                coordinated = check_request(body, both, world, run, kind)
                if not body["among"] and coordinated is not None:
                    assert coordinated == found


def test_stores_whose_first_photos_could_not_be_read_are_two(runs: Runs) -> None:
    stores = [
        DrawnStore(name, ((), (Photo("a.jpg", look, 0, -1, "there"),)), 0, True, "float32")
        for look, name in enumerate("xy")
    ]
    with tempfile.TemporaryDirectory() as folder:
        world = World(stores, Path(folder), {"source": "hand"})
        with serving(world, runs[0]) as (_, both):
            response = both.post({"queries": ["dog"]}).json()
            assert response["complete"]
            assert response["answers"][0]["searched"] == 2


def check_pages(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    """With an index."""
    run = data.draw(st.sampled_from(runs))
    with tempfile.TemporaryDirectory() as folder:
        world = World(drawn, Path(folder), {"source": "hand"})
        with serving(world, run, data.draw(st.integers(1, 20))) as servers:
            own, count = data.draw(st.integers(0, len(world.rows) - 1)), len(world.rows)
            for query in (data.draw(SENTENCES), own):
                look = query if isinstance(query, str) else world.rows[query].photo.look
                if isinstance(query, int) and world.rows[own].photo.state in CHANGED:
                    continue
                step = data.draw(st.integers(1, 7))
                some = passing(world, {}, 0.0) or []
                wanted = [row for row in some if row != query]
                for asked in servers:
                    which = {"queries": [query]} if isinstance(query, str) else {"images": [asked.ids[query]]}
                    pages = [
                        asked.post({**which, "offset": start, "limit": step}).json()["answers"][0]
                        for start in range(0, count, step)
                    ]
                    rows = [row for page in pages for row in check_hits(page, asked, world)]
                    assert sorted(rows) == wanted
                    whole = asked.post({**which, "limit": count}).json()["answers"][0]
                    assert check_hits(whole, asked, world) == rows
                    for row, hit in zip(rows, whole["hits"], strict=True):
                        assert abs(hit["score"] - score([run], world.rows[row].photo.look, look)) < CLOSE


@FEW
@given(worlds(), st.data())
def test_pages(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_pages(runs, drawn, data)


@pytest.mark.slow
@MANY
@given(worlds(), st.data())
def test_pages_at_length(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_pages(runs, drawn, data)


@SOME
@given(worlds(), st.data())
def test_http(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_http(runs, drawn, data)


@pytest.mark.slow
@MANY
@given(worlds(), st.data())
def test_http_at_length(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_http(runs, drawn, data)
