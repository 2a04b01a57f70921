"""A model hub on this machine: whose token, repositories, Git LFS, commits; what it was asked."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from support.local_server import LocalServer

TOKEN = "hf_aVerySecretToken"
PART = 1 << 20
"""Bytes of one part; what is larger is sent in several."""


@dataclass
class Repo:
    """Files by path: their bytes, and whether LFS keeps them."""

    private: bool
    commits: list[str] = field(default_factory=lambda: [f"{0:040x}"])
    files: dict[str, tuple[bytes, bool]] = field(
        default_factory=lambda: {".gitattributes": (b"*.safetensors filter=lfs", False)}
    )


class HubServer(LocalServer):
    """role: of the token. orgs: role by name. refuse: the beginning of a request -> the status and
    words it is answered with; answers: -> what it is answered with, as it is; onward: -> the host
    that it is sent on to. cut: objects whose transfer is cut off in the middle. keys: the tokens
    that were seen, as headers hold them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.role = "write"
        self.orgs: dict[str, str] = {}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.answers: dict[str, str] = {}
        self.onward: dict[str, str] = {}
        self.keys: set[str | None] = set()
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.sent: list[str] = []
        self.strangers: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        request = f"{self.command} {path}"
        self.server.asked.append(request)
        oid = path.split("/")[2] if path.startswith("/lfs/") else ""
        size = int(self.headers["Content-Length"] or 0)
        if oid in self.server.cut and self.command == "PUT":
            self.rfile.read(size // 2)
            self.close_connection = True
            return None
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(size)
        for beginning, (status, words) in self.server.refuse.items():
            if request.startswith(beginning):
                return self._answer({"error": words}, status)
        for beginning, text in self.server.answers.items():
            if request.startswith(beginning):
                return self._send(text.encode(), 200)
        for beginning, host in self.server.onward.items():
            if request.startswith(beginning):
                return self._answer({}, 307, Location=f"{host}{self.path}")
        key = self.headers["Authorization"]
        self.server.keys.add(key)
        if oid and self.command == "PUT":
            if key is not None:
                self.server.strangers.append(request)  # storage is another host's: no token there
            return self._put(oid, path, body)
        if key != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
            return self._answer({"error": f"Invalid {key}"}, 401)
        return self._ask(request, body)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, **headers)

    def _send(self, data: bytes, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, told in headers.items():
            self.send_header(name.replace("_", "-"), told)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _ask(self, request: str, body: bytes) -> None:
        server = self.server
        words = request.split("/")
        name = "/".join(words[3:5])
        if request == "GET /api/whoami-v2":
            orgs = [{"name": org, "roleInOrg": role} for org, role in server.orgs.items()]
            auth = {"accessToken": {"role": server.role}}
            self._answer({"name": "me", "orgs": orgs, "auth": auth})
        elif request == "POST /api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            if name in server.repos:
                return self._answer({"error": "You already created this model repo"}, 409)
            server.repos[name] = Repo(told["visibility"] == "private")
            self._answer({"url": f"http://{server.host}/{name}"})
        elif request == "POST /api/validate-yaml":
            self._answer({"warnings": [], "errors": []})
        elif request.endswith(".git/info/lfs/objects/batch"):
            self._answer({"objects": [self._action(each) for each in json.loads(body)["objects"]]})
        elif request.startswith("POST /lfs/"):
            parts = server.parts[words[2]]
            self._store(words[2], b"".join(parts[number] for number in sorted(parts)))
        elif name not in server.repos:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/preupload/" in request:
            files = [
                {"path": each["path"], "uploadMode": mode(each["path"]), "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in request:
            self._commit(name, body)
        elif "/tree/" in request:
            self._answer([*map(listed, server.repos[name].files.items())])
        else:
            repo = server.repos[name]
            self._answer({"id": name, "private": repo.private, "sha": repo.commits[-1]})

    def _action(self, each: dict[str, Any]) -> dict[str, Any]:
        if each["oid"] in self.server.objects:
            return each
        address = f"http://{self.server.host}/lfs/{each['oid']}"
        header = {}
        if each["size"] > PART:
            numbers = range(1, -(-each["size"] // PART) + 1)
            header = {str(number): f"{address}/{number}" for number in numbers}
            header["chunk_size"] = str(PART)
        return each | {"actions": {"upload": {"href": address, "header": header}}}

    def _put(self, oid: str, path: str, body: bytes) -> None:
        self.server.sent.append(oid)
        number = path.split("/")[3:]
        if number:
            self.server.parts.setdefault(oid, {})[int(number[0])] = body
            return self._answer({}, ETag=f'"{number[0]}"')
        return self._store(oid, body)

    def _store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self._answer({"error": "these bytes have another checksum"}, 400)
        self.server.objects[oid] = data
        self._answer({})

    def _commit(self, name: str, body: bytes) -> None:
        repo = self.server.repos[name]
        lines = [json.loads(line) for line in body.splitlines()]
        header, *changes = lines
        if header["value"].get("parentCommit", repo.commits[-1]) != repo.commits[-1]:
            return self._answer({"error": "A commit has happened since"}, 412)
        files = {}
        for change in changes:
            told = change["value"]
            large = change["key"] == "lfsFile"
            data = self.server.objects[told["oid"]] if large else base64.b64decode(told["content"])
            files[told["path"]] = (data, large)
        repo.files |= files
        repo.commits.append(f"{len(repo.commits):040x}")
        address = f"http://{self.server.host}/{name}/commit/{repo.commits[-1]}"
        self._answer({"commitUrl": address, "commitOid": repo.commits[-1]})


def mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"


def listed(entry: tuple[str, tuple[bytes, bool]]) -> dict[str, Any]:
    """An entry of a repository's tree, as the hub words it."""
    path, (data, large) = entry
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    told = {"type": "file", "path": path, "size": len(data), "oid": git}
    return told | ({"lfs": lfs, "oid": "0" * 40} if large else {})


@contextmanager
def serving_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, and an environment that names it and holds a token for it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with HubServer().at_work() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://{server.host}")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
