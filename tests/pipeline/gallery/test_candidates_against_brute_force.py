"""Answers of drawn worlds with an index: its candidates as they are documented, each compared exactly, and pages of one list."""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from matcher.collection import EncodedCaptions
from matcher.similarity import PaddedWords, WordEmbeddings
from pipeline.ensemble import Ensemble
from pipeline.gallery.embeddings import store_embeddings
from pipeline.gallery.first_stage import by_word
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import StoreCollection, open_stores
from tests.drawn import (
    CLOSE,
    DrawnStore,
    Runs,
    World,
    embeddings,
    head_of,
    score,
    vectors_of,
    with_index,
    worlds,
)
from tests.pipeline.service.test_against_brute_force import (
    MANY,
    SENTENCES,
    SOME,
    asked,
    drawn_rows,
    in_order,
    runs,
)

__all__ = ["runs"]


class Indexed(NamedTuple):
    """A search with an index."""

    search: Search
    vectors: np.ndarray  # (N, D) int8

    def places(self, words: WordEmbeddings, some: Sequence[int]) -> list[int]:
        """Of some rows, in the first stage."""
        run, head = self.search.run, head_of(self.search.run)
        # one by one: of copies as well, last digits depend on what is computed together
        if by_word(run.model):
            found = np.array([head.best_word_scores(vector[None], words)[0, 0] for vector in self.vectors])
        else:
            query = head.query_vectors(words)[0]
            found = np.array([vector.astype(np.float32) @ query for vector in self.vectors])
        order = sorted(some, key=lambda row: (-found[row], row))
        for one, other in pairwise(order):
            is_copy = np.array_equal(self.vectors[one], self.vectors[other])
            assume(is_copy or found[one] - found[other] > 1e-4 * np.abs(found).max())
        return order


def open_indexed(run: TrainedRun, collection: StoreCollection, folder: Path, candidates: int) -> Indexed:
    with with_index(candidates):
        search = Search(run, collection, index=folder / "index", report=lambda line: None)
        search.open()
        parts = vectors_of(run, store_embeddings(run, collection, folder / "index"))
    return Indexed(search, np.concatenate(parts))


def expected(
    orders: Sequence[Sequence[int]],
    scores: dict[int, float],
    counts: Sequence[int],
    offset: int,
    top: int,
    least: float,
) -> tuple[list[int], int]:
    """The rows of a page, and how many photos are compared for it; 0: all. `orders` are the rows in each first stage."""
    photos = len(scores)
    fewer = [count for count in counts if count < photos]
    if not fewer:
        return in_order(scores, offset, top, least), 0
    places = {row: min(order.index(row) for order in orders) for row in scores}
    last = fewer[-1] if len(fewer) == len(counts) else photos
    compared = [row for row in scores if places[row] < last]
    shown: list[int] = []
    for count in counts:
        left = [row for row in compared if places[row] < count or (count == counts[-1] and last == photos)]
        fits = in_order({row: scores[row] for row in left if row not in shown}, least=least)
        shown += fits[: count // 4 - len(shown)]
    return shown[offset : offset + top], len(compared) % photos


def check(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    members = data.draw(st.lists(st.sampled_from(runs), min_size=1, max_size=2, unique_by=id))
    with tempfile.TemporaryDirectory() as folder:
        world = World(drawn, Path(folder), {"by": "hand"})
        collection = open_stores(world.paths, tell_apart=True)
        fewest = [data.draw(st.integers(1, len(world.rows))) for _ in members]
        indexed = [
            open_indexed(run, collection, Path(folder), count) for run, count in zip(members, fewest, strict=True)
        ]
        search = Ensemble([one.search for one in indexed]) if len(indexed) > 1 else indexed[0].search
        for _ in range(data.draw(st.integers(1, 4))):
            how, (rows, some) = data.draw(asked()), drawn_rows(data, len(world.rows))
            page = how["offset"], how["top"], how["min_score"]
            kinds = ("sentence",) if len(members) > 1 else ("sentence", "photo")
            if data.draw(st.sampled_from(kinds)) == "sentence":
                query: str | int = data.draw(SENTENCES)
                words = [EncodedCaptions(run.model, [query]) for run in members]
                (answer,), factor = search.photos([query], rows=rows, boxes=False, **how), 1
            else:
                own = data.draw(st.integers(0, len(world.rows) - 1))
                query, some = world.rows[own].photo.look, [row for row in some if row != own]
                vectors = embeddings(members[0], query)[None]
                words = [PaddedWords(vectors, [vectors.shape[1]])]
                answer, factor = search.similar(own, rows=rows, **how), 2
            scores = {row: score(members, world.rows[row].photo.look, query) for row in some}
            counts = [max(how["candidates"], factor * max(fewest))]
            while counts[-1] < 4 * (how["offset"] + how["top"]):
                counts.append(2 * counts[-1])
            orders = [one.places(of_run, some) for one, of_run in zip(indexed, words, strict=True)]
            wanted, compared = expected(orders, scores, [] if how["exact"] else counts, *page)
            assert [hit.image for hit in answer.hits] == [world.rows[row].id for row in wanted]
            assert (answer.searched, answer.compared) == (len(some), compared)
            for row, hit in zip(wanted, answer.hits, strict=True):
                assert abs(hit.score - scores[row]) < CLOSE


@SOME
@given(worlds(), st.data())
def test_candidates(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check(runs, drawn, data)


@pytest.mark.slow
@MANY
@given(worlds(), st.data())
def test_candidates_at_length(runs: Runs, drawn: tuple[DrawnStore, ...], data: st.DataObject) -> None:
    check(runs, drawn, data)
