"""A server over the world."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.service.http import Server
from pipeline.service.local import Generation, LocalService
from tests.pipeline.service.servers import make_server


@pytest.fixture(scope="module")
def server(world: Path, small_weights: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        yield make_server(weights=str(small_weights))


@pytest.fixture
def generation(server: Server) -> Generation:
    assert isinstance(server.service, LocalService)
    return server.service.generation


@pytest.fixture
def client(server: Server, inside: Path) -> TestClient:
    return TestClient(server.app())
