"""A real server for the tests of the first stage."""

from collections.abc import Iterator

import pytest

from tests.served import Milvus


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Milvus]:
    pytest.importorskip("pymilvus", reason="the client of milvus is not installed: pip install 'scan-pipeline[milvus]'")
    pytest.importorskip("milvus", reason="no server to test with: pip install milvus==2.3.5")
    server = Milvus(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.kill()
