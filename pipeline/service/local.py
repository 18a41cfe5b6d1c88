"""The service over stores of this machine: a run, its stores, and the routes that need both."""

import asyncio
import base64
import binascii
import hashlib
import math
import mimetypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from configs.files import json_sha256
from detector.locate import has_weights
from matcher.calibration import FILE as CALIBRATION
from matcher.calibration import is_by_chance
from matcher.fit import BEST
from pipeline.answer import Answer
from pipeline.caption_cache import caption_embeddings
from pipeline.caption_ranking import caption_scores
from pipeline.errors import PipelineError
from pipeline.explanation import encode_regions, explain
from pipeline.extraction.detectors import extractor_like, is_starter
from pipeline.gallery.embeddings import INDEX
from pipeline.gallery.embeddings import generation as index_folder
from pipeline.gallery.first_stage import STATE
from pipeline.gallery.ranking import ranked
from pipeline.inputs.captions import read_captions
from pipeline.inputs.homes import ANNOTATIONS
from pipeline.inputs.photos import decode_thumbnail
from pipeline.inputs.sources import read_photo
from pipeline.pages.explanation import attention_data
from pipeline.photo_lookup import stored_photo
from pipeline.queries import known_words
from pipeline.search import open_search
from pipeline.service import schema
from pipeline.service.batches import Batches
from pipeline.service.config import ServeConfig
from pipeline.service.dates import times_of
from pipeline.service.library import MOST_PIXELS, Library
from pipeline.service.merging import fuse, is_fused, parts_of
from pipeline.service.metrics import Metrics
from pipeline.store.format import FEATURES
from pipeline.store.roots import split_place

MOST_FOLDERS = 500  # that an index lists
CLOCK = 20_000_000  # nanoseconds that the times of files are behind the clock, at most
DECODERS = 2  # photos that are decoded at a time
UPLOADS = 8  # photos that may wait for the detector
UPLOAD_SIDE = 6000  # pixels; larger photos are made smaller while they are decoded, and no network takes as much
NOT_WITHOUT_ASKING = {"Cache-Control": "private, no-cache"}  # else a browser shows a photo that was replaced


class Generation:
    """The stores as they were opened once. A request is answered from one generation, from its beginning to its end."""

    def __init__(self, config: ServeConfig, say: Callable[[str], Any] = print):
        self.config, self.say, self._said = config, say, set[str]()
        self.search = open_search(
            config.run, config.features, weights=config.weights, device=config.device, report=self._say_once
        )
        self.run, self.collection = self.search.run, self.search.collection
        self.library = Library(self.collection)
        self.complete = all(store.complete for store in self.collection.stores)
        self._captions: tuple[list[Any], list[str], str, Any] | None = None  # what they were read from, and they
        # Captions files, and when their folders last changed
        self._found: tuple[dict[str, int], list[Path]] | None = None
        self.has_detector = self._has_detector()
        self.caption_files()  # they may have to be read for it, so now
        self.search.open()  # now, and not while the first client waits
        stage = self.search.first_stage
        self.candidates = stage.candidates if stage else 0
        head = stage.measured.head if stage else ""
        made_of = [self.run.sha256, self.collection.content_sha256, head, str(self.candidates)]
        self.name = hashlib.sha256(" ".join(made_of).encode()).hexdigest()[:12]

    def stamp(self) -> dict[Path, int]:
        """When stores, model and index were last written to: a shard takes its name in its store's folder."""
        paths = {self.run.folder / BEST, self.run.folder / CALIBRATION, index_folder(self.run, INDEX) / STATE}
        paths |= {store.path for store in self.collection.stores}
        paths |= set() if self.config.features else {FEATURES, *FEATURES.glob("*")}
        times = {}
        for path in paths:
            with suppress(OSError):
                times[path] = path.stat().st_mtime_ns
        return times

    @cached_property
    def index(self) -> schema.Index:
        """What is searched."""
        local, stores = self.config.local, self.collection.stores
        return schema.Index(
            Path(self.run.name).name, self.run.sha256, self.name, self.complete, len(self.collection), self.candidates,
            tuple(str(store.path) for store in stores) if local else tuple(self.library.store_names),
            tuple(sorted(filter(None, self.library.folders))[:MOST_FOLDERS]),
            False,  # uploads: `LocalService.index` knows
            is_starter(self.collection.extraction),
            {},
            tuple(next(shard.sha256 for shard in store.shards if len(shard)) for store in stores),
        )  # fmt: skip

    @property
    def takes_uploads(self) -> bool:
        """Whether a detector is there that makes the run's features, and captions to choose among."""
        return self.has_detector and bool(self.caption_files())

    def _has_detector(self) -> bool:
        extraction = self.run.data["extraction"]
        there = is_starter(extraction) or bool(self.config.weights or self.run.weights) or has_weights()
        return "weights_sha256" in extraction and there

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def caption_files(self) -> list[Path]:
        """Those that the run was trained on, or of the photos searched; none where there are none. Looked for again where something
        came into the folders where they are, or went.
        """
        if self._found is None or self._found[0] != self._times_of_folders(self._found[1]):
            found: list[Path] = []
            with suppress(PipelineError):
                found = self.search.caption_files()
            self._found = self._times_of_folders(found), found
        return self._found[1]

    def _times_of_folders(self, files: list[Path]) -> dict[str, int]:
        """When something came into the folders of captions files and of photos, those above and their annotations/, or went."""
        roots = [root for store in self.collection.stores for root in store.manifest["image_roots"]]
        folders = {*map(os.path.dirname, files), *roots, *map(os.path.dirname, roots)}
        folders |= {os.path.join(folder, ANNOTATIONS) for folder in folders}
        times = {}
        for folder in folders:
            with suppress(OSError, ValueError):
                times[folder] = os.stat(folder).st_mtime_ns
        return times

    def photo(self, row: int) -> schema.Photo:
        """What is known of a photo."""
        return self.library.photo(row, local=self.config.local)

    def captions(self) -> tuple[list[str], str, Any]:
        """Those of `caption_files`, their checksum, and embeddings of their words; read again where a file changed."""
        made_of = [(path, times_of(str(path))[1]) for path in self.caption_files()]
        if self._captions is None or self._captions[0] != made_of:
            texts = [caption.text for path, _ in made_of for caption in read_captions(path)]
            if not texts:
                raise PipelineError("no captions for a new photo: their files hold none any more")
            self._captions = made_of, texts, json_sha256(texts), caption_embeddings(self.run, texts, self.say)
        return self._captions[1:]

    @cached_property
    def extractor(self) -> Any:
        """The detector that made the run's features."""
        device = self.run.model.device
        return extractor_like(
            self.run.data["extraction"], weights=self.config.weights or self.run.weights or None, device=device
        )

    def captions_of(self, content: bytes) -> schema.Captions:
        """The best captions for a photo.

        Raises:
            PipelineError: no photo, or features that no detector makes.
        """
        if not self.takes_uploads:
            raise PipelineError(
                "no captions for a new photo: neither the run nor the photos have any, or no detector makes its features here"
            )
        (regions,) = self.extractor([decode_thumbnail(content, UPLOAD_SIDE, max_pixels=MOST_PIXELS)])
        texts, source, words = self.captions()
        scores = caption_scores(self.run, regions, words)
        best = ranked(scores)[: schema.CAPTIONS].tolist()
        shares = [self.run.share(score) for score in scores[best].tolist()]
        weak = [is_by_chance(share, len(texts)) for share in shares]
        found = map(schema.Caption, [texts[m] for m in best], scores[best].tolist(), weak, shares)
        return schema.Captions(tuple(found), len(texts), {source: len(texts)}, True)

    def explain(self, row: int, asked: schema.ExplanationQuery) -> dict[str, Any]:
        """What `templates/attention.js` shows of a photo and a sentence."""
        known_words(self.run, asked.query)
        self.library.refuse_other(row, asked.version)
        self._refuse_changed(row)
        self.library.place(row)  # refused where it is gone
        found = explain(self.run, self.collection, stored_photo(self.collection, row), asked.query)
        return {**attention_data(found), "score": found.score, "image": self.library.names[row]}

    def _refuse_changed(self, row: int) -> None:
        """Raises a PipelineError where a photo is shown that is not the one whose features are stored."""
        if self.library.is_changed(row):
            raise PipelineError(f"{self.library.names[row]}: changed since it was extracted", "extract it again")

    def embeddings(self, row: int) -> dict[str, str]:
        """Region embeddings of a photo, to search other nodes with."""
        self._refuse_changed(row)
        values = encode_regions(self.run, stored_photo(self.collection, row).regions).cpu().numpy().astype("<f4")
        return {"embeddings": base64.b64encode(values.tobytes()).decode(), "model": self.run.sha256}

    def answers(self, common: schema.SearchRequest, asked: list[Any]) -> list[schema.SearchAnswer]:
        """Answers of one batch: sentences, or photos as rows or as embeddings (K, E)."""
        rows = self.library.rows(common.filter)
        for photo in asked:
            if isinstance(photo, int):
                self._refuse_changed(photo)
        how: dict[str, Any] = {"offset": common.offset, "exact": common.exact, "candidates": common.candidates}
        how["min_score"] = -math.inf if common.min_score is None else common.min_score
        if isinstance(asked[0], str):
            found = self.search.photos(asked, common.limit, rows=rows, boxes=common.explain, **how)
            return [self._described(common, answer, query=answer.query) for answer in found]
        return [
            self._described(
                common,
                self.search.similar(photo, common.limit, rows=rows, **how),
                image=self.library.id(photo) if isinstance(photo, int) else "",
            )
            for photo in asked
        ]

    def _described(
        self, common: schema.SearchRequest, answer: Answer, query: str = "", image: str = ""
    ) -> schema.SearchAnswer:
        among = common.among or len(self.collection)
        rows = [self.collection.row(hit.image) for hit in answer.hits]
        found = [
            schema.FoundPhoto(
                **vars(self.photo(row)),
                rank=hit.rank,
                score=hit.score,
                weak=bool(query) and self.run.is_weak(hit.score, among),
                boxes=hit.boxes,
                changed=changed,
            )
            for hit, row, changed in zip(answer.hits, rows, self.library.are_changed(rows), strict=True)
        ]
        compared = answer.compared or answer.searched
        return schema.SearchAnswer(query, image, answer.searched, compared, dict(answer.unknown), tuple(found))

    def listed(self, asked: schema.SearchRequest) -> schema.SearchAnswer:
        """The photos of the library, newest first."""
        rows = self.library.newest(self.library.rows(asked.filter))
        some = rows[asked.offset : asked.offset + asked.limit].tolist()
        photos = zip(map(self.photo, some), self.library.are_changed(some), strict=True)
        hits = tuple(schema.FoundPhoto(**vars(photo), changed=changed) for photo, changed in photos)
        return schema.SearchAnswer("", "", len(rows), 0, {}, hits)

    def decoded(self, text: str) -> torch.Tensor:
        """Region embeddings (K, E) that another node made."""
        width = self.run.model.config.embed_dim
        try:
            values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(-1, width)
            if not len(values) or not np.isfinite(values).all():
                raise ValueError
        except (ValueError, binascii.Error):
            raise PipelineError(f"embeddings: expected base64 of float32, (K, {width})") from None
        return torch.from_numpy(values.copy()).to(self.run.model.device)


class LocalService:
    """Answers from the newest generation, and makes a new one when stores or model have changed."""

    def __init__(self, config: ServeConfig, metrics: Metrics, say: Callable[[str], Any] = print):
        began = time.time_ns() - CLOCK
        self.generation = Generation(config, say)
        # The run stays the one found at the start: one that is being trained beside it must not take its place.
        self.config = replace(config, run=str(self.generation.run.folder))
        # What was written to while it was opened may not be in it: the first look opens it again.
        self._seen = {path: when for path, when in self.generation.stamp().items() if when < began}
        self.metrics, self.say = metrics, say
        self.batches = Batches(lambda key, asked: key[0].answers(key[1], asked), config.queue, metrics.batch.observe)
        # apart: a detector may take seconds
        self.uploads = Batches(lambda generation, photos: list(map(generation.captions_of, photos)), UPLOADS)
        metrics.waiting.set_function(lambda: len(self.batches.waiting))
        metrics.photos.set_function(lambda: len(self.generation.collection))
        self._decoding, self._reloading = asyncio.Semaphore(DECODERS), asyncio.Lock()

    async def search(self, request: Request, asked: schema.SearchRequest) -> schema.SearchResponse:
        """Find photos for sentences, and photos similar to photos."""
        started, generation, order = time.perf_counter(), self.generation, ""
        queries = tuple(" ".join(query.split()) for query in asked.queries)
        impossible = await asyncio.to_thread(generation.library.impossible, asked.filter, generation.index.stores)
        if impossible and not asked.among:  # else another node may have such photos
            raise next(iter(impossible.values()))
        for query in queries:  # refused before the others of its batch wait for it
            await asyncio.to_thread(known_words, generation.run, query)
        if queries or asked.images or asked.embeddings:
            answers = await self._find(generation, replace(asked, queries=queries))
        else:
            answers = [await asyncio.to_thread(generation.listed, asked)]
            order = f".{generation.library.dates.changes}"  # pages of two orders do not join either
        milliseconds = round(1000 * (time.perf_counter() - started), 2)
        run = generation.run
        return schema.SearchResponse(
            Path(run.name).name, run.sha256, generation.name + order, generation.complete, run.calibration is not None,
            milliseconds, tuple(answers), generation.index.features, {name: str(why) for name, why in impossible.items()},
        )  # fmt: skip

    async def _find(self, generation: Generation, asked: schema.SearchRequest) -> list[schema.SearchAnswer]:
        """One answer for each sentence, photo and embedding; or one for all of them."""
        rows = [generation.library.row(image) for image in asked.images]
        photos = [*rows, *map(generation.decoded, asked.embeddings)]
        common = replace(parts_of(asked), queries=(), images=(), embeddings=())
        key = (generation, common)
        kinds = [self.batches.ask((*key, kind), some) for kind, some in enumerate((asked.queries, photos)) if some]
        answers = [answer for some in await asyncio.gather(*kinds) for answer in some]
        return [fuse(answers, asked)] if is_fused(asked) else answers

    async def captions(self, request: Request, asked: bytes) -> schema.Captions:
        """Find captions for a photo that is sent."""
        (found,) = await self.uploads.ask(self.generation, [asked])
        return found

    async def index(self, request: Request, asked: None) -> schema.Index:
        """What is searched: run, stores, number of photos."""
        generation = self.generation
        return await asyncio.to_thread(lambda: replace(generation.index, uploads=generation.takes_uploads))

    async def photo(self, request: Request, asked: None) -> schema.Photo:
        """What is known of a photo."""
        return self.generation.photo(self._row(request))

    async def image(self, request: Request, asked: schema.ImageQuery) -> Response:
        """A photo as JPEG."""
        library, row = self.generation.library, self._row(request)
        library.refuse_other(row, asked.version)
        headers = NOT_WITHOUT_ASKING | {"ETag": library.tag(row, asked.size)}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        async with self._decoding:  # apart from the queries, so that a page of thumbnails does not delay them
            content = await asyncio.to_thread(library.thumbnail, row, asked.size)
        return Response(content, media_type="image/jpeg", headers=headers)

    async def original(self, request: Request, asked: schema.FileQuery) -> Response:
        """A photo's file."""
        library, row = self.generation.library, self._row(request)
        library.refuse_other(row, asked.version)
        place = library.place(row)
        headers = NOT_WITHOUT_ASKING | {"X-Content-Type-Options": "nosniff"}
        name = os.path.basename(split_place(place)[1] or place)
        headers["Content-Disposition"] = f"inline; filename*=utf-8''{quote(os.fsencode(name))}"  # of any bytes
        if os.path.isfile(place):
            return FileResponse(place, headers=headers)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(await asyncio.to_thread(read_photo, place), media_type=kind, headers=headers)

    async def explanation(self, request: Request, asked: schema.ExplanationQuery) -> dict[str, Any]:
        """Where each word of a sentence looks in a photo."""
        return await self.batches.call(self.generation.explain, self._row(request), asked)

    async def embeddings(self, request: Request, asked: None) -> dict[str, str]:
        """A photo's region embeddings, to search other nodes with."""
        return await self.batches.call(self.generation.embeddings, self._row(request))

    def _row(self, request: Request) -> int:
        return self.generation.library.row(request.path_params["id"])

    async def watch(self, wanted: asyncio.Event) -> None:
        """Reload when asked to, and when something was written to the stores; never returns."""
        while True:
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(wanted.wait(), self.config.watch or None)
            if wanted.is_set() or await asyncio.to_thread(self.generation.stamp) != self._seen:
                wanted.clear()
                await self.reload()

    async def reload(self) -> None:
        """Open the stores again. Requests that have begun end with the generation that they began with."""
        async with self._reloading:
            before = self._seen = await asyncio.to_thread(self.generation.stamp)
            try:
                generation = await asyncio.to_thread(Generation, self.config, self.say)
            except Exception as error:  # whatever is wrong with the new stores, what is served stays
                self.metrics.reloads.labels("failed").inc()
                self.say(f"not reloaded: {error}")
                return
            self.generation = generation
            self._seen = {path: before[path] for path in generation.stamp() if path in before}
            self.metrics.reloads.labels("done").inc()
            self.say(f"reloaded: {len(generation.collection):,} photos, generation {generation.name}")

    async def close(self) -> None:
        """End the threads."""
        self.batches.close()
        self.uploads.close()

    def __str__(self) -> str:
        return f"run: {self.generation.run.name}; {len(self.generation.collection):,} photos"
