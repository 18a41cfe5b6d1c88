"""A coordinator: stores stay where they are, on the servers that own them (nodes), and their answers are merged here.

Each node runs a search over its own stores, all of its stages, and returns its best photos. Scores of one model compare, so the
merged answer is the one that a single server over all stores would give. A node that is not there is left out, and the answer
says so (`"complete": false`); so is one that has a store of a node before it. Photos of a node have a checksum of its address
before their id.
"""

import asyncio
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import asdict, replace
from typing import Any

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from configs.errors import first_line
from matcher.calibration import is_by_chance
from pipeline.errors import PipelineError
from pipeline.service import schema
from pipeline.service.config import ServeConfig
from pipeline.service.merging import fuse, is_fused, merge, parts_of
from pipeline.service.metrics import Metrics

DIGITS = 8  # of what tells nodes apart
CONNECT = 2.0  # seconds until a node that does not answer is left out
# Shares of the time that a request may take, for a node's search and for all else: one that hangs is left out in time
SEARCH, ELSE = 0.6, 0.15
VIA = "scan-pipeline-via"  # the coordinators that a request has come through
PASSED = ("content-type", "etag", "cache-control", "content-disposition", "x-content-type-options")
PASSED_ON = (400, 404, 413, 429)  # statuses of a node that its caller gets; all others leave the node out


class NodeDown(Exception):
    """A node gives no answer."""


class Nodes:
    """Answers from several servers, merged."""

    def __init__(self, config: ServeConfig, metrics: Metrics, key: str = "", say: Callable[[str], Any] = print):
        if config.run or config.features or config.weights:
            raise PipelineError("--node: searches nothing here", "leave out --run, --features and --weights")
        for url in config.node:
            if not url.startswith(("http://", "https://")):
                raise PipelineError(f"--node {url}: expected an address, such as http://10.0.0.5:7860")
        self.config, self.say, self.urls = config, say, [url.rstrip("/") for url in config.node]
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._limit(ELSE),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,
        )
        self.keys = [hashlib.sha256(url.encode()).hexdigest()[:DIGITS] for url in self.urls]  # whatever their order
        self.name, self._via = secrets.token_hex(8), ContextVar("via", default="")
        self.model, self.photos = "", dict.fromkeys(self.urls, 0)
        metrics.photos.set_function(lambda: sum(self.photos.values()))

    async def search(self, request: Request, asked: schema.SearchRequest) -> schema.SearchResponse:
        """Find photos for sentences, and photos similar to photos."""
        started, parts = time.perf_counter(), parts_of(asked)
        self._enter(request)
        if parts.offset + parts.limit > schema.DEEPEST:
            raise PipelineError(f"offset and limit: expected at most {schema.DEEPEST} together where nodes are asked")
        if not all(self.photos.values()):
            await self._indexes()  # weak matches are told by the number of all photos
        owners = [self._owner(image) for image in asked.images]
        looks = await asyncio.gather(*(self._embeddings(*owner) for owner in owners))
        common = replace(
            parts, limit=parts.offset + parts.limit, offset=0, among=asked.among or sum(self.photos.values())
        )
        bodies = []
        for node in range(len(self.urls)):
            own = tuple(image for owner, image in owners if owner == node)
            others = tuple(text for (text, _), (owner, _) in zip(looks, owners, strict=True) if owner != node)
            bodies.append(replace(common, images=own, embeddings=others + asked.embeddings))
        limit = self._limit(SEARCH)
        found = await self._all("POST", "/v1/search", [{"json": asdict(body), "timeout": limit} for body in bodies])
        given = [
            [self._answer(node, answer) for answer in one["answers"]] if isinstance(one, dict) else []
            for node, one in enumerate(found)
        ]
        there = [one for one in found if isinstance(one, dict)]
        if not there:
            raise HTTPException(503, f"no node answers: {found[0]}")
        if {model for _, model in looks} - {self.model}:
            raise HTTPException(503, "the photo's node has another model than those that answer")
        all_there = len(there) == len(found)
        impossible = {  # for all of them: of two fields, each may have a node that knows it
            name: " | ".join(dict.fromkeys(one["impossible"][name] for one in there))
            for name in (there[0]["impossible"] if all_there else ())
            if all(name in one["impossible"] for one in there)
        }
        if impossible and not asked.among:  # else another coordinator asks, whose other nodes may have such photos
            raise PipelineError(next(iter(impossible.values())))
        queries, answers = len(asked.queries), []
        for number in range(max(map(len, given))):
            same = [
                some[_place(number - queries, owners, node) + queries if number >= queries else number]
                for node, some in enumerate(given)
                if some
            ]
            answers.append(merge(same, parts))
        answers = [fuse(answers, asked)] if is_fused(asked) else answers
        milliseconds = round(1000 * (time.perf_counter() - started), 2)
        generation = "+".join(one["generation"] for one in there)
        complete = all_there and all(one["complete"] for one in there)
        calibrated = all(one["calibrated"] for one in there)
        return schema.SearchResponse(
            there[0]["run"], self.model, generation, complete, calibrated, milliseconds, tuple(answers), _stores_of(there),
            impossible,
        )  # fmt: skip

    async def index(self, request: Request, asked: None) -> schema.Index:
        """What is searched: run, nodes and their stores, number of photos."""
        self._enter(request)
        found = await self._indexes()
        there = [one for one in found if isinstance(one, dict)]
        if not there:
            raise HTTPException(503, f"no node answers: {found[0]}")
        return schema.Index(
            there[0]["run"], self.model, "+".join(one["generation"] for one in there),
            len(there) == len(found) and all(one["complete"] for one in there),
            sum(one["photos"] for one in there), sum(one["candidates"] for one in there),
            tuple(dict.fromkeys(store for one in there for store in one["stores"])),
            tuple(sorted({folder for one in there for folder in one["folders"]})),
            any(one["uploads"] for one in there),
            any(one["starter"] for one in there),
            {url: "ready" if isinstance(one, dict) else str(one) for url, one in zip(self.urls, found, strict=True)},
            _stores_of(there),
        )  # fmt: skip

    async def captions(self, request: Request, asked: bytes) -> dict[str, Any]:
        """Find captions for a photo that is sent: the best of all nodes. What each node has, as captions of the run, counts once."""
        self._enter(request)
        indexes = await self._indexes()
        having = [node for node, one in enumerate(indexes) if isinstance(one, dict) and one["uploads"]]
        if not having:
            raise PipelineError(
                "no captions for a new photo: no node that answers has any, or a detector of its features"
            )
        limit = self._limit(SEARCH)
        asking = [self._ask(node, "POST", "/v1/captions", content=asked, timeout=limit) for node in having]
        try:
            answers = [one.json() for one in await asyncio.gather(*asking)]
        except NodeDown as error:  # what it has may be better
            raise HTTPException(503, f"a node does not answer: {error}") from None
        # Those of a node without calibration have no share
        given = [caption for one in answers for caption in one["captions"]]
        captions = {caption["text"]: caption for caption in sorted(given, key=lambda caption: caption["share"])}
        times: Counter[str] = Counter()
        for one in answers:
            times |= Counter(caption["text"] for caption in one["captions"])
        best = sorted((captions[text] for text in times.elements()), key=lambda caption: -caption["score"])
        sources = {source: count for one in answers for source, count in one["sources"].items()}
        searched = sum(sources.values())
        found = [one | {"weak": is_by_chance(one["share"], searched)} for one in best[: schema.CAPTIONS]]
        return {
            "captions": found,
            "searched": searched,
            "complete": all(isinstance(one, dict) for one in indexes) and all(one["complete"] for one in answers),
            "sources": sources,
        }

    async def photo(self, request: Request, asked: None) -> dict[str, Any]:
        """What is known of a photo."""
        photo: dict[str, Any] = (await self._passed(request)).json()
        return photo | {"id": request.path_params["id"], "path": photo["path"] if self.config.local else ""}

    async def file(self, request: Request, asked: Any) -> Response:
        """What the photo's node answers, as it is."""
        passed = await self._passed(request)
        headers = {name: passed.headers[name] for name in PASSED if name in passed.headers}
        return Response(passed.content, passed.status_code, headers)

    image = original = explanation = embeddings = file

    async def watch(self, wanted: asyncio.Event) -> None:
        """Count the nodes' photos, which weak matches are told by, again and again; never returns."""
        while True:
            with suppress(HTTPException):  # a node that refuses now
                await self._indexes()
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(wanted.wait(), self.config.watch or None)
            wanted.clear()

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def __str__(self) -> str:
        return f"nodes: {', '.join(self.urls)}"

    def _limit(self, share: float) -> httpx.Timeout:
        return httpx.Timeout(share * self.config.timeout, connect=min(CONNECT, ELSE * self.config.timeout))

    def _enter(self, request: Request) -> None:
        """Remember the way of a request, for the nodes that it leads to; refuse one that has been here."""
        via = request.headers.get(VIA, "").split()
        if self.name in via:
            raise HTTPException(508, "a coordinator is a node of its own; leave its address out of --node")
        self._via.set(" ".join([*via, self.name]))

    def _owner(self, photo: str) -> tuple[int, str]:
        """The node of a photo, and its id there."""
        key, _, image = photo.partition("-")
        if key not in self.keys:
            raise schema.NotFound(f"{photo}: no such photo on the nodes")
        return self.keys.index(key), image

    async def _embeddings(self, node: int, image: str) -> tuple[str, str]:
        """Those of a photo, and the model that made them."""
        try:
            found = (await self._ask(node, "GET", f"/v1/photos/{image}/embeddings")).json()
            return str(found["embeddings"]), str(found.get("model"))
        except NodeDown as error:
            raise HTTPException(503, f"the photo's node is not there: {error}") from None

    async def _indexes(self) -> list[dict[str, Any] | NodeDown]:
        found = await self._all("GET", "/v1/index", [{} for _ in self.urls])
        for url, one in zip(self.urls, found, strict=True):
            if isinstance(one, dict):
                self.photos[url] = one["photos"]
        return found

    async def _all(self, method: str, path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any] | NodeDown]:
        """What each node answers, as JSON; or why it is left out."""

        async def ask(node: int, body: dict[str, Any]) -> dict[str, Any] | NodeDown:
            try:
                found = (await self._ask(node, method, path, **body)).json()
                is_node = {"model", "features"} <= set(found)
                return found if is_node else NodeDown(f"{self.urls[node]}: serves something else")
            except NodeDown as error:
                return error
            except (ValueError, TypeError):
                return NodeDown(f"{self.urls[node]}: serves something else")

        found = await asyncio.gather(*(ask(node, body) for node, body in enumerate(bodies)))
        models = [one["model"] for one in found if isinstance(one, dict)]
        if models and self.model not in models:
            self.model = models[0]
        return self._comparable(found)

    def _comparable(self, found: list[dict[str, Any] | NodeDown]) -> list[dict[str, Any] | NodeDown]:
        """The answers without those whose scores do not compare, or whose photos another node has given."""
        given: set[str] = set()
        for node, one in enumerate(found):
            if isinstance(one, NodeDown):
                continue
            if one["model"] != self.model:
                found[node] = NodeDown("has another model than the others: scores do not compare")
            elif given & set(one["features"]):
                found[node] = NodeDown(
                    "has a store with the first photos of one that a node before it has: photos would count twice"
                )
            else:
                given.update(one["features"])
        return found

    async def _ask(self, node: int, method: str, path: str, **rest: Any) -> httpx.Response:
        try:
            headers = {VIA: self._via.get() or self.name, **rest.pop("headers", {})}
            response = await self.client.request(method, self.urls[node] + path, headers=headers, **rest)
        except httpx.HTTPError as error:
            raise NodeDown(f"{self.urls[node]}: {first_line(error)}") from error
        if response.status_code in PASSED_ON and response.headers.get("content-type") == schema.JSON:
            raise HTTPException(response.status_code, response.json()["error"])
        if response.status_code >= 400:
            raise NodeDown(f"{self.urls[node]}: answers {response.status_code}: {response.text[:200]}")
        return response

    async def _passed(self, request: Request) -> httpx.Response:
        """The answer of the node that has the photo of a request."""
        self._enter(request)
        node, image = self._owner(request.path_params["id"])
        path = request.url.path.replace(request.path_params["id"], image)
        known = {name: request.headers[name] for name in ("if-none-match",) if name in request.headers}
        try:
            return await self._ask(node, "GET", path, params=dict(request.query_params), headers=known)
        except NodeDown as error:
            raise HTTPException(503, f"the photo's node is not there: {error}") from None

    def _answer(self, node: int, answer: dict[str, Any]) -> schema.SearchAnswer:
        """What a node answered, with its key before each id, and paths only for clients on this machine."""
        more = {} if self.config.local else {"path": ""}
        hits = tuple(
            schema.FoundPhoto(**hit | {"id": f"{self.keys[node]}-{hit['id']}"} | more) for hit in answer["hits"]
        )
        image = f"{self.keys[node]}-{answer['image']}" if answer["image"] else ""
        return schema.SearchAnswer(**answer | {"hits": hits, "image": image})


def _stores_of(answers: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The stores of some nodes, as a node tells them: a coordinator that asks this one may have one of them as well."""
    return tuple(store for answer in answers for store in answer["features"])


def _place(number: int, owners: list[tuple[int, str]], node: int) -> int:
    """Where a node answers the photo of a number: after its own photos come those of others, sent as embeddings."""
    order = sorted(range(len(owners)), key=lambda photo: owners[photo][0] != node)
    return order.index(number) if number < len(owners) else number
