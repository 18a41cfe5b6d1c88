"""What the service refuses, to whom, and in which words."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pipeline.errors import PipelineError
from pipeline.pages.app import page_of
from pipeline.service import http
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server, without_folders
from pipeline.service.local import Generation, LocalService
from pipeline.service.run import listen, serve
from pipeline.service.schema import SearchRequest
from tests.pipeline.service.servers import make_server
from tests.world import scan


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"queries": ["dog"], "limit": 0}', "body: limit: 0: expected at least 1"),
        ('{"queries": ["dog"], "limit": "many"}', "body: limit: many: expected a whole number"),
        ('{"queries": "dog"}', "body: queries: dog: expected a list, such as [a, b]"),
        ('{"query": ["dog"]}', "body: unknown key query; did you mean queries?"),
        ('{"filter": {"foldr": ""}}', "body: unknown key filter.foldr; did you mean filter.folder?"),
        ('{"queries": ["!!!"]}', "'!!!': no word in it"),
        (r'{"queries": ["\ud800 dog"]}', r"'\ud800 dog': not readable as text; ask in UTF-8"),
        ('{"min_score": NaN}', "body: min_score: nan: expected a finite number"),
        ('{"embeddings": ["AAAA"]}', "embeddings: expected base64 of float32, (K, 16)"),
        ("[]", "body: expected a JSON object"),
        ("{", "body: not readable as JSON"),
        ("[" * 100_000, "body: not readable as JSON"),
        (json.dumps({"queries": ["dog"] * 65}), "expected at most 64 of them"),
        (json.dumps({"queries": ["a" * 501]}), "expected at most 500 characters"),
    ],
)
def test_mistakes_are_told_in_one_line(client: TestClient, body: str, error: str) -> None:
    response = client.post("/v1/search", content=body)
    assert response.status_code == 400
    assert error in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/photos/../../etc/passwd", 404),
        ("/v1/photos/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("/v1/photos/0", 404),
        ("/v1/photos/x/original", 404),
        ("/v1/photos/ffffffffffffffff/image", 404),
        ("/v1/photos/-fffffffffffffff/image", 404),
        ("/v1/photos/0/image?size=many", 400),
        ("/v1/photos/0/image?size=\u00b2", 400),
        ("/v1/photos/0/explanation?query=" + "a" * 501, 400),
        ("/v1/search", 405),
        ("/nothing", 404),
    ],
)
def test_only_what_is_meant_is_answered(client: TestClient, path: str, status: int) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert "root:" not in response.text


def test_messages_name_no_folders() -> None:
    assert without_folders("/home/me/my.photos/a.jpg: damaged; see /tmp/x/run") == "a.jpg: damaged; see run"


def test_a_refusal_names_no_folders(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(row: int) -> str:
        raise PipelineError("/home/me/photos/a.jpg: gone")

    monkeypatch.setattr(generation.library, "place", gone)
    refused = client.get(f"/v1/photos/{generation.library.id(0)}/original")
    assert (refused.status_code, refused.json()) == (400, {"error": "a.jpg: gone"})


def test_other_names_for_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_a_key_is_needed_where_there_is_one(inside: Path) -> None:
    client = TestClient(make_server(key="secret").app())
    for path in ("/v1/index", "/metrics"):
        refused = client.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers={"Authorization": "Bearer other"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get(path, headers={"Cookie": f"{http.COOKIE}=secret"}).status_code == 200
    for path in ("/health", "/ready", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_a_link_carries_the_key_into_a_browser(inside: Path) -> None:
    server = make_server(key="secret")
    server.page = page_of(server.service)
    for key, status in (("secret", 200), ("other", 401)):
        client = TestClient(server.app())
        assert client.get("/").status_code == 401
        response = client.get("/", params={"key": key})  # follows to / with a cookie
        assert response.status_code == status
        assert "key=" not in str(response.url)
        assert client.get("/v1/index").status_code == status


def test_bodies_have_a_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY", {"application/json": 1 << 20, "application/octet-stream": 1 << 20})
    for path in ("/v1/search", "/v1/captions"):
        refused = client.post(path, content=b" " * ((1 << 20) + 1))
        assert refused.status_code == 413
        assert refused.json() == {"error": "a body of more than 1 MB"}


def test_faults_of_the_server_are_told_apart(
    client: TestClient, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation.library, "photo", lambda row, local: {}["bug"])
    assert client.get(f"/v1/photos/{generation.library.id(0)}").status_code == 500


def test_a_port_in_use_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for command in ("app", "serve"):
            said = scan(command, "--port", str(port))
            assert said.exit_code == 2
            assert f"--host 127.0.0.1 --port {port}: Address already in use" in said.stderr
            assert "Open http" not in said.output
    with pytest.raises(PipelineError, match="--port 99999: expected 0 to 65535"):
        listen("127.0.0.1", 99999)
    for host in ("a..b", "\x80"):
        with pytest.raises(PipelineError, match=r"--host .*: no name or address of a machine"):
            listen(host, 0)


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_address_that_is_printed_can_be_opened(
    inside: Path, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    monkeypatch.delenv("SCAN_PIPELINE_KEY", raising=False)
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    monkeypatch.setattr("pipeline.service.run.listen", lambda host, port: listen("127.0.0.1", port))  # no IPv6 needed
    said: list[str] = []
    serve(ServeConfig(run="runs/t2i_mean", host=host, port=0, device="cpu"), say=said.append)
    assert re.search(rf"\. Open {re.escape(shown)}\d+$", said[-1])


def test_the_link_that_is_printed_carries_any_key(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAN_PIPELINE_KEY", "a+b&c#d%2F==")  # as of openssl rand -base64
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: None)
    said: list[str] = []
    serve(ServeConfig(run="runs/t2i_mean", port=0, device="cpu"), page=True, say=said.append)
    link = urlsplit(said[-1].rpartition(" ")[2])
    assert parse_qs(link.query) == {"key": ["a+b&c#d%2F=="]}


def test_a_key_that_no_header_carries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAN_PIPELINE_KEY", "clé")
    with pytest.raises(PipelineError, match="SCAN_PIPELINE_KEY: has characters that no HTTP header carries"):
        serve(ServeConfig(port=0))


def test_without_photos_or_a_key_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCAN_PIPELINE_KEY", raising=False)
    said = scan("app", "--port", "0")
    assert said.exit_code == 2
    assert "no feature store found" in said.stderr
    said = scan("serve", "--host", "0.0.0.0", "--port", "0")
    assert said.exit_code == 2
    assert "without a key anyone there could see the photos; set SCAN_PIPELINE_KEY" in said.stderr


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["a dog", "2024-05-31"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
BODY = st.dictionaries(st.sampled_from(sorted(SearchRequest.__dataclass_fields__)), JSON, max_size=4)
QUERY = st.dictionaries(st.sampled_from(["size", "query", "key", "x"]), st.text(max_size=9) | st.just("a dog"))
PATHS = [
    "/",
    "/v1/index",
    "/v1/photos/{}",
    "/v1/photos/{}/image",
    "/v1/photos/{}/original",
    "/v1/photos/{}/explanation",
]


@pytest.fixture
def own_server(inside: Path, small_weights: Path) -> Server:
    return make_server(weights=str(small_weights))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=JSON | BODY | st.just({"queries": ["a dog"]}),
    path=st.sampled_from(PATHS),
    name=st.text(max_size=16) | st.just(""),
    query=QUERY,
    content=st.binary(max_size=64),
)
def test_any_request_is_answered_or_refused(
    own_server: Server, body: object, path: str, name: str, query: dict[str, str], content: bytes
) -> None:
    """Never by a fault of the server, and a mistake in one line."""
    assert isinstance(own_server.service, LocalService)
    place = quote(name or own_server.service.generation.library.id(0), safe="")
    client = TestClient(own_server.app())
    for response in (
        client.post("/v1/search", content=json.dumps(body)),
        client.post("/v1/captions", content=content),
        client.get(path.format(place), params=query),
    ):
        assert response.status_code in (200, 304, 307, 400, 404)
        if response.status_code == 400:
            assert "\n" not in response.json()["error"]


def test_a_mistake_with_a_line_break_is_told_in_one_line(client: TestClient) -> None:
    response = client.post("/v1/search", content=b'{"\\n": null, "queries": ["a dog"]}')
    assert response.status_code == 400
    assert response.json()["error"].startswith("body: unknown key ;")


def test_a_value_that_stands_twice_is_not_lost(client: TestClient, generation: Generation) -> None:
    photo = generation.library.id(0)
    for response in (
        client.get(f"/v1/photos/{photo}/explanation?query=a%20dog&query=a%20tree"),
        client.get(f"/v1/photos/{photo}/image?size=64&size=640"),
        client.post("/v1/search", content=b'{"queries": ["a dog"], "queries": ["a tree"]}'),
        client.post("/v1/search", content=b'{"queries": ["a dog"], "filter": {"store": "a", "store": "b"}}'),
    ):
        assert response.status_code == 400
        assert response.json()["error"].startswith("duplicate key ")
