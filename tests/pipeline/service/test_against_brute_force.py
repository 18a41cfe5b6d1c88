"""Answers of drawn worlds against every pair compared, one by one.

What equals that, in its scores and to the last place of its order, is the same from Python, the command line, a server and nodes, for
sentences together and alone, for a page and the list, and whatever other photos, shards and stores are there.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.answer import Answer, Box, Hit
from pipeline.ensemble import Ensemble
from pipeline.gallery.ranking import EQUAL
from pipeline.photo_lookup import marked
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import open_stores
from tests.drawn import (
    CHANGED,
    CLASSES,
    CLOSE,
    WIDTH,
    WORDS,
    DrawnStore,
    Row,
    Runs,
    World,
    content,
    content_now,
    make_runs,
    regions,
    score,
    worlds,
)
from tests.world import scan

SOME = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(SOME, max_examples=5)
MANY = settings(SOME, max_examples=60)
TOKENS = (*WORDS, *WORDS, "zebra", "Dog", "tree,", "boat!", "-")
SENTENCES = (
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6)
    .filter(lambda tokens: {token.lower().strip(",!") for token in tokens} & set(WORDS))
    .map(" ".join)
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)  # a third of the time
        yield make_runs(tmp_path_factory.mktemp("runs"))


def in_order(
    scores: Mapping[int, float], offset: int = 0, top: int | None = None, least: float = -math.inf
) -> list[int]:
    """A page of what may be found, rows with their scores: the best first, equal ones in the order of their rows."""
    assume(not any(abs(value - least) < CLOSE for value in scores.values()))
    order = sorted(scores, key=lambda row: -scores[row])
    groups = [0]
    for one, other in itertools.pairwise(order):
        apart = (scores[one] - scores[other]) / max(1, abs(scores[one]))
        assume(not EQUAL / 4 < apart < 4 * EQUAL)  # too near to tell
        groups.append(groups[-1] + (apart > EQUAL))
    ranked = [row for _, row in sorted(zip(groups, order, strict=False)) if scores[row] >= least]
    return ranked[offset:][:top]


def is_weak(runs: Sequence[TrainedRun], value: float, among: int) -> bool | None:
    """None: too near to tell."""
    run, *others = runs
    if others:
        return False
    assert run.calibration is not None
    told = set()
    for near in (value - CLOSE, value + CLOSE):
        share = math.exp(np.interp(near, run.calibration.scores, np.log(run.calibration.shares)))
        told.add(min(among, 1000) * share >= min(2, among / 20))
    return told.pop() if len(told) == 1 else None


def check_boxes(
    boxes: Sequence[Any], row: Row, world: World, run: TrainedRun, sentence: str, least: float = 0.0
) -> None:
    """The best three regions of a photo."""
    store = world.drawn[row.store]
    own = regions(row.photo.look, store)
    if not store.has_boxes:
        assert not boxes
        return
    with torch.inference_mode():
        words = run.model.caption_parts(sentence)
        found = run.model.explain(run.model.image_parts(torch.from_numpy(own.features)), words)
    shares = found.contributions[1:-1].sum(0).clamp_min(0).numpy()
    shares = shares / max(shares.sum(), 1e-12)
    np.testing.assert_allclose([box.weight for box in boxes], -np.sort(-shares)[:3], atol=CLOSE)
    corners = {tuple(np.round(corner, 3).tolist()): region for region, corner in enumerate(own.boxes.astype(float))}
    for box in boxes:
        region = corners[tuple(box.xyxy)]
        assert abs(shares[region] - box.weight) < CLOSE
        names = CLASSES[store.classes]
        assert box.name == (names[own.object_ids[region]] if names and own.object_scores[region] >= least else "")


def check_answer(
    answer: Answer,
    world: World,
    runs: Sequence[TrainedRun],
    query: str | int,
    rows: Sequence[int],
    offset: int,
    top: int,
    least: float,
    *,
    with_boxes: bool = False,
    kind: float = 0.0,
) -> None:
    """rows: that may be found. kind: least score of a class that is named."""
    scores = {row: score(runs, world.rows[row].photo.look, query) for row in rows}
    found = [world.rows[row] for row in in_order(scores, offset, top, least)]
    assert [hit.image for hit in answer.hits] == [row.id for row in found]
    assert (answer.searched, answer.compared) == (len(rows), 0)
    for rank, (row, hit) in enumerate(zip(found, answer.hits, strict=True), offset + 1):
        assert hit.rank == rank
        assert abs(hit.score - score(runs, row.photo.look, query)) < CLOSE
        assert hit.path == row.place
        assert hit.image_size == (20 + row.photo.look, WIDTH + row.store)
        weak = is_weak(runs, hit.score, len(world.rows)) if isinstance(query, str) else False
        assert weak in (None, hit.weak)
        if with_boxes:
            check_boxes(hit.boxes, row, world, runs[0], str(query), kind)
        else:
            assert not hit.boxes


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "top": draw(st.integers(0, 4) | st.integers(0, 40)),
        "offset": draw(st.just(0) | st.integers(0, 4) | st.integers(0, 20)),
        "exact": draw(st.booleans()),
        "candidates": draw(st.integers(0, 30)),
        "min_score": draw(st.just(-math.inf) | st.floats(-1, 1)),
    }


def drawn_rows(draw: Any, count: int) -> tuple[Any, list[int]]:
    some = sorted(draw.draw(st.sets(st.integers(0, count - 1))))
    mask = np.zeros(count, bool)
    mask[some] = True
    kind = draw.draw(st.sampled_from(("all", "mask", "list", "array", "negative")))
    if kind == "all":
        return None, list(range(count))
    return {
        "mask": mask, "list": some[::-1] + some[:1], "array": np.array(some, int), "negative": np.array(some, int) - count,
    }[kind], some  # fmt: skip


def check_python(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    members = data.draw(st.lists(st.sampled_from(runs), min_size=1, max_size=2, unique_by=id))
    with tempfile.TemporaryDirectory() as folder:
        kind = data.draw(st.sampled_from((0.0, 0.6)))
        world = World(drawn, Path(folder), {"source": "windows" if kind else "hand"})
        collection = open_stores(world.paths, tell_apart=True)
        assert collection.image_ids == [row.id for row in world.rows]
        of_runs = [Search(run, collection, index=Path(folder, "index"), report=lambda line: None) for run in members]
        search = Ensemble(of_runs) if len(of_runs) > 1 else of_runs[0]
        for _ in range(data.draw(st.integers(1, 4))):
            how, (rows, some) = data.draw(asked()), drawn_rows(data, len(world.rows))
            page = how["offset"], how["top"], how["min_score"]
            queries = data.draw(st.lists(SENTENCES, min_size=1, max_size=3))
            boxes = data.draw(st.booleans())
            answers = marked(collection, search.photos(queries, rows=rows, boxes=boxes, **how))
            for query, answer in zip(queries, answers, strict=True):
                check_answer(answer, world, members, query, some, *page, with_boxes=boxes, kind=kind)
                for hit in answer.hits:
                    state = next(row.photo.state for row in world.rows if row.id == hit.image)
                    assert hit.changed == (state in CHANGED)
            if len(members) > 1:
                continue
            own = data.draw(st.integers(0, len(world.rows) - 1))
            answer = search.similar(own, rows=rows, **how)
            some = [row for row in some if row != own]
            check_answer(answer, world, members, world.rows[own].photo.look, some, *page)


def check_command(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    """`retrieve --json`, with one run or the mean of two."""
    some = data.draw(st.lists(st.sampled_from(runs), min_size=1, max_size=2, unique_by=id))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        world = World(drawn, Path(folder), {"by": "hand"})
        ids = [row.id for row in world.rows]
        captions = data.draw(st.lists(st.tuples(SENTENCES, st.sampled_from(ids)), min_size=1, max_size=12))
        annotations = [
            {"id": m, "image_id": ids.index(image), "caption": text} for m, (text, image) in enumerate(captions)
        ]
        images = [{"id": number, "file_name": name} for number, name in enumerate(ids)]
        Path("captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        queries = data.draw(st.lists(SENTENCES, max_size=3))
        asked = data.draw(st.lists(st.sampled_from(world.rows), min_size=not queries, max_size=2))
        top, exact = data.draw(st.integers(1, 40)), data.draw(st.booleans())
        options = [("--run", str(run.folder)) for run in some] + [("--features", str(path)) for path in world.paths]
        options += options[-1:] * data.draw(st.booleans())  # which counts once
        options += [("--query", query) for query in queries] + [("--image", row.id) for row in asked]
        options += [("--captions", "captions.json")] * bool(asked)
        said = scan("retrieve", *itertools.chain(*options), "--top", str(top), *["--exact"] * exact, "--json")
        assert said.exit_code == 0, said.stderr
        answers = json.loads(said.stdout)
        assert [answer["query"] for answer in answers] == queries + [row.id for row in asked]
        for query, answer in zip(queries, answers, strict=False):
            hits = tuple(as_hit(hit) for hit in answer.pop("hits"))
            every = range(len(world.rows))
            check_answer(Answer(**answer, hits=hits), world, some, query, every, 0, top, -math.inf, with_boxes=True)
        for row, answer in zip(asked, answers[len(queries) :], strict=True):
            scores = {m: score(some, row.photo.look, text, stored=False) for m, (text, _) in enumerate(captions)}
            assert [hit["caption_id"] for hit in answer["hits"]] == in_order(scores, 0, top)
            assert answer["searched"] == len(captions)
            for rank, hit in enumerate(answer["hits"], 1):
                text, image = captions[hit["caption_id"]]
                assert (hit["rank"], hit["caption"]) == (rank, text)
                assert hit["image"] in (image, f"{image} of captions.json")  # where several below it have this name
                assert abs(hit["score"] - scores[hit["caption_id"]]) < CLOSE
                other = next(one.photo for one in world.rows if one.id == image)
                assert hit["right"] == (
                    image == row.id or content(other.look, other.taken) == content_now(row.photo)
                ), said.stderr
                assert is_weak(some, hit["score"], len(captions)) in (None, hit["weak"])


def as_hit(hit: dict[str, Any]) -> Hit:
    boxes = tuple(Box(**{**box, "xyxy": tuple(box["xyxy"])}) for box in hit["boxes"])
    return Hit(**{**hit, "boxes": boxes, "image_size": tuple(hit["image_size"])})


@FEW
@given(worlds(), st.data())
def test_command(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_command(runs, drawn, data)


@pytest.mark.slow
@MANY
@given(worlds(), st.data())
def test_command_at_length(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_command(runs, drawn, data)


@SOME
@given(worlds(), st.data())
def test_python(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_python(runs, drawn, data)


@pytest.mark.slow
@MANY
@given(worlds(), st.data())
def test_python_at_length(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check_python(runs, drawn, data)
