"""Search as you type, in a browser: photos for a sentence, the attention behind each, captions for a photo of your own.

A small Starlette application. Nothing is loaded from elsewhere, photos are addressed by their row in the store and by
nothing else, and the detector is loaded when the first photo is uploaded.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from pipeline.device import pick_device
from pipeline.errors import PipelineError
from pipeline.inputs.captions import Caption, read_captions
from pipeline.inputs.photos import decode_image, read_image
from pipeline.runs import find_run, load_run
from pipeline.search import caption_scores, fitting_stores, photos_for

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

EMBEDDINGS_BUDGET = 4 << 30  # bytes; larger collections are read and encoded again for each query
ENCODE_BLOCK = 256  # photos
UPLOAD_LIMIT = 64 << 20  # bytes
LARGEST_SIDE = 1600  # pixels that a photo is sent with, at most
LONGEST_QUERY = 500  # characters


@dataclass(frozen=True)
class AppConfig:
    """What `scan-pipeline app` does."""

    run: str = ""  # run folder; "": the newest
    features: tuple[str, ...] = ()  # stores to search; none: every store under features/ that fits
    weights: str = ""  # detector for uploaded photos
    host: str = "127.0.0.1"  # this machine alone
    port: int = 7860
    device: str = "auto"


class Search:
    """The model and the photos, loaded once, for any number of people at once."""

    def __init__(self, config: AppConfig, say: Callable[[str], Any] = print):
        self.config = config
        self.device = pick_device(config.device)
        self.run = load_run(find_run(config.run or None), self.device)
        self.collection = fitting_stores(self.run, config.features, say)
        self.embeddings = self._encode()
        self._extracting = threading.Lock()

    @torch.inference_mode()
    def _encode(self) -> torch.Tensor | None:
        """(N, K, E) of every photo, or None where that would be too much."""
        count, model = len(self.collection), self.run.model
        if count * self.collection.num_regions * model.config.embed_dim * 4 > EMBEDDINGS_BUDGET:
            return None
        blocks = []
        for rows in np.array_split(np.arange(count), -(-count // ENCODE_BLOCK)):
            features = torch.from_numpy(self.collection.gather(rows)).to(self.device).float()
            blocks.append(model.encode_images(features))
        return torch.cat(blocks)

    @cached_property
    def captions(self) -> list[Caption]:
        """Those that the run was trained on."""
        return [caption for path in self.run.captions() for caption in read_captions(path)]

    @cached_property
    def extractor(self) -> Any:
        """The detector that made the run's features."""
        from pipeline.extraction.detectors import extractor_like

        return extractor_like(self.run.data["extraction"], weights=self.config.weights or None, device=self.device)

    def photos(self, query: str, top: int) -> dict[str, Any]:
        """The best photos for a sentence, each with its row."""
        (answer,) = photos_for(self.run, self.collection, [query], top, embeddings=self.embeddings)
        hits = [{**asdict(hit), "row": self.collection.row(hit.image)} for hit in answer.hits]
        for hit in hits:
            del hit["path"]  # where things are on this machine is nobody's business
        return {"query": query, "searched": answer.searched, "hits": hits}

    def attention(self, row: int, query: str) -> dict[str, Any]:
        """What `templates/attention.js` shows of a photo and a sentence."""
        from pipeline.explanation import explain
        from pipeline.pages.explanation import attention_data

        path = self.collection.image_path(row)
        name = self.collection.image_ids[row]
        found = explain(self.run, self.collection, self.collection.regions(row), path, name, query)
        return {**attention_data(found), "score": found.score, "image": name}

    def photo(self, row: int, longest_side: int) -> bytes:
        """A photo of the store as JPEG."""
        path = self.collection.image_path(row)
        if path is None:
            raise PipelineError(f"{self.collection.image_ids[row]}: its photo is not where it was extracted from")
        photo = read_image(path)
        scale = min(1.0, longest_side / max(photo.shape[:2]))
        if scale < 1:
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()

    def captions_of(self, content: bytes, top: int) -> dict[str, Any]:
        """The best captions for an uploaded photo."""
        photo = decode_image(content)
        with self._extracting:  # one at a time: the detector takes all there is anyway
            (regions,) = self.extractor([photo])
        scores = caption_scores(self.run, regions, [caption.text for caption in self.captions])
        best = np.argsort(-scores, kind="stable")[:top]
        return {"captions": [{"text": self.captions[m].text, "score": float(scores[m])} for m in best]}


def serve(config: AppConfig, *, say: Callable[[str], Any] = print) -> None:
    """Load everything and answer until interrupted.

    Raises:
        PipelineError: no run, no store that fits it, or the extra `app` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise PipelineError("the app needs uvicorn and starlette; pip install 'scan-pipeline[app]'") from error
    search = Search(config, say)
    say(f"run: {search.run.folder}; {len(search.collection):,} photos. Open http://{config.host}:{config.port}")
    uvicorn.run(make_app(search), host=config.host, port=config.port, log_level="warning")


def make_app(search: Search) -> "Starlette":
    """The application around a search."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    from pipeline.pages.render import render

    title = f"{search.run.folder.name} · {len(search.collection):,} photos"

    def answer(content: dict[str, Any], status: int = 200) -> Response:
        # ASCII: file names need not be UTF-8, and JavaScript takes them as they are
        return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")

    def index(request: Request) -> Response:
        return HTMLResponse(render("app.html", title=title))

    def photos(request: Request) -> Response:
        query = _query(request)
        return answer(search.photos(query, _number(request, "top", 24, 1, 100)))

    def attention(request: Request) -> Response:
        return answer(search.attention(_row(request, search), _query(request)))

    def photo(request: Request) -> Response:
        content = search.photo(_row(request, search), _number(request, "size", 320, 16, LARGEST_SIDE))
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def captions(request: Request) -> Response:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > UPLOAD_LIMIT:
                return answer({"error": f"more than {UPLOAD_LIMIT >> 20} MB"}, 413)
        return answer(await run_in_threadpool(search.captions_of, bytes(content), 10))

    def mistake(request: Request, error: Exception) -> Response:
        return answer({"error": str(error)}, 400)

    # Another site's page must not be able to ask through the visitor's browser under a name of its own.
    local = search.config.host in ("127.0.0.1", "localhost", "::1")
    hosts = ["127.0.0.1", "localhost", "[::1]", "testserver"] if local else ["*"]
    return Starlette(
        routes=[
            Route("/", index),
            Route("/photos", photos),
            Route("/attention", attention),
            Route("/photo/{row:int}", photo),
            Route("/captions", captions, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={ValueError: mistake},
    )


def _query(request: "Request") -> str:
    query = request.query_params.get("q", "").strip()
    if not query or len(query) > LONGEST_QUERY:
        raise PipelineError(f"q: expected a sentence of 1 to {LONGEST_QUERY} characters")
    return query


def _row(request: "Request", search: Search) -> int:
    value = request.path_params.get("row", request.query_params.get("row", ""))
    if not str(value).isdigit() or int(value) >= len(search.collection):
        raise PipelineError(f"row: expected 0 to {len(search.collection) - 1}")
    return int(value)


def _number(request: "Request", name: str, default: int, low: int, high: int) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdigit():
        raise PipelineError(f"{name}: expected a number")
    return min(max(int(value), low), high)
