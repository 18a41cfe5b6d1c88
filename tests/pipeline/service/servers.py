"""Servers for tests: in this process on a thread, or as processes of their own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.testclient import TestClient

from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics


def make_server(key: str = "", say: Callable[[str], Any] = lambda _: None, **options: Any) -> Server:
    metrics = Metrics()
    options = {"run": "runs/t2i_mean", "device": "cpu", "watch": 0.0, **options}
    return Server(LocalService(ServeConfig(**options), metrics, say=say), metrics, key)


@contextmanager
def on_a_thread(server: Server) -> Iterator[tuple[uvicorn.Server, threading.Thread, str]]:
    """A server that listens; with its thread and its address."""
    running = uvicorn.Server(uvicorn.Config(server.app(), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_for(lambda: running.started)
    yield running, thread, f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(20)


class Process:
    """`scan-pipeline serve` in a folder; `stop` and `start` again on the same port."""

    def __init__(self, folder: Path, *options: str, port: int = 0, key: str = ""):
        self.folder, self.options, self.port, self.key = folder, options, port, key
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "serve", "--device", "cpu", "--port", str(self.port)]
        root = str(Path(__file__).resolve().parents[3])
        environment = {**os.environ, "PYTHONPATH": root, "SCAN_PIPELINE_KEY": self.key, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [*command, *self.options], cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"Open (http://127\.0\.0\.1:(\d+))", line):
                self.url, self.port = found[1], int(found[2])
                break
        else:
            raise AssertionError(f"ended with {self.process.wait()}")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def wait_for(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)
    return found


def search(client: TestClient, *queries: str, **asked: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json={"queries": queries, **asked})
    assert response.status_code == 200, response.text
    (answer,) = response.json()["answers"]
    return answer


def images(answer: dict[str, Any]) -> list[str]:
    return [hit["name"] for hit in answer["hits"]]
