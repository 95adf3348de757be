"""A hub on this machine: the requests that an upload makes, answered as the Hugging Face hub does.

Repositories, LFS objects and commits are kept in memory. Not there: Xet, pull requests, branches other than main.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class Hub:
    """repositories: by kind and id. large: endings of the names that are sent as LFS objects. failures: pattern of a
    request -> statuses to answer it with, one each time. requests: `METHOD path` of all, in order. sent: bytes of LFS
    objects that arrived."""

    address: str = ""
    large: tuple[str, ...] = (".safetensors", ".parquet")
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    sent: int = 0

    def save(self, kind: str, repo_id: str, folder: Path) -> Path:
        """A repository's files as a download has them."""
        for name, data in self.repositories[kind, repo_id].files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        asked = f"{self.command} {path}"
        self.hub.requests.append(asked)
        for pattern, statuses in self.hub.failures.items():
            if re.search(pattern, asked) and statuses:
                return self._answer(statuses.pop(0), {"error": "made to fail"})
        needs_token = path not in ("/", "/api/validate-yaml") and not path.startswith("/objects/")
        if needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        for pattern, answer in _ANSWERS.items():
            found = re.fullmatch(pattern, asked)
            if found is not None:
                return self._answer(*answer(self.hub, body, **found.groupdict()))
        return self._answer(404, {"error": f"the stand-in does not know {asked}"})

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _create(hub: Hub, body: bytes) -> tuple[int, Any]:
    asked = json.loads(body)
    kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
    address = {"url": f"{hub.address}/{'datasets/' if kind == 'dataset' else ''}{name}"}
    if (kind, name) in hub.repositories:
        return 409, address
    hub.repositories[kind, name] = Repository(asked["visibility"] == "private")
    return 200, address


def _info(hub: Hub, body: bytes, kind: str, repo: str) -> tuple[int, Any]:
    found = hub.repositories.get((kind, repo))
    if found is None:
        return 404, {"error": "Repository not found"}
    return 200, {"id": repo, "sha": f"{found.commits:040x}", "private": found.private, "siblings": []}


def _tree(hub: Hub, body: bytes, kind: str, repo: str) -> tuple[int, Any]:
    files = hub.repositories[kind, repo].files
    return 200, [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]


def _preupload(hub: Hub, body: bytes, kind: str, repo: str) -> tuple[int, Any]:
    there = hub.repositories[kind, repo].files
    answers = []
    for file in json.loads(body)["files"]:
        large, data = file["path"].endswith(hub.large), there.get(file["path"])
        oid = None if data is None else hashlib.sha256(data).hexdigest() if large else _oid(data)
        answers.append(
            {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
        )
    return 200, {"files": answers}


def _batch(hub: Hub, body: bytes, repo: str) -> tuple[int, Any]:
    objects = json.loads(body)["objects"]
    for one in objects:
        if one["oid"] not in hub.objects:
            one["actions"] = {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}
    return 200, {"transfer": "basic", "objects": objects}


def _object(hub: Hub, body: bytes, oid: str) -> tuple[int, Any]:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "not these bytes"}
    hub.objects[oid] = body
    hub.sent += len(body)
    return 200, {}


def _commit(hub: Hub, body: bytes, kind: str, repo: str) -> tuple[int, Any]:
    found = hub.repositories[kind, repo]
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "file":
            found.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            found.files[value["path"]] = hub.objects[value["oid"]]
        elif line["key"] == "deletedFile":
            del found.files[value["path"]]
    found.commits += 1
    oid = f"{found.commits:040x}"
    return 200, {"commitUrl": f"{hub.address}/{repo}/commit/{oid}", "commitOid": oid}


def _oid(data: bytes) -> str:
    """Git's, of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
_ANSWERS = {
    "HEAD /": lambda hub, body: (200, {}),
    "POST /api/repos/create": _create,
    "POST /api/validate-yaml": lambda hub, body: (200, {"errors": [], "warnings": []}),
    rf"GET {_REPO}(/revision/main)?": _info,
    rf"GET {_REPO}/tree/.*": _tree,
    rf"POST {_REPO}/preupload/main": _preupload,
    r"POST /(datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": _batch,
    "PUT /objects/(?P<oid>[0-9a-f]+)": _object,
    rf"POST {_REPO}/commit/main": _commit,
}


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """A hub, and the hub's library set to use it, with a token that it accepts."""
    from huggingface_hub import constants

    from fusionx.contract.models.hub import is_offline

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    is_offline.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.address)
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setenv("HF_TOKEN", TOKEN)
            yield hub
    finally:
        is_offline.cache_clear()
        server.shutdown()
        server.server_close()
        thread.join()
