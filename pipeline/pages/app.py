"""Search as you type, in a browser: the library, photos for a sentence or like a photo, what each word looks at.

A small Starlette application. Nothing is loaded from elsewhere, photos are addressed by keys and by nothing else, and
the detector is loaded when the first photo is uploaded. Photos are decoded two at a time, apart from the threads that
answer queries, so that a page of thumbnails neither fills the memory nor delays a search.
"""

import json
import mimetypes
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from matcher.collection import EncodedCaptions
from matcher.similarity import PaddedWords, RegionEmbeddings
from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.explanation import explain
from pipeline.extraction.detectors import extractor_like
from pipeline.fields import CommandConfig, option
from pipeline.inputs.captions import Caption, read_captions
from pipeline.inputs.photos import decode_image
from pipeline.inputs.sources import read_photo
from pipeline.pages.explanation import attention_data
from pipeline.pages.library import FILTERS, Library
from pipeline.pages.render import render
from pipeline.search import caption_scores, known_words, open_search
from pipeline.store.roots import split_place

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

UPLOAD_LIMIT = 64 << 20  # bytes
LARGEST_SIDE = 1600  # pixels that a photo is sent with, at most
LONGEST_QUERY = 500  # characters
DECODERS = 2  # photos that are decoded at a time
MOST_FOLDERS = 500  # that can be chosen among
LOCAL = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


@dataclass(frozen=True)
class AppConfig(CommandConfig):
    """What `scan-pipeline app` does."""

    run: str = option(
        "", "Run folder, or starter: the shipped run.", metavar="DIR", unset="newest that fits, else starter"
    )
    features: tuple[str, ...] = option(
        (), "Store to search.", metavar="DIR", unset="every store under features/ that fits"
    )
    weights: str = option("", "Detector for uploaded photos.", metavar="FILE|NAME")
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
    port: int = option(7860, "Port to listen on; 0: any free one.", min=0, max=65535)
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, …")

    @property
    def local(self) -> bool:
        """Whether only this machine can ask."""
        return self.host in LOCAL


class Search:
    """The model and the photos, loaded once, for any number of people at once."""

    def __init__(self, config: AppConfig, say: Callable[[str], Any] = print):
        self.config = config
        self.device = pick_device(config.device)
        opened = open_search(config.run, config.features, device=config.device, report=say)
        self.run, self.collection, self.calibration = opened.run, opened.collection, opened.calibration
        self.library = Library(self.collection)
        self.embeddings: RegionEmbeddings = opened.embeddings  # (N, K, E)
        self._extracting = threading.Lock()
        self._scores = lru_cache(maxsize=32)(self._similarity)

    @cached_property
    def captions(self) -> list[Caption]:
        """Those that the run was trained on."""
        return [caption for path in self.run.captions() for caption in read_captions(path)]

    @cached_property
    def extractor(self) -> Any:
        """The detector that made the run's features."""
        return extractor_like(self.run.data["extraction"], weights=self.config.weights or None, device=self.device)

    @cached_property
    def takes_uploads(self) -> bool:
        """Whether a detector could make the regions of a new photo: features of unknown origin have none."""
        return "weights_sha256" in self.run.data["extraction"]

    def _similarity(self, query: str, like: str) -> np.ndarray:
        """(N,) of every photo to a sentence, to a photo, or to both at once.

        A photo's regions are compared as the words of a sentence are. For a sentence and a photo both scores count
        the same: each is taken in units of its spread over the photos.
        """
        model, scores = self.run.model, []
        if query:
            scores.append(model.similarities(self.embeddings, EncodedCaptions(model, [query]))[:, 0])
        if like:
            row = self.library.row(like)
            words = self.embeddings[row : row + 1]
            padded = PaddedWords(words, [words.shape[1]])
            scores.append(model.similarities(self.embeddings, padded, between_photos=True)[:, 0])
        if len(scores) == 1:
            return scores[0]
        return np.sum([(one - one.mean()) / max(float(one.std()), 1e-12) for one in scores], axis=0)

    def photos(self, query: str, like: str, wanted: Mapping[str, str], offset: int, top: int) -> dict[str, Any]:
        """The best photos for a sentence, like a photo, or both; with the words of the sentence that are unknown."""
        unknown = known_words(self.run, query) if query else {}
        scores, rows = self._scores(query, like), self.library.rows(wanted)
        if like:
            rows = rows[rows != self.library.row(like)]
        best = rows[np.argsort(-scores[rows], kind="stable")[offset : offset + top]]
        calibration = self.calibration if query and not like else None
        hits = [
            {
                **self.describe(row),
                "rank": rank,
                "score": round(float(scores[row]), 4),
                "weak": calibration is not None and calibration.is_weak(float(scores[row])),
            }
            for rank, row in enumerate(best.tolist(), start=offset + 1)
        ]
        return {"query": query, "like": like, "searched": len(rows), "unknown": unknown, "hits": hits}

    def listing(self, wanted: Mapping[str, str], offset: int, top: int) -> dict[str, Any]:
        """The photos of the library, newest first."""
        rows = self.library.rows(wanted)
        return {"searched": len(rows), "hits": [self.describe(row) for row in rows[offset : offset + top].tolist()]}

    def describe(self, row: int) -> dict[str, Any]:
        """What the page shows of a photo."""
        return self.library.describe(row, local=self.config.local)

    def about(self) -> dict[str, Any]:
        """What the page knows from the start."""
        folders = sorted({folder for folder in self.library.folders if folder})
        return {
            "stores": [str(store.path) for store in self.collection.stores],
            "folders": folders[:MOST_FOLDERS],
            "uploads": self.takes_uploads,
        }

    def attention(self, row: int, query: str) -> dict[str, Any]:
        """What `templates/attention.js` shows of a photo and a sentence."""
        path, name = self.library.place(row), self.library.ids[row]
        found = explain(self.run, self.collection, self.collection.regions(row), path, name, query)
        return {**attention_data(found), "score": found.score, "image": name}

    def captions_of(self, content: bytes, top: int) -> dict[str, Any]:
        """The best captions for an uploaded photo."""
        if not self.takes_uploads:
            raise PipelineError("the features searched were imported: no detector makes such regions of a new photo")
        with self._extracting:  # one at a time: the detector takes all there is anyway
            (regions,) = self.extractor([decode_image(content)])
        scores = caption_scores(self.run, regions, [caption.text for caption in self.captions])
        best = np.argsort(-scores, kind="stable")[:top]
        return {"captions": [{"text": self.captions[m].text, "score": float(scores[m])} for m in best]}


def serve(config: AppConfig, *, say: Callable[[str], Any] = print) -> None:
    """Load everything and answer until interrupted.

    Raises:
        PipelineError: no run, no store that fits it, a port in use, or the extra `app` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise PipelineError("the app needs uvicorn and starlette", "pip install 'scan-pipeline[app]'") from error
    with listen(config.host, config.port) as listener:
        search = Search(config, say)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        say(f"run: {search.run.name}; {len(search.collection):,} photos. Open {address}")
        server = uvicorn.Server(uvicorn.Config(make_app(search), log_level="warning"))
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is loaded.

    Raises:
        PipelineError: a port that is no port or in use, or an address that is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise PipelineError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        reason = error.strerror or str(error)
        raise PipelineError(f"--host {host} --port {port}: {reason}", "choose another --port or --host") from error
    return listener


def make_app(search: Search) -> "Starlette":
    """The application around a search."""
    from anyio import CapacityLimiter, to_thread
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, HTMLResponse, Response
    from starlette.routing import Route

    title = f"{search.run.name} · {len(search.collection):,} photos"
    decoders: list[CapacityLimiter] = []  # made inside the event loop

    async def decode(call: Callable[..., Any], *arguments: Any) -> Any:
        if not decoders:
            decoders.append(CapacityLimiter(DECODERS))
        return await to_thread.run_sync(call, *arguments, limiter=decoders[0])

    def answer(content: dict[str, Any], status: int = 200) -> Response:
        # ASCII: file names need not be UTF-8, and JavaScript takes them as they are
        return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")

    def index(request: Request) -> Response:
        page = render("app.html", title=title, about=search.about())
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    def library(request: Request) -> Response:
        return answer(search.listing(_wanted(request), *_range(request)))

    def photos(request: Request) -> Response:
        like = request.query_params.get("like", "")
        query = _query(request) if not like or request.query_params.get("q") else ""
        return answer(search.photos(query, like, _wanted(request), *_range(request)))

    async def attention(request: Request) -> Response:
        row = search.library.row(request.query_params.get("photo", ""))
        return answer(await decode(search.attention, row, _query(request)))

    async def photo(request: Request) -> Response:
        row, side = _row(request, search), _number(request, "size", 320, 16, LARGEST_SIDE)
        headers = {"Cache-Control": "private, no-cache", "ETag": search.library.tag(row, side)}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        content = await decode(search.library.thumbnail, row, side)
        return Response(content, media_type="image/jpeg", headers=headers)

    def original(request: Request) -> Response:
        place = search.library.place(_row(request, search))
        way = "attachment" if "download" in request.query_params else "inline"
        headers = {"X-Content-Type-Options": "nosniff"}
        if os.path.isfile(place):
            return FileResponse(place, filename=os.path.basename(place), content_disposition_type=way, headers=headers)
        name = os.path.basename(split_place(place)[1] or place)
        headers["Content-Disposition"] = f"{way}; filename*=utf-8''{quote(name)}"
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(read_photo(place), media_type=kind, headers=headers)

    async def captions(request: Request) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > UPLOAD_LIMIT:
                return answer({"error": f"more than {UPLOAD_LIMIT >> 20} MB"}, 413)
        return answer(await run_in_threadpool(search.captions_of, bytes(content), 10))

    def mistake(request: Request, error: Exception) -> Response:
        return answer({"error": _without_folders(str(error))}, 400)

    # Another site's page must not be able to ask through the visitor's browser under a name of its own.
    hosts = ["127.0.0.1", "localhost", "[::1]", "testserver"] if search.config.local else ["*"]
    return Starlette(
        routes=[
            Route("/", index),
            Route("/library", library),
            Route("/photos", photos),
            Route("/attention", attention),
            Route("/photo/{store}/{image}", photo),
            Route("/original/{store}/{image}", original),
            Route("/captions", captions, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={ValueError: mistake},
    )


def _without_folders(message: str) -> str:
    """A message without the folders of this machine: "/home/me/photos/a.jpg: damaged" -> "a.jpg: damaged"."""
    return re.sub(r"(?<![\w.])/(?:[^/\s:;,']+/)+", "", message)


def _query(request: "Request") -> str:
    query = " ".join(request.query_params.get("q", "").split())
    if not query or len(query) > LONGEST_QUERY:
        raise PipelineError(f"q: expected a sentence of 1 to {LONGEST_QUERY} characters")
    return query


def _row(request: "Request", search: Search) -> int:
    return search.library.row(f"{request.path_params['store']}/{request.path_params['image']}")


def _wanted(request: "Request") -> dict[str, str]:
    return {name: request.query_params[name] for name in FILTERS if request.query_params.get(name)}


def _range(request: "Request") -> tuple[int, int]:
    return _number(request, "offset", 0, 0, 1 << 31), _number(request, "top", 40, 1, 100)


def _number(request: "Request", name: str, default: int, low: int, high: int) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdecimal() or len(value) > 12:
        raise PipelineError(f"{name}: expected a number")
    return min(max(int(value), low), high)
