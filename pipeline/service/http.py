"""Routes around a service: the key, the limits, the errors, the metrics and the OpenAPI document are the same for all."""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from configs.errors import UserError
from configs.files import each_once
from pipeline.config import from_mapping
from pipeline.errors import PipelineError
from pipeline.service.batches import QueueFull
from pipeline.service.config import ServeConfig
from pipeline.service.metrics import Metrics
from pipeline.service.schema import FILE, JSON, OF_SERVER, OF_SERVICE, Endpoint, Index, NotFound, openapi

BODY = {JSON: 8 << 20, FILE: 64 << 20}  # bytes
Handler = Callable[..., Any]
COOKIE = "scan-pipeline-key"
logger = logging.getLogger("scan-pipeline")


class Service(Protocol):
    """What is served."""

    config: ServeConfig

    async def index(self, request: Request, asked: None) -> Index:
        """What is searched."""

    async def watch(self, wanted: asyncio.Event) -> None:
        """Reload whenever that is wanted; never returns."""

    async def close(self) -> None:
        """Free what is held."""


class Server:
    """A service behind HTTP."""

    def __init__(self, service: Service, metrics: Metrics, key: str = "", page: Handler | None = None):
        """
        key: that every request must carry; "": none.
        page: what a browser gets at /, if anything.
        """
        self.service, self.metrics, self.key, self.page = service, metrics, key, page
        self.reload = asyncio.Event()  # set to open the stores again

    def app(self) -> Starlette:
        """The application that uvicorn runs."""
        handlers = [(one, getattr(self.service, one.name)) for one in OF_SERVICE]
        handlers += [(one, getattr(self, one.name)) for one in OF_SERVER]
        handlers += [(Endpoint("page", "/", "", answer="text/html"), self.page)] if self.page else []
        # Another site's page must not be able to ask through the visitor's browser under a name of its own.
        hosts = ["127.0.0.1", "localhost", "[::1]", "testserver"] if self.service.config.local else ["*"]
        return Starlette(
            routes=[Route(one.path, self._handler(one, call), methods=[one.method]) for one, call in handlers],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.service.watch(self.reload))
        try:
            yield
        finally:
            watching.cancel()
            await self.service.close()

    async def health(self, request: Request, asked: None) -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    async def ready(self, request: Request, asked: None) -> dict[str, str]:
        """Whether requests are answered."""
        await self.service.index(request, None)
        return {"status": "ready"}

    async def measured(self, request: Request, asked: None) -> Response:
        """Counters for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def document(self, request: Request, asked: None) -> dict[str, Any]:
        """This interface, as OpenAPI 3.1."""
        return openapi()

    def _handler(self, endpoint: Endpoint, call: Handler) -> Handler:
        async def handle(request: Request) -> Response:
            started = time.perf_counter()
            try:
                response = await self._answer(endpoint, call, request)
            except HTTPException as error:
                response = _json({"error": error.detail}, error.status_code)
                if error.status_code == 401:
                    response.headers["WWW-Authenticate"] = "Bearer"
                elif error.status_code in (429, 503):
                    response.headers["Retry-After"] = "1"
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(endpoint.path, str(response.status_code)).observe(seconds)
            return response

        return handle

    async def _answer(self, endpoint: Endpoint, call: Handler, request: Request) -> Response:
        """The answer of an endpoint.

        Raises:
            HTTPException: what the caller did wrong, or why there is no answer now.
        """
        if self.key and "key" in request.query_params and endpoint.path == "/":  # a link that is opened in a browser
            response = RedirectResponse("/")
            response.set_cookie(COOKIE, request.query_params["key"], httponly=True, samesite="strict")
            return response
        if not endpoint.is_open and not self._may(request):
            raise HTTPException(401, "no key, or another one: send the header Authorization: Bearer KEY")
        limit = self.service.config.timeout
        try:
            with anyio.fail_after(limit):
                answer = await call(request, await _asked(endpoint, request))
        except QueueFull:
            raise HTTPException(429, f"more than {self.service.config.queue} requests wait; ask again later") from None
        except TimeoutError:
            raise HTTPException(503, f"took more than {limit:g} s; ask again later") from None
        except UserError as error:  # of the one who asks; all else is a fault of the server
            raise HTTPException(
                404 if isinstance(error, NotFound) else 400, without_folders(" ".join(str(error).split()))
            ) from None
        except HTTPException:
            raise
        except Exception:
            logger.exception("%s %s", request.method, request.url.path)
            raise HTTPException(500, "a fault of the server, which is in its log") from None
        return answer if isinstance(answer, Response) else _json(answer)

    def _may(self, request: Request) -> bool:
        if not self.key:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given if scheme.lower() == "bearer" else request.cookies.get(COOKIE, "")
        return hmac.compare_digest(given.encode(), self.key.encode())


async def _asked(endpoint: Endpoint, request: Request) -> Any:
    """What a request asks, as its endpoint declares it.

    Raises:
        HTTPException: a body that is too large.
        PipelineError: one that is not as declared.
    """
    if endpoint.query:
        return from_mapping(endpoint.query, _once(request.query_params.multi_items()), "address")
    if not endpoint.body:
        return None
    kind = endpoint.body if isinstance(endpoint.body, str) else JSON
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > BODY[kind]:
            raise HTTPException(413, f"a body of more than {BODY[kind] >> 20} MB")
    if isinstance(endpoint.body, str):
        return bytes(content)
    try:
        body = json.loads(content, object_pairs_hook=_once)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"body: not readable as JSON: {error}") from error
    if not isinstance(body, dict):
        raise PipelineError("body: expected a JSON object")
    return from_mapping(endpoint.body, body, "body")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    try:
        return each_once(pairs)
    except ValueError as error:
        raise PipelineError(str(error)) from error


def _json(content: Any, status: int = 200) -> Response:
    # ASCII: file names need not be UTF-8, and JavaScript takes them as they are
    text = json.dumps(content, allow_nan=False, default=vars)
    return Response(text, status, media_type=JSON)


def without_folders(message: str) -> str:
    """A message without the folders of this machine: "/home/me/photos/a.jpg: damaged" -> "a.jpg: damaged"."""
    return re.sub(r"(?<![\w.])/(?:[^/\s:;,']+/)+", "", message)
