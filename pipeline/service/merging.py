"""Several answers to one question as one: of several queries by their ranks, of several nodes by their scores."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from heapq import merge as merge_ordered
from itertools import accumulate, pairwise, starmap

import numpy as np

from pipeline.errors import PipelineError
from pipeline.gallery.ranking import equal_in_order
from pipeline.service.schema import FoundPhoto, SearchAnswer, SearchRequest

# Results of each query that fusion reads: with another number for a later page, pages would be of other lists
FUSED = 1000
FUSION = 60  # of the paper: how little the first ranks stand out


def is_fused(asked: SearchRequest) -> bool:
    """Whether a request wants one answer for several queries."""
    return asked.combine and len(asked.queries) + len(asked.images) + len(asked.embeddings) > 1


def parts_of(asked: SearchRequest) -> SearchRequest:
    """The request whose answers `fuse` takes; the request itself where nothing is fused.

    Raises:
        PipelineError: a page beyond what is fused.
    """
    whole = replace(asked, combine=False)
    if not is_fused(asked):
        return whole
    if asked.offset + asked.limit > FUSED:
        raise PipelineError(f"offset and limit: expected at most {FUSED:,} together of a combined answer")
    read = FUSED + len(asked.images)  # the photos that are asked with are left out of the answer
    return replace(whole, limit=read, offset=0, min_score=None, explain=False)


def fuse(answers: Sequence[SearchAnswer], asked: SearchRequest) -> SearchAnswer:
    """Reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009): ranks compare where scores do not. A photo is weak where it is
    for every sentence asked, however similar to a photo.
    """
    scores: dict[str, float] = defaultdict(float)
    photos: dict[str, FoundPhoto] = {}
    for answer in answers:
        for hit in answer.hits:
            if hit.id not in asked.images:
                scores[hit.id] += 1 / (FUSION + hit.rank)
                photos[hit.id] = hit
    best = sorted(scores, key=lambda photo: -scores[photo])
    of_sentences = [hit for answer in answers if answer.query for hit in answer.hits]
    good = {hit.id for hit in of_sentences if not hit.weak}
    marks = any(hit.weak for hit in of_sentences)
    hits = [replace(photos[photo], score=scores[photo], weak=marks and photo not in good) for photo in best]
    return SearchAnswer(
        "; ".join(asked.queries),
        "; ".join(asked.images),
        max(answer.searched for answer in answers),
        max(answer.candidates for answer in answers),
        {word: near for answer in answers for word, near in answer.unknown.items()},
        _page(hits, asked),
    )


def merge(answers: Sequence[SearchAnswer], asked: SearchRequest) -> SearchAnswer:
    """The answers of several nodes to one query: their scores compare, for all of them use one model."""
    hits = [hit for answer in answers for hit in answer.hits]
    listed, ends = not any(hit.rank for hit in hits), accumulate((len(answer.hits) for answer in answers), initial=0)
    # Each node's order stays: sorted anew, a photo that a node found late would move others to the next page.
    own = starmap(range, pairwise(ends))
    order = list(merge_ordered(*own, key=lambda place: -(hits[place].time if listed else hits[place].score)))
    if not listed:  # the first node has the first stores
        order = equal_in_order(np.array(order, int), np.array([hit.score for hit in hits])).tolist()
    return SearchAnswer(
        answers[0].query,
        max(answer.image for answer in answers),  # only its own node names it
        sum(answer.searched for answer in answers),
        sum(answer.candidates for answer in answers),
        answers[0].unknown,
        _page([hits[place] for place in order], asked, ranked=not listed),
    )


def _page(hits: Sequence[FoundPhoto], asked: SearchRequest, ranked: bool = True) -> tuple[FoundPhoto, ...]:
    some = hits[asked.offset : asked.offset + asked.limit]
    first = asked.offset + 1
    least = float("-inf") if asked.min_score is None else asked.min_score
    return tuple(
        replace(hit, rank=rank if ranked else 0)
        for rank, hit in enumerate(some, first)
        if hit.score >= least or not ranked
    )
