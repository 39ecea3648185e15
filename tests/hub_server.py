"""The Hugging Face hub on this machine, as far as its client asks for a repository's files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c" * 40


@dataclass(slots=True)
class Hub:
    """Repositories by their id; what is asked for is noted."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    """Whose files ask for a licence to be accepted."""
    lost: set[str] = field(default_factory=set)
    """Files that are listed and not given."""
    served: list[str] = field(default_factory=list)
    """Names of files, in the order of their transfer."""


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client asks while this lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            is_listing = path.startswith("api/models/")
            parts = path.removeprefix("api/models/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            folder = hub.repositories.get(name)
            if folder is None:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif is_listing:
                self.list(name, folder, tree="tree" in rest)
            elif rest[-1] in hub.lost:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif name in hub.gated:
                self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            else:
                self.send_file(folder / rest[-1])

        def list(self, name: str, folder: Path, *, tree: bool) -> None:
            files = [(path.name, path.stat().st_size, self.digest(path)) for path in sorted(folder.iterdir())]
            answer: Any = [{"type": "file", "path": path, "size": size, "oid": oid} for path, size, oid in files]
            if not tree:
                config = folder / "config.json"
                siblings = [{"rfilename": path, "size": size, "blobId": oid} for path, size, oid in files]
                answer = {"id": name, "sha": COMMIT, "siblings": siblings}
                answer["config"] = json.loads(config.read_text()) if config.exists() else {}
            self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def send_file(self, path: Path) -> None:
            content = path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
            if self.command == "GET":
                hub.served.append(path.name)
            headers = {"ETag": f'"{self.digest(path)}"', "X-Repo-Commit": COMMIT}
            self.answer(206 if start else 200, content[start:], headers)

        def digest(self, path: Path) -> str:
            return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + template, raising=False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
