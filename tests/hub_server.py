"""A small server that speaks the Hub's protocol on loopback, for the real clients.

``HF_ENDPOINT`` points huggingface_hub and transformers at it. It serves repos with branches from
memory or from a directory, and breaks in the ways that a network breaks: see :class:`Fault`.

    hub = HubServer()
    hub.repos["EleutherAI/pythia-14m"] = repo_from_directory(suite / "pythia-14m")
    hub.faults.append(Fault("status", r"/refs", status=429, retry_after=1, times=2))
    with hub: subprocess.run([...], env={**os.environ, **hub.environ(tmp_path)})

Run by hand, it serves the directories of a directory: ``python tests/hub_server.py DIR [PORT]``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin")


@dataclass
class Repo:
    """Branches (and tags) with their files: revision -> file name -> content."""

    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def commit(self, name: str) -> str:
        """A sha of the revision's name and content: as in git, no two branches share one."""
        files = self.branches[name] if name in self.branches else self.tags[name]
        text = name + "".join(f"{n} {sha256(c)}\n" for n, c in sorted(files.items()))
        return hashlib.sha1(text.encode()).hexdigest()

    def resolve(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of a branch, tag or commit."""
        for refs in (self.branches, self.tags):
            if revision in refs:
                return self.commit(revision), refs[revision]
        for name, files in {**self.tags, **self.branches}.items():
            if self.commit(name) == revision:
                return revision, files
        return None


def repo_from_directory(folder: Path) -> Repo:
    """A repo whose branches are the sub-directories of ``folder``."""
    return Repo(
        {
            branch.name: {f.name: f.read_bytes() for f in branch.iterdir() if f.is_file()}
            for branch in sorted(folder.iterdir())
            if branch.is_dir()
        }
    )


@dataclass
class Fault:
    """Something that goes wrong for the next ``times`` requests that match."""

    kind: str
    """``status``: answer ``status``; ``slow``: wait ``seconds`` first; ``drip``: and between any
    two bytes of the body; ``cut``: close the connection half-way through the body; ``hang up``:
    close it without an answer."""
    path: str = ""
    """Regular expression searched in ``METHOD /path?query``."""
    times: int = 1
    status: int = 500
    retry_after: int | None = None
    seconds: float = 0.0
    says: str = ""
    """The message in the header of an error, or the body of an answer that is none."""


class HubServer:
    """Serve ``repos`` on a free port of 127.0.0.1, from ``with`` to its end."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.datasets: dict[str, str] = {}
        """Data set -> "" for one that all may read, "GatedRepo" for one that is gated."""
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        """``METHOD /path?query`` of every request, in order of arrival."""
        self.resumed: list[int] = []
        """Of every request for the rest of a large file, the byte that it begins at."""
        self.jobs: list[dict] = []
        """Of Hugging Face Jobs that were submitted, what was asked for."""
        self.most_at_once = 0
        self._open = 0
        self._lock = threading.Lock()
        # The commits of all revisions are asked for again and again.
        self._resolved: dict[tuple[str, str], tuple[str, dict[str, bytes]] | None] = {}
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environ(self, home: Path) -> dict[str, str]:
        """Variables that point a process's Hub clients here, with an empty cache in ``home``."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "NO_PROXY": "127.0.0.1",
        }

    def settings(self, home: Path) -> dict[str, object]:
        """What those variables set in huggingface_hub, which reads them when it is imported."""
        values: dict[str, object] = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_HUB_OFFLINE": False,
        }
        settings = {f"huggingface_hub.constants.{name}": value for name, value in values.items()}
        # Of the object behind ``huggingface_hub.model_info`` and its like.
        return {**settings, "huggingface_hub.hf_api.api.endpoint": self.endpoint}

    def commands(self, home: Path) -> dict[str, Any]:
        """What makes a command's process (``forks``) a client of this Hub."""
        environment = {**os.environ, **self.environ(home), "OMP_NUM_THREADS": "1"}
        return {"environment": environment, "settings": self.settings(home)}

    def use(self, monkeypatch, home: Path) -> None:
        """Point this process's huggingface_hub here."""
        for name, value in self.settings(home).items():
            monkeypatch.setattr(name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def resolve(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        with self._lock:
            key = (repo, revision)
            if key not in self._resolved:
                self._resolved[key] = self.repos[repo].resolve(revision)
            return self._resolved[key]

    def changed(self) -> None:
        """Forget what was served: ``repos`` changed."""
        self._resolved.clear()

    def fault(self, request: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.path, request):
                    fault.times -= 1
                    return fault
        return None

    def arrived(self, request: str) -> None:
        with self._lock:
            self.requests.append(request)
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)

    def left(self) -> None:
        with self._lock:
            self._open -= 1


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        """Quiet: tests look at ``requests``."""

    def do_GET(self) -> None:
        request = f"{self.command} {self.path}"
        self.server_hub.arrived(request)
        try:
            self._answer(request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # The client gave up, as with a slow answer.
        finally:
            self.server_hub.left()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def _answer(self, request: str) -> None:
        fault = self.server_hub.fault(request)
        self.cut = fault is not None and fault.kind == "cut"
        self.pause = fault.seconds if fault is not None and fault.kind == "drip" else 0.0
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.seconds)
        elif fault is not None and fault.kind == "hang up":
            self.close_connection = True
            return
        elif fault is not None and fault.kind == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            body = b'{"error": "planted"}'
            if fault.status < 400:
                headers["Content-Type"], body = "application/json", fault.says.encode()
            elif fault.says:
                headers["X-Error-Message"] = fault.says
            self._send(fault.status, body, headers)
            return
        url = urlsplit(self.path)
        # A slash inside a revision comes quoted, so that a revision is one part of the path.
        for pattern, answer in (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/jobs/(?P<owner>[^/]+)", self._job),
            (r"/api/datasets/(?P<path>.+)/auth-check", self._data_set),
            (r"/api/models/(?P<repo>.+?)/refs", self._refs),
            (r"/api/models/(?P<repo>.+?)/revision/(?P<revision>[^/]+)", self._info),
            (r"/api/models/(?P<repo>.+?)/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", self._tree),
            (r"/api/models/(?P<repo>.+)", self._info),
            (r"/cdn/(?P<repo>.+?)/(?P<revision>[0-9a-f]{40})/(?P<name>.+)", self._content),
            (r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._file),
        ):
            match = re.fullmatch(pattern, url.path)
            if match:
                found = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                answer(parse_qs(url.query), **found)
                return
        self._error(404, "EntryNotFound", url.path)

    def _whoami(self, query: dict) -> None:
        self._json({"name": "me", "type": "user", "auth": {}})

    def _job(self, query: dict, owner: str) -> None:
        job = json.loads(self.posted)
        self.server_hub.jobs.append(job)
        me = {"id": "1", "name": owner, "type": "user"}
        number = str(len(self.server_hub.jobs))
        self._json({**job, "id": number, "status": {"stage": "RUNNING"}, "owner": me})

    def _data_set(self, query: dict, path: str) -> None:
        code = self.server_hub.datasets.get(path, "RepoNotFound")
        if code:
            self._error(404 if code == "RepoNotFound" else 403, code, path)
        else:
            self._json({})

    def _refs(self, query: dict, repo: str) -> None:
        if repo not in self.server_hub.repos:
            self._error(404, "RepoNotFound", repo)
            return
        there = self.server_hub.repos[repo]

        def refs(kind: str, names: list[str]) -> list[dict[str, str]]:
            return [
                {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": self._commit(repo, n)}
                for n in names
            ]

        branches, tags = refs("heads", list(there.branches)), refs("tags", list(there.tags))
        self._json({"branches": branches, "tags": tags, "converts": []})

    def _commit(self, repo: str, name: str) -> str:
        found = self.server_hub.resolve(repo, name)
        assert found is not None
        return found[0]

    def _info(self, query: dict, repo: str, revision: str = "main") -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        commit, files = found
        blobs = query.get("blobs", [""])[0].lower() == "true"
        siblings = [
            {"rfilename": name, **(_metadata(name, content) if blobs else {})}
            for name, content in files.items()
        ]
        self._json({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings})

    def _tree(self, query: dict, repo: str, revision: str, folder: str = "") -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        if folder:  # Repos here are flat.
            self._error(404, "EntryNotFound", folder)
            return
        tree = []
        for name, content in found[1].items():
            metadata: dict[str, Any] = _metadata(name, content)
            entry: dict[str, Any] = {"type": "file", "path": name, "oid": metadata["blobId"]}
            entry["size"] = metadata["size"]
            if "lfs" in metadata:
                entry["lfs"] = {"oid": metadata["lfs"]["sha256"], **metadata["lfs"]}
            tree.append(entry)
        self._json(tree)

    def _file(self, query: dict, repo: str, revision: str, name: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self._error(404, "EntryNotFound", name)
            return
        if self.server_hub.repos[repo].gated:
            self._error(403, "GatedRepo", repo)
            return
        content = files[name]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not name.endswith(LFS_SUFFIXES):
            self._send(200, content, {**headers, "ETag": f'"{git_blob(content)}"'})
            return
        # As on the Hub, large files lie elsewhere; the linked headers describe them.
        self._send(
            302,
            b"",
            {
                **headers,
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.server_hub.endpoint}/cdn/{repo}/{commit}/{name}",
            },
        )

    def _content(self, query: dict, repo: str, revision: str, name: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        content = found[1][name]
        # The same host as the Hub here, so that clients follow to it for the headers too.
        headers = {
            "ETag": f'"{sha256(content)}"',
            "X-Repo-Commit": found[0],
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            self.server_hub.resumed.append(int(asked[1]))
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, content[start : end + 1], headers)
        else:
            self._send(200, content, headers)

    def _found(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.server_hub.repos:
            self._error(404, "RepoNotFound", repo)
            return None
        found = self.server_hub.resolve(repo, revision)
        if found is None:
            self._error(404, "RevisionNotFound", revision)
        return found

    def _error(self, status: int, code: str, what: str) -> None:
        body = json.dumps({"error": f"{code}: {what}"}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": f"{code}: {what}"})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        for piece in (body[i : i + 1] for i in range(len(body))) if self.pause else [body]:
            self.wfile.write(piece)
            time.sleep(self.pause)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    """The id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _metadata(name: str, content: bytes) -> dict[str, Any]:
    metadata: dict[str, object] = {"blobId": git_blob(content), "size": len(content)}
    if name.endswith(LFS_SUFFIXES):
        pointer = f"version lfs\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()
        metadata["blobId"] = git_blob(pointer)
        metadata["lfs"] = {
            "sha256": sha256(content),
            "size": len(content),
            "pointerSize": len(pointer),
        }
    return metadata


def main(argv: list[str]) -> None:
    root = Path(argv[0])
    hub = HubServer(int(argv[1]) if len(argv) > 1 else 0)
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        hub.repos[folder.name.replace("--", "/")] = repo_from_directory(folder)
    print(f"export HF_ENDPOINT={hub.endpoint}   # {', '.join(hub.repos)}", flush=True)
    with hub:
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
