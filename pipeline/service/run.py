"""Start a server, and stop it without losing a request."""

import os
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import torch

from pipeline.errors import PipelineError
from pipeline.service.config import KEY, ServeConfig

KEEP_ALIVE = 75  # seconds that an idle connection stays, longer than most proxies keep theirs


def serve(config: ServeConfig, *, page: bool = False, say: Callable[[str], Any] = print) -> None:
    """Load everything and answer until stopped; then requests that have begun are answered to their end.

    `page`: whether to serve the page for browsers too.

    Raises:
        PipelineError: no run, no store that fits it, a port in use, no key where one is needed, or the extra is not
            installed.
    """
    try:
        import uvicorn

        from pipeline.pages.app import page_of
        from pipeline.service.http import Server, Service
        from pipeline.service.local import LocalService
        from pipeline.service.metrics import Metrics
        from pipeline.service.nodes import Nodes
    except ImportError as error:
        raise PipelineError(f"a server needs more packages ({error})", "pip install 'scan-pipeline[app]'") from error
    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()):
        raise PipelineError(f"{KEY}: has characters that no HTTP header carries", "expected a key of ASCII characters")
    if not config.local and not key:
        if not page:
            raise PipelineError(f"--host {config.host}: without a key anyone there could see the photos", f"set {KEY}")
        key = secrets.token_urlsafe(16)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // 2))
    with listen(config.host, config.port) as listener:
        metrics = Metrics()
        service: Service = Nodes(config, metrics, key, say) if config.node else LocalService(config, metrics, say)
        server = Server(service, metrics, key, page_of(service) if page else None)
        signal.signal(signal.SIGHUP, lambda *_: server.reload.set())
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        login = f"/?key={quote(key, safe='')}" if page and key else ""
        say(f"{service}. Open {address}{login}")
        stop = int(config.timeout) + 5  # seconds: a client that stalls must not hold the process for ever
        settings = uvicorn.Config(
            server.app(), log_level="warning", timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=stop
        )
        uvicorn.Server(settings).run(sockets=[listener])


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
    except UnicodeError as error:
        raise PipelineError(f"--host {host}: no name or address of a machine", "choose another --host") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise PipelineError(f"--host {host} --port {port}: {reason}", "choose another --port or --host") from error
    return listener
