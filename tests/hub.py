"""A server that speaks the hub's calls which push and fetch use: repositories, uploads (regular and LFS), commits, downloads."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_secret"


class Hub(http.server.ThreadingHTTPServer):
    """Everything in memory. `repositories`: "models/o/n" -> commits, newest last: (id, files)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.split("?")[0])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and path != "/api/validate-yaml":
            self.answer(401, {"error": "Invalid username or password."})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            key = f"{asked.get('type') or 'model'}s/{owner}/{asked['name']}"
            is_new = key not in self.server.repositories
            self.server.repositories.setdefault(key, [])
            if is_new and (asked.get("private") or asked.get("visibility") == "private"):
                self.server.private.add(key)
            self.answer(200 if is_new else 409, {"url": f"{self.server.url}/{key.removeprefix('models/')}"})
        elif found := re.fullmatch(r"/api/((?:model|dataset)s/[^/]+/[^/]+)/preupload/.+", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/((?:model|dataset)s/[^/]+/[^/]+)/commit/.+", path):
            self.commit(found[1], body)
        else:
            self.answer(404, {"error": path})

    def commit(self, key: str, body: bytes) -> None:
        commits = self.server.repositories[key]
        files = dict(commits[-1][1]) if commits else {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = hashlib.sha1(body + str(len(commits)).encode()).hexdigest()
        commits.append((commit, files))
        self.answer(
            200,
            {
                "commitUrl": f"{self.server.url}/{key.removeprefix('models/')}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            },
        )

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.answer(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = unquote(self.path.split("?")[0])
        if path == "/":
            return self.answer(200, {})
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        key = f"{'datasets' if found and found[1] else 'models'}/{found[2] if found else ''}"
        allowed = key not in self.server.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not found or key not in self.server.repositories or not allowed:
            return self.answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        commits = dict(self.server.repositories[key])
        commit = found[3] if found[3] in commits else list(commits)[-1] if found[3] == "main" else ""
        if not commit:
            return self.answer(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
        content = commits[commit].get(found[4])
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self.answer(404, {"error": "no such file"}, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(200, content, headers)

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass
