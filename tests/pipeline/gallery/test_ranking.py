"""Pages are of one list: of one run, of several, of several nodes, with any number of candidates."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ensemble import Ensemble
from pipeline.gallery.backends import FaissIndex
from pipeline.gallery.ranking import DEEPER, EQUAL, Compared, depths, ranked
from pipeline.search import Search
from pipeline.service.merging import merge
from pipeline.service.schema import FoundPhoto, SearchAnswer, SearchRequest
from tests.pipeline.gallery.test_embeddings import make_run
from tests.pipeline.gallery.test_first_stage import PHOTOS, SENTENCES, build, place, searching

__all__ = ["place"]


def order(scores: np.ndarray, places: np.ndarray, candidates: int, results: int) -> list[int]:
    """Rows of the first results, as a page that ends there ranks them: among its candidates alone."""
    counts = depths(candidates, results)
    rows = np.flatnonzero(places < counts[-1])
    compared = Compared(rows, scores[rows], places[rows])
    return rows[compared.order(counts, -np.inf)[:results]].tolist()


@given(st.permutations(range(60)), st.permutations(range(60)), st.integers(1, 70), st.integers(0, 60))
def test_a_longer_list_begins_as_a_shorter_one(scores: list[int], places: list[int], candidates: int, end: int) -> None:
    found = order(np.array(scores, float), np.array(places), candidates, 60)
    assert sorted(found) == list(range(60))  # every photo, and none twice
    assert order(np.array(scores, float), np.array(places), candidates, end) == found[:end]


def test_the_first_results_are_the_best_of_the_candidates() -> None:
    scores, places = np.arange(40.0), np.arange(40)[::-1]  # the first stage agrees
    assert order(scores, places, 8, 40) == list(range(40))[::-1]
    places = np.arange(40)  # it has the best last
    assert order(scores, places, 8, 8 // DEEPER) == [7, 6]
    assert order(scores, places, 8, 16 // DEEPER) == [7, 6, 15, 14]
    every = Compared(np.arange(40), scores, None)
    assert every.order([], 37.0).tolist() == [39, 38, 37]


@pytest.mark.parametrize("step", [7, 25])
def test_pages_of_a_search_hold_every_photo_once(place: Path, step: int) -> None:
    runs = [make_run(Path(f"runs/{name}"), seed) for seed, name in enumerate("xy")]
    members: list[Search] = []
    for run in runs:
        build(run)
        members.append(searching(run))
    for member, candidates in zip(members, (19, 30), strict=True):
        assert member.first_stage is not None
        member.first_stage.candidates = candidates
    rows = np.arange(0, PHOTOS, 2)
    for search in (members[0], Ensemble(members)):
        for some in (None, rows):
            asked = {"rows": some, "boxes": False}
            pages = [search.photos(SENTENCES[:8], step, offset=start, **asked) for start in range(0, PHOTOS, step)]  # type: ignore[arg-type]
            for answers in zip(*pages, strict=True):
                found = [hit.image for answer in answers for hit in answer.hits]
                wanted = range(PHOTOS) if some is None else some.tolist()
                assert sorted(found) == sorted(f"{row}.jpg" for row in wanted)
    similar = [members[0].similar("3.jpg", step, offset=start).hits for start in range(0, PHOTOS, step)]
    assert len({hit.image for hits in similar for hit in hits}) == PHOTOS - 1


def test_a_candidate_is_scored_with_the_same_others_on_every_page(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else copies of a photo, of which one has a last digit more, would change places."""
    run = make_run(Path("runs/x"))
    build(run)
    search, together = searching(run), []
    assert search.first_stage is not None
    search.first_stage.candidates = 20
    score = run.model.similarities
    monkeypatch.setattr(
        run.model, "similarities", lambda some, *a, **k: (together.append(some.shape[0]), score(some, *a, **k))[1]
    )
    for results in (5, 10, 20, 40):
        search.photos(SENTENCES[:1], results, boxes=False)
    assert together == [20, *(20, 20), *(20, 20, 40), *(20, 20, 40, 40)]


def test_of_many_copies_of_a_photo_the_same_are_candidates_however_many_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-100, 100, (200, 16)).astype(np.int8)
    vectors[rng.permutation(200)[:60]] = vectors[0]
    index = FaissIndex(16)
    index.add(np.arange(200), vectors)
    queries = np.stack([vectors[0], *rng.normal(size=(3, 16))]).astype(np.float32)
    for rows in (None, np.arange(0, 200, 2)):
        whole = index.search(queries, 200, rows)
        for count in (1, 18, 36, 72, 144):
            for all_of_them, some in zip(whole, index.search(queries, count, rows), strict=True):
                assert some.tolist() == all_of_them[:count].tolist()


def test_the_pages_of_nodes_are_of_one_list() -> None:
    rng = np.random.default_rng(0)
    lists = [
        [photo(f"{node}-{rank}", score, rank) for rank, score in enumerate(rng.random(30), 1)] for node in range(3)
    ]

    def merged(offset: int) -> list[str]:
        end = offset + 10
        answers = [SearchAnswer("", "", 30, 30, {}, tuple(hits[:end])) for hits in lists]
        return [hit.id for hit in merge(answers, SearchRequest(limit=10, offset=offset)).hits]

    assert len({name for offset in range(0, 90, 10) for name in merged(offset)}) == 90


def test_copies_keep_their_order_whose_scores_differ_in_the_last_digit() -> None:
    scores = np.float32([0.5, 0.7, 0.50000006, 0.49999997, 0.7, 0.5 + 3 * EQUAL])
    assert ranked(scores).tolist() == [1, 4, 5, 0, 2, 3]
    assert ranked(40 * scores[:5] + np.float32([4e-6, 0, 0, 0, 0])).tolist() == [1, 4, 0, 2, 3]
    assert ranked(scores[:0]).tolist() == []
    close = np.random.default_rng(0).permutation(np.arange(0, 1, EQUAL / 2))  # as those of a million photos
    assert (np.diff(close[ranked(close)]) < 0).all()
    places = np.array([3, 1, 2, 0, 4, 5])
    assert Compared(np.arange(6), scores, places).order([4, 8], -1).tolist() == [1, 4]
    nodes = [[photo("a", 0.7, 1), photo("b", 0.5, 2)], [photo("c", 0.7 + 1e-7, 1), photo("d", 0.5 + 1e-7, 2)]]
    answers = [SearchAnswer("", "", 2, 2, {}, tuple(hits)) for hits in nodes]
    assert "".join(hit.id for hit in merge(answers, SearchRequest()).hits) == "acbd"


def photo(name: str, score: float, rank: int) -> FoundPhoto:
    return FoundPhoto(name, name, "", "", 0.0, 1, 1, "", "", False, rank=rank, score=score)
