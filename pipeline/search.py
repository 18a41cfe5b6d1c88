"""Search: photos for a sentence or a photo, captions for a photo, each with its score and the regions that made it.

    from pipeline.search import open_search
    search = open_search()
    for hit in search("two dogs play by a tree", top=5):
        print(hit.score, hit.path, hit.boxes[0].name)

Letters: N images, M captions, K regions, L words, Q queries, E joint space.
"""

import math
import shlex
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.hub import pinned
from detector.regions import Regions
from matcher.attention import Attention
from matcher.collection import EncodedCaptions, EncodedImages
from matcher.similarity import PaddedWords, RegionEmbeddings, WordEmbeddings
from pipeline.answer import Answer, Hit
from pipeline.caption_cache import caption_embeddings
from pipeline.caption_ranking import RightCaptions, caption_hits, caption_scores
from pipeline.device import pick_device
from pipeline.errors import DamagedShard, PipelineError
from pipeline.explanation import Explanation, best_boxes, encode_regions, explain
from pipeline.gallery.embeddings import ENCODE_BLOCK, INDEX, StoredEmbeddings, store_embeddings
from pipeline.gallery.first_stage import FirstStage, open_first_stage
from pipeline.gallery.ranking import Compared, by_depth, depths
from pipeline.inputs.captions import Caption
from pipeline.inputs.finding import distinct, find_all_captions
from pipeline.inputs.sources import is_changed
from pipeline.photo_lookup import AskedPhoto, find_or_extract, marked, stored_photo
from pipeline.queries import known_words
from pipeline.runs import TrainedRun, find_run, fitting_stores, load_run, newest_that_fits
from pipeline.store.reader import StoreCollection

EMBEDDINGS_BUDGET = 4 << 30  # bytes of region embeddings that a search keeps in memory; more are read for each query
MANY = 5000  # photos; fewer need no bar
# Times the candidates where photos are the queries: 55 against 36 hold .98 of the best (Flickr8k windows)
FOR_PHOTOS = 2
EXACT_BELOW = 20_000  # photos: so few are compared exactly, all of them


class Search:
    """A run and the photos to search, for any number of queries and threads. Embeddings of regions are made once, and stored."""

    def __init__(
        self,
        run: TrainedRun,
        collection: StoreCollection,
        *,
        index: Path | None = None,
        weights: str = "",
        device: str = "auto",
        memory_budget: int = EMBEDDINGS_BUDGET,
        report: Callable[[str], Any] = print,
    ):
        """
        run, collection: the model, and stores that it can read.
        index: folder to store embeddings of regions in, brought up to date at the first query; None: they are not stored.
        weights, device: of the detector, for photos that are in no store.
        memory_budget: bytes of embeddings to keep in memory; beyond it every query reads them again.
        report: takes a line that the user should see.
        """
        self.run, self.collection, self.index, self.name = run, collection, index, run.name
        self.weights, self.device, self.report = weights, device, report
        self._memory_budget, self._lock = memory_budget, threading.Lock()
        self._embeddings: RegionEmbeddings | None = None
        self._first_stage: FirstStage | None = None  # None: every photo is compared exactly

    @property
    def stores(self) -> str:
        """The stores searched, for people."""
        return ", ".join(pinned(store.path) or str(store.path) for store in self.collection.stores)

    @property
    def title(self) -> str:
        """What is searched with what, in a line above results."""
        unmarked = "" if self.run.calibration else " (weak matches are not marked)"
        return f"run {self.name}{unmarked} · {len(self.collection):,} photos in {self.stores}"

    def caption_files(self) -> list[Path]:
        """The captions of the run; of one that was fetched or moved without them, those of the photos searched."""
        try:
            return distinct(self.run.captions())
        except PipelineError as gone:
            notes: list[str] = []
            try:
                found = distinct(find_all_captions(self.collection.stores, notes))
            except PipelineError:
                raise gone from None
            for note in [f"{gone.message}; searching {', '.join(map(str, found))}", *notes]:
                self.report(f"note: {note}")
            return found

    def __call__(self, query: str, top: int = 10) -> tuple[Hit, ...]:
        """The best photos for a sentence; of the first 100, those are marked that changed since they were extracted."""
        return marked(self.collection, self.photos([query], top))[0].hits

    def photos(
        self,
        queries: Sequence[str],
        top: int = 10,
        *,
        offset: int = 0,
        rows: np.ndarray | None = None,
        boxes: bool = True,
        exact: bool = False,
        candidates: int = 0,
        min_score: float = -math.inf,
    ) -> list[Answer]:
        """The best photos for each sentence.

        Args:
            queries: sentences.
            top, offset: results `offset` + 1 to `offset` + `top`.
            rows: of the collection, to search among, as numbers or as a mask (N,); None: all.
            boxes: whether to find the regions that made each score, which costs more than the ranking of a small collection.
            exact: compare every photo exactly, also where there is an index of many.
            candidates: photos to compare exactly, at least; 0: as many as were measured to hold the exact best.
            min_score: that a result has to reach.

        Raises:
            PipelineError: a sentence without a word that the run knows.
            IndexError, TypeError, ValueError: rows, a number or queries of no meaning.
        """
        if isinstance(queries, str):  # whose letters would be sentences
            raise TypeError(f"queries: {queries!r}, expected a list of sentences")
        rows = self._chosen(rows, top, offset)
        unknown = [self._unknown(query) for query in queries]
        counts = self._counts(candidates, offset + top, exact)
        answers = []
        for query, strange, compared in zip(queries, unknown, self._for_sentences(queries, rows, counts), strict=True):
            order = compared.order(counts, min_score)[: offset + top]
            hits = self._hits(compared, order, offset, query, boxes)
            answers.append(self._answer(query, rows, compared, hits, unknown=tuple(strange.items())))
        return answers

    def similar(
        self,
        image: int | str | Tensor,
        top: int = 10,
        *,
        offset: int = 0,
        rows: np.ndarray | None = None,
        exact: bool = False,
        candidates: int = 0,
        min_score: float = -math.inf,
    ) -> Answer:
        """The photos most similar to one, itself apart: its regions are compared as the words of a sentence would be.

        Args:
            image: row, of a photo as it was extracted; id, name or path, as `--image` takes it; or the embeddings (K, E) of the regions of any photo.
            top, offset, rows, exact, candidates, min_score: as of `photos`.
        """
        name, path, rows = "", "", self._chosen(rows, top, offset)
        if not isinstance(image, Tensor):
            found = self.find(image) if isinstance(image, str) else stored_photo(self.collection, int(image))
            if not isinstance(image, str) and is_changed(self.collection, int(image)):
                note = "changed since it was extracted, and is compared as it was; run extract again"
                self.report(f"note: {found.path}: {note}")
            name, path, image = found.image, found.path, encode_regions(self.run, found.regions)
        words = image[None]  # (1, K, E)
        if name in self.collection:
            rows = np.arange(len(self.collection)) if rows is None else rows
            rows = rows[rows != self.collection.row(name)]
        counts = self._counts(candidates, offset + top, exact, FOR_PHOTOS)
        (compared,) = self._compared(PaddedWords(words, [words.shape[1]]), rows, counts, between_photos=True)
        hits = self._hits(compared, compared.order(counts, min_score)[: offset + top], offset, "", False)
        return self._answer(name, rows, compared, hits, path=path)

    def captions(self, images: Sequence[str], captions: Sequence[Caption], top: int = 10) -> list[Answer]:
        """The best captions for each photo, an id, a name or a path.

        Raises:
            PipelineError: an image that is nowhere, a name that fits several, or features that no detector makes.
        """
        found = [self.find(image) for image in images]
        right = RightCaptions(captions, self.collection)
        scored = self._scored_captions([photo.regions for photo in found], captions)
        answers = []
        for image, photo, scores in zip(images, found, scored, strict=True):
            hits = caption_hits(self.run, photo, captions, right, scores, top)
            answers.append(Answer(image, len(captions), hits, photo.path))
            for other in right.elsewhere.get(photo.image, ()) if not any(hit.right for hit in hits) else ():
                self.report(f"note: {other}, and not marked as right for {image}")
        for doubt in right.doubts:
            self.report(f"note: {doubt}")
        return answers

    def explain(self, image: str, caption: str, direction: Attention | None = None) -> Explanation:
        """What each word of a sentence looked at in a photo.

        Raises:
            PipelineError: as `find`; the photo is gone, its store has no boxes, or no word is known.
        """
        unknown = known_words(self.run, caption)
        if unknown:
            self.report(f"note: {Answer(caption, 0, (), unknown=tuple(unknown.items())).notes()[0]}")
        return explain(self.run, self.collection, self.find(image), caption, direction=direction)

    def find(self, image: str) -> AskedPhoto:
        """A photo of the stores by its id, name or path, or one whose regions are extracted."""
        return find_or_extract(self.run, self.collection, image, self.weights, self.device, self.report)

    @property
    def embeddings(self) -> RegionEmbeddings:
        """(N, K, E) of every photo's regions: in memory, or read as they are asked for where they are many."""
        self.open()
        assert self._embeddings is not None
        return self._embeddings

    @property
    def first_stage(self) -> FirstStage | None:
        """What finds candidates among many photos; None: every photo is compared exactly."""
        self.open()
        return self._first_stage

    def open(self) -> None:
        """Do now what the first query would do: store what is new, read what is stored."""
        with self._lock:
            if self._embeddings is not None:
                return
            source, count = self._stored(), len(self.collection)
            keeps = self._first_stage is None and 4 * math.prod(source.shape) <= self._memory_budget
            starts = range(0, count, ENCODE_BLOCK) if keeps else ()
            blocks = [source[start : start + ENCODE_BLOCK] for start in starts]
            self._embeddings = torch.cat(blocks) if blocks else source

    def _stored(self) -> RegionEmbeddings:
        """The embeddings in the index; where nothing can be stored, they are encoded whenever they are asked for."""
        many = len(self.collection) >= EXACT_BELOW
        if self.index is not None:
            try:
                stored = store_embeddings(self.run, self.collection, self.index, verify=not many, report=self.report)
                if many:
                    self._first_stage = open_first_stage(self.run, self.collection, stored, self.index, self.report)
                    if self._first_stage is None:
                        command = f"scan-pipeline index --run {shlex.quote(self.name)}"
                        self.report(f"note: comparing every photo; an index is faster: {command}")
                return stored
            except DamagedShard:  # its features are not those of its photos
                raise
            except PipelineError as error:
                self.report(f"note: embeddings of the photos are not stored: {error}")
        self.collection.refuse_changed()
        return EncodedImages(self.run.model, self.collection, np.arange(len(self.collection)))

    def _unknown(self, query: str) -> dict[str, str]:
        """`known_words`, of one run or of several."""
        return known_words(self.run, query)

    def _scored_captions(self, photos: Sequence[Regions], captions: Sequence[Caption]) -> list[np.ndarray]:
        """Similarities (M,) of each photo to the captions."""
        encoded = caption_embeddings(self.run, [caption.text for caption in captions], self.report)
        return [caption_scores(self.run, regions, encoded) for regions in photos]

    def _fewest(self) -> int:
        """Candidates that hold the exact best; 0: every photo is compared."""
        return self.first_stage.candidates if self.first_stage else 0

    def _counts(self, candidates: int, results: int, exact: bool, factor: int = 1) -> list[int]:
        """How many candidates are compared, of `depths`; none: every photo is."""
        fewest = 0 if exact else self._fewest()
        return depths(max(candidates, factor * fewest), results) if fewest else []

    def _for_sentences(self, queries: Sequence[str], rows: np.ndarray | None, counts: Sequence[int]) -> list[Compared]:
        """`_compared` with sentences."""
        return self._compared(EncodedCaptions(self.run.model, queries), rows, counts)

    def _compared(
        self, words: WordEmbeddings, rows: np.ndarray | None, counts: Sequence[int], *, between_photos: bool = False
    ) -> list[Compared]:
        """Each query with the last number of candidates, or with all photos where that is no less."""
        regions = self.embeddings
        found = self._candidates(words, rows, counts)
        if found is not None:
            return [
                Compared(some, self._scores(words, query, some, places, counts, between_photos), places)
                for query, (some, places) in enumerate(found)
            ]
        every = np.arange(len(self.collection)) if rows is None else rows
        some = regions.among(every) if isinstance(regions, StoredEmbeddings) else regions
        similarity = self.run.model.similarities(
            some,
            words,
            between_photos=between_photos,
            bytes_per_region=getattr(some, "bytes_per_region", 0),
            progress=not isinstance(some, Tensor) and some.shape[0] > MANY,
        )  # (N, Q), or (n, Q) of those asked for
        return [Compared(every, column[every] if some is regions else column) for column in similarity.T]

    def _candidates(
        self, words: WordEmbeddings, rows: np.ndarray | None, counts: Sequence[int]
    ) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """For each query the rows (n,) to compare exactly, ascending, and their places (n,) in the first stage.

        None: the first page is ranked among all photos, and so are the others. Where a later one is, the pages before it still
        show what they did.
        """
        fewer = [count for count in counts if count < len(self.collection if rows is None else rows)]
        if self.first_stage is None or not fewer:
            return None
        found = []
        for best in self.first_stage.search(words, fewer[-1], rows):
            some = np.sort(best)
            if len(fewer) < len(counts):
                some = np.arange(len(self.collection)) if rows is None else rows
            places = np.full(len(some), fewer[-1])
            places[np.searchsorted(some, best)] = np.arange(len(best))
            found.append((some, places))
        return found

    def _scores(
        self,
        words: WordEmbeddings,
        query: int,
        rows: np.ndarray,
        places: np.ndarray,
        counts: Sequence[int],
        between_photos: bool = False,
    ) -> np.ndarray:
        """Similarities (n,) of one of the queries to some candidates."""
        assert isinstance(self._embeddings, StoredEmbeddings)
        one = words.pack(torch.tensor([query]))[None]  # (1, L, E)
        padded, scores = PaddedWords(one, [one.shape[1]]), np.empty(len(rows), np.float32)
        for own in by_depth(places, counts):
            if len(own):
                # block by block, in the cache: all at once, as float32, they would go through memory twice
                some = self._embeddings.among(rows[own]).read_ahead()
                scores[own] = self.run.model.similarities(some, padded, between_photos=between_photos)[:, 0]
        return scores

    def _chosen(self, rows: np.ndarray | None, top: int, offset: int) -> np.ndarray | None:
        """The rows (n,) of a request as numbers, ascending, each once; None: all."""
        if min(top, offset) < 0:
            raise ValueError(f"top {top} and offset {offset}: expected 0 or more")
        if rows is None:
            return None
        chosen = np.zeros(len(self.collection), bool)
        chosen[rows] = True
        return np.flatnonzero(chosen)

    def _answer(self, query: str, rows: np.ndarray | None, compared: Compared, hits: Any, **more: Any) -> Answer:
        searched, count = len(self.collection if rows is None else rows), len(compared.rows)
        return Answer(query, searched, hits, compared=count if count < searched else 0, **more)

    def _hits(
        self, compared: Compared, order: np.ndarray, offset: int, sentence: str, with_boxes: bool
    ) -> tuple[Hit, ...]:
        """The photos from `offset` on in the order for a sentence, or "": for a photo, which has no boxes."""
        with torch.inference_mode():
            words = self.run.model.caption_parts(sentence) if with_boxes else None  # (L, E)
        hits = []
        for rank, place in enumerate(order[offset:].tolist(), start=offset + 1):
            row, score = int(compared.rows[place]), float(compared.scores[place])
            found = stored_photo(self.collection, row, verify=self.first_stage is None)  # as parts of the index are
            boxes = best_boxes(self.run, self.collection, found, words) if words is not None else ()
            weak = bool(sentence) and self.run.is_weak(score, len(self.collection))
            size = found.regions.image_size
            hits.append(Hit(rank, score, found.image, found.path, boxes=boxes, image_size=size, weak=weak))
        return tuple(hits)


def open_search(
    run: str = "",
    features: Sequence[str] = (),
    *,
    weights: str = "",
    device: str = "auto",
    memory_budget: int = EMBEDDINGS_BUDGET,
    report: Callable[[str], Any] = print,
) -> Search:
    """A search over stores with a run.

    Args:
        run: run folder; "": the newest under runs/, or the shipped one where none of them fits the stores.
        features: stores; none: every store under features/ that fits the run.
        weights, device, memory_budget, report: as of `Search`.

    Raises:
        PipelineError: no run, or no store that fits it.
    """
    where = pick_device(device)
    if run:
        trained = load_run(find_run(run), where)
        collection = fitting_stores(trained, features, report)
    else:
        trained, collection = newest_that_fits(features, where, report)
    if trained.calibration is None:
        report("note: no match is marked as weak: the run is not calibrated")
    return Search(
        trained,
        collection,
        index=INDEX,
        weights=weights,
        device=device,
        memory_budget=memory_budget,
        report=report,
    )
