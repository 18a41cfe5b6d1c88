"""Servers for tests: a folder over HTTP with ranges, an S3-compatible one and Milvus, which can be killed."""

import http.server
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.processes import Process


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A folder, with Range requests; `asked` takes each of them, and `fails` answers of 503 come first."""

    asked: list[str]
    fails: list[int]

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.path} {self.headers.get('Range', '')}")  # type: ignore[attr-defined]
        if self.server.fails[0] > 0:  # type: ignore[attr-defined]
            self.server.fails[0] -= 1  # type: ignore[attr-defined]
            self.send_error(503)
            return
        path, span = (
            Path(self.translate_path(self.path)),
            re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")),
        )
        if not span or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        part = content[int(span[1]) : int(span[2] or len(content)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def http_server(folder: Path, handler: type[Ranges] = Ranges) -> Iterator[Any]:
    """The folder at `server.url`."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.url, server.asked, server.fails = f"http://127.0.0.1:{server.server_port}", [], [0]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class S3:
    """moto's server in a process of its own; started again, it is empty, as it keeps everything in memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("moto's server did not start")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def upload(self, folder: Path, bucket: str) -> None:
        """Every file below a folder, under its path."""
        import boto3

        client = boto3.client(
            "s3", endpoint_url=self.environment()["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="test",
            region_name="us-east-1",
        )  # fmt: skip
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, os.path.relpath(path, folder))


class Milvus:
    """The server of the package `milvus` (one process, all of its parts) over a folder that it keeps its data in."""

    def __init__(self, folder: Path) -> None:
        import milvus

        server = milvus.MilvusServer(data_dir=str(folder))
        server.config.resolve()  # free ports, and the file of settings with them
        milvus._initialize_data_files(str(folder))
        self.folder, self.port = folder, server.listen_port
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.health = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: Process | None = None

    def start(self, **settings: str) -> None:
        """Start it, again as well, and wait until it takes requests. settings: in its environment."""
        binary = str(self.folder / "bin/milvus")
        code = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"  # so that a kill hits the server itself
        where = {
            "METRICS_PORT": str(self.health),
            "MILVUS_RUN_DIR": str(self.folder / "run"),
            "DEPLOY_MODE": "STANDALONE",
            **settings,
        }
        self.process = Process(
            ["-c", code, binary, "run", "standalone"], self.folder, LD_LIBRARY_PATH=str(self.folder / "bin"), **where
        )
        self.process.until(self._healthy)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz", timeout=10) as answer:
                return b"OK" in answer.read()
        except OSError:
            return False
