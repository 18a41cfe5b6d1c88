"""What the service is asked and what it answers: these dataclasses check every request and are its OpenAPI document."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pipeline.answer import Box
from pipeline.errors import PipelineError
from pipeline.fields import fields_with_types, knob, section

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
LIMITS = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
LIMITS |= {"longest": "maxLength", "help": "description"}
JSON, FILE = "application/json", "application/octet-stream"
LARGEST_SIDE = 1600  # pixels
DEEPEST = 10_000  # results that one answer holds
CAPTIONS = 10  # of an answer


class NotFound(PipelineError):
    """No such photo."""


@dataclass(frozen=True)
class Filter:
    """Which photos to search among."""

    store: str = knob("", "Store, as /v1/index names it.", longest=4096)
    folder: str = knob("", "Folder of the photos' names, with its subfolders.", longest=4096)
    since: str = knob("", "First day, such as 2024-05-31.", longest=10)
    until: str = knob("", "Last day.", longest=10)
    object: str = knob("", "Class that a region of the photo shows, such as dog.", longest=200)


@dataclass(frozen=True)
class SearchRequest:
    """One answer for each sentence and each photo, in this order. Neither: the photos themselves, newest first."""

    queries: tuple[str, ...] = knob((), "Sentences to find photos for.", most=64, longest=500)
    images: tuple[str, ...] = knob((), "Ids of photos to find similar ones for.", most=16, longest=64)
    combine: bool = knob(False, "One answer for all of them together, by reciprocal rank fusion of their best 1,000.")
    limit: int = knob(10, "Photos of an answer.", min=1, max=DEEPEST)
    offset: int = knob(0, "Photos to leave out before them.", min=0)
    filter: Filter = section(Filter)
    min_score: float | None = knob(None, "Leave out photos that score less.")
    candidates: int = knob(
        0, "Photos that the index finds for exact scoring; 0: as many as its build found best.", min=0
    )
    exact: bool = knob(False, "Score every photo exactly, without the index.")
    explain: bool = knob(
        False, "With the regions that made each score for a sentence; not of similar photos, nor of a combined answer."
    )
    embeddings: tuple[str, ...] = knob(
        (), "Photos of other nodes to find similar ones for: region embeddings, as a node gives them.", most=16
    )
    among: int = knob(0, "Photos of all nodes, that weak matches are told by; 0: this one's.", min=0)


@dataclass(frozen=True)
class FileQuery:
    """Which file of a photo is sent."""

    version: str = knob("", "As it was found; refused where the photo's file is another one by now.")


@dataclass(frozen=True)
class ImageQuery(FileQuery):
    """How large a photo is sent."""

    size: int = knob(320, "Pixels of its longest side, at most.", min=16, max=LARGEST_SIDE)


@dataclass(frozen=True)
class ExplanationQuery(FileQuery):
    """What a photo is explained with."""

    query: str = knob("", "The sentence.", longest=500)


@dataclass(frozen=True)
class Photo:
    """One photo of the stores."""

    id: str
    name: str  # in its store
    store: str
    date: str  # a day; "" where it is not known
    time: float  # seconds since 1970; 0 where it is not known
    width: int  # pixels; 0 where the store does not know it
    height: int
    path: str  # on the machine, for clients on it; "" for others
    version: str  # of its file: with it, only this file is shown or explained
    gone: bool  # there is no file of it: it moved, or its store never had one; of one behind a URL nobody knows


@dataclass(frozen=True)
class FoundPhoto(Photo):
    """A photo that was found."""

    rank: int = 0  # 1 is best; 0 in a list that nothing was asked for
    score: float = 0.0
    weak: bool = False  # no better than a sentence about another photo scores
    changed: bool | None = False  # its file is another one than was searched; null: not compared yet, after 100 others
    boxes: tuple[Box, ...] = ()  # pixels; as imported where its width is 0: fractions, or pixels where beyond 1


@dataclass(frozen=True)
class SearchAnswer:
    """What was found for a sentence or a photo."""

    query: str
    image: str
    searched: int  # photos that pass the filter
    candidates: int  # of them, those scored exactly
    unknown: dict[str, str]  # words that the run never learned, each with the nearest that it did, or ""
    hits: tuple[FoundPhoto, ...]


@dataclass(frozen=True)
class SearchResponse:
    """The answers, and what gave them."""

    run: str
    model: str  # sha256 of its weights
    generation: str  # changes with the photos and the model
    complete: bool  # false: photos are missing, as a node was not there, or a store is not extracted to its end
    calibrated: bool  # false: weak matches are not marked, or not those of every node
    milliseconds: float
    answers: tuple[SearchAnswer, ...]
    features: tuple[str, ...] = ()  # of a node: as of its index
    # of a node: why none of its photos can pass the filter, by field of the filter
    impossible: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """What is searched."""

    run: str
    model: str
    generation: str
    complete: bool
    photos: int
    candidates: int  # that a query compares exactly, at least; 0: all photos
    stores: tuple[str, ...]
    folders: tuple[str, ...]  # of the photos' names; the first 500
    uploads: bool  # whether captions can be found for a photo that is sent
    starter: bool  # the starter made the features: windows at fixed places, not objects
    nodes: dict[str, str]  # of a coordinator: "ready", or why a node is left out
    features: tuple[str, ...] = ()  # of a node: checksum of each store's first photos, so that no store counts twice


@dataclass(frozen=True)
class Caption:
    """A sentence for a photo."""

    text: str
    score: float
    weak: bool  # no better than a caption of another photo scores
    share: float  # of unrelated pairs that score as high, which tells whether it is weak; 0 where the run is not calibrated


@dataclass(frozen=True)
class Captions:
    """The best captions for a photo."""

    captions: tuple[Caption, ...]
    searched: int  # captions
    sources: dict[str, int]  # checksum of captions files -> captions: nodes may have the same
    complete: bool  # false: captions are missing, as a node was not there


@dataclass(frozen=True)
class Error:
    """Why there is no answer."""

    error: str


def json_schema(hint: Any, about: Mapping[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of a type.

    Args:
        hint: of a field.
        about: the field's metadata, as `pipeline.fields` keeps it.
        parts: takes the schema of every dataclass, by name.
    """
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        if name not in parts:
            parts[name] = {}  # one that holds itself ends here
            properties = {
                field.name: json_schema(kind, field.metadata | _default(field), parts)
                for field, kind in fields_with_types(typing.cast(type, hint))
            }
            parts[name] = {"type": "object", "description": hint.__doc__, "properties": properties}
        return {"$ref": f"#/components/schemas/{name}"}
    limits = {LIMITS[name]: value for name, value in about.items() if name in LIMITS}
    default = {"default": about["default"]} if "default" in about else {}
    kinds = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        (kind,) = set(kinds) - {types.NoneType}
        return {"type": [TYPES[kind], "null"], **limits, **default}
    if typing.get_origin(hint) is tuple:
        words = {"description": limits.pop("description")} if "description" in limits else {}
        most = {"maxItems": about["most"]} if "most" in about else {}
        return {"type": "array", "items": json_schema(kinds[0], {}, parts) | limits, **most, **words, **default}
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": json_schema(kinds[1], {}, parts), **limits, **default}
    return {"type": TYPES[hint], **limits, **default}


def _default(field: dataclasses.Field) -> dict[str, Any]:
    return {} if field.default is dataclasses.MISSING or not field.metadata else {"default": field.default}


@dataclass(frozen=True)
class Endpoint:
    """One route: how it is asked, and what it answers."""

    name: str  # of the method that answers: async (request, asked) -> dataclass, mapping or response
    path: str
    summary: str
    query: type | None = None  # dataclass of what is asked in the address
    body: type | str = ""  # dataclass of a JSON body, or the media type of another
    answer: type | str = JSON  # dataclass, or media type
    is_open: bool = False  # needs no key

    @property
    def method(self) -> str:
        """Of HTTP."""
        return "POST" if self.body else "GET"


PHOTO = "/v1/photos/{id}"
OF_SERVICE = (
    Endpoint("search", "/v1/search", "Find photos.", body=SearchRequest, answer=SearchResponse),
    Endpoint("captions", "/v1/captions", "Find captions for a photo that is sent.", body=FILE, answer=Captions),
    Endpoint("index", "/v1/index", "What is searched.", answer=Index),
    Endpoint("photo", PHOTO, "What is known of a photo.", answer=Photo),
    Endpoint("image", f"{PHOTO}/image", "A photo as JPEG.", query=ImageQuery, answer="image/jpeg"),
    Endpoint("original", f"{PHOTO}/original", "A photo's file.", query=FileQuery, answer=FILE),
    Endpoint("explanation", f"{PHOTO}/explanation", "Where each word of a sentence looks.", query=ExplanationQuery),
    Endpoint("embeddings", f"{PHOTO}/embeddings", "A photo's region embeddings, to search other nodes with."),
)
OF_SERVER = (
    Endpoint("health", "/health", "Whether the process is alive.", is_open=True),
    Endpoint("ready", "/ready", "Whether requests are answered.", is_open=True),
    Endpoint("measured", "/metrics", "Counters, for Prometheus.", answer="text/plain"),
    Endpoint("document", "/openapi.json", "This interface, as OpenAPI 3.1.", is_open=True),
)


def openapi() -> dict[str, Any]:
    """The OpenAPI document of all routes."""
    parts: dict[str, Any] = {}
    refused = {"description": "refused", "content": _content(Error, parts)}
    paths: dict[str, Any] = {}
    for endpoint in OF_SERVICE + OF_SERVER:
        names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
        asked = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names] + [
            {"name": field.name, "in": "query", "schema": json_schema(kind, field.metadata | _default(field), parts)}
            for field, kind in (fields_with_types(endpoint.query) if endpoint.query else ())
        ]
        answered = {"description": "answered", "content": _content(endpoint.answer, parts)}
        operation = {
            "summary": endpoint.summary,
            "operationId": endpoint.name,
            "parameters": asked,
            "responses": {"200": answered, "default": refused},
            "security": [] if endpoint.is_open else [{"key": []}],
        }
        if endpoint.body:
            operation["requestBody"] = {"required": True, "content": _content(endpoint.body, parts)}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "scan-pipeline", "version": metadata.version("scan-pipeline")},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _content(kind: type | str, parts: dict[str, Any]) -> dict[str, Any]:
    return {kind: {}} if isinstance(kind, str) else {JSON: {"schema": json_schema(kind, {}, parts)}}
