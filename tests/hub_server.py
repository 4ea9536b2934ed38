# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A Hub on 127.0.0.1 for tests: the HTTP protocol that `huggingface_hub` speaks, and the refusals of the real one.

Two servers, as on the Hub: the API, and an object store on another origin that takes and gives the content of large
files through signed URLs and refuses requests that carry the user's token. Nothing is stored on disk. Faults are
injected per route:

    with HubServer() as hub:
        hub.inject("lfs-put", cut_after=1000)           # once, after 1000 bytes of the body
        hub.inject("commit", status=503, times=2)
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import (
    GIT_ATTRIBUTES,
    Commit,
    File,
    Refusal,
    Repository,
    User,
    apply_operation,
    card_errors,
    is_lfs,
    owns,
)
from hub_xet import XetStore, xet_routes

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("validate-yaml", "POST", r"/api/validate-yaml"),
    ("create", "POST", r"/api/repos/create"),
    ("info", "GET", rf"/api/(?:models|datasets)/{_REPO}"),
    ("info", "GET", rf"/api/(?:models|datasets)/{_REPO}/revision/{_REVISION}"),
    ("tree", "GET", rf"/api/(?:models|datasets)/{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?"),
    ("refs", "GET", rf"/api/(?:models|datasets)/{_REPO}/refs"),
    ("branch", "POST", rf"/api/(?:models|datasets)/{_REPO}/branch/{_REVISION}"),
    ("preupload", "POST", rf"/api/(?:models|datasets)/{_REPO}/preupload/{_REVISION}"),
    ("commit", "POST", rf"/api/(?:models|datasets)/{_REPO}/commit/{_REVISION}"),
    ("lfs-batch", "POST", rf"/{_REPO}\.git/info/lfs/objects/batch"),
    ("lfs-verify", "POST", rf"/{_REPO}\.git/info/lfs/objects/verify"),
    ("lfs-complete", "POST", rf"/api/complete_multipart/{_REPO}/(?P<oid>\w+)"),
    ("resolve", "HEAD", rf"/(?:datasets/)?{_REPO}/resolve/{_REVISION}/(?P<path>.+)"),
    ("resolve", "GET", rf"/(?:datasets/)?{_REPO}/resolve/{_REVISION}/(?P<path>.+)"),
    ("lfs-put", "PUT", rf"/store/{_REPO}/(?P<oid>\w+)"),
    ("lfs-part", "PUT", rf"/store/{_REPO}/(?P<oid>\w+)/(?P<part>\d+)"),
    ("download", "GET", rf"/store/{_REPO}/(?P<oid>\w+)"),
    *xet_routes(_REPO, _REVISION),
]
_STORE_ROUTES = {"lfs-put", "lfs-part", "download"}


@dataclass
class Fault:
    """What goes wrong on a route; see `HubServer.inject`."""

    route: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    lose_answer: bool = False
    before: Callable[[], None] | None = None


class HubServer(XetStore):
    """The Hub. Token "hf_owner" writes to namespace "user", "hf_reader" only reads, "hf_stranger" is somebody else's.

    Args:
        multipart_size: Larger files, in bytes, are uploaded in parts of this size; None for never.
    """

    def __init__(self, multipart_size: int | None = None):
        self.tokens = {
            "hf_owner": User("user", "write"),
            "hf_reader": User("user", "read"),
            "hf_stranger": User("stranger", "write"),
        }
        self.multipart_size = multipart_size
        self.repositories: dict[str, Repository] = {}
        self.xorbs: dict[str, list[bytes]] = {}
        self.requests: list[tuple[str, str]] = []  # (route, path)
        self.unknown: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._secret = secrets.token_bytes(16)
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub, server.daemon_threads = self, True
        # Two names of one machine: some clients take another port alone for the same host.
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.store = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc_info) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def inject(self, route: str, times: int = 1, **fault) -> None:
        """Let the next `times` requests to a route fail.

        Args:
            route: A name in `_ROUTES`.
            times: How many requests.
            **fault: `status` (with `headers`) answers so; `cut_after` closes the connection after that many bytes
                of the body; `lose_answer` does the work and closes it; `before` is called, then all goes on.
        """
        if route not in {name for name, _, _ in _ROUTES}:
            raise ValueError(f"no route {route!r}")
        self._faults.append(Fault(route, times, **fault))

    def take_fault(self, route: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault in self._faults:
                if fault.route == route and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def log(self, repo_id: str, ref: str = "main") -> list[Commit]:
        """Commits of a branch, newest first, without the one that creates the repository."""
        repository = self.repositories[repo_id]
        commit, commits = repository.commits[repository.refs[ref]], []
        while commit.parent is not None:
            commits.append(commit)
            commit = repository.commits[commit.parent]
        return commits

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A new repository with the Hub's first commit."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.add("main", {".gitattributes": File(GIT_ATTRIBUTES.encode(), False)}, "initial commit", None)
        return repository

    def commit(self, repo_id: str, files: dict[str, bytes], summary: str = "by somebody else") -> Commit:
        """Commit to main, past the protocol."""
        repository = self.repositories[repo_id]
        head = repository.commits[repository.refs["main"]]
        added = {path: File(content, is_lfs(path, content)) for path, content in files.items()}
        return repository.add("main", {**head.files, **added}, summary, head.oid)

    def files(self, repo_id: str, ref: str = "main") -> dict[str, bytes]:
        """What is in a branch, without the file that the Hub itself puts there."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.refs[ref]].files
        return {name: file.content for name, file in files.items() if name != ".gitattributes"}

    def count(self, route: str) -> int:
        """How many requests a route has had."""
        return sum(name == route for name, _ in self.requests)

    # ---- who may do what

    def user(self, headers) -> User | None:
        authorization = headers.get("Authorization")
        if authorization is None:
            return None
        user = self.tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def repository(self, repo_id: str, user: User | None) -> Repository:
        repository = self.repositories.get(repo_id)
        if repository is None or (repository.private and not owns(user, repo_id)):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, repo_id: str, user: User | None) -> Repository:
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repository = self.repository(repo_id, user)
        if not owns(user, repo_id) or user.role != "write":
            message = "pass `create_pr=1` as a query parameter to create a Pull Request"
            raise Refusal(403, f"Authorization error: you have no write access to {repo_id}; {message}")
        return repository

    def head(self, repository: Repository, revision: str) -> Commit:
        oid = repository.refs.get(revision, revision)
        if oid not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository.commits[oid]

    def sign(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), "sha256").hexdigest()

    # ---- the routes; each returns JSON, or (status, headers, bytes)

    def whoami(self, request) -> Any:
        user = request.user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        token = {"displayName": "test", "role": user.role}
        return {"type": "user", "name": user.name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    def validate_yaml(self, request) -> Any:
        errors = card_errors(request.json["content"])
        if errors:
            body = {"errors": [{"message": error} for error in errors], "warnings": []}
            raise Refusal(400, "Invalid metadata", body=body)
        return {"errors": [], "warnings": []}

    def create_repo(self, request) -> Any:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        payload = request.json
        repo_id = f"{payload.get('organization') or request.user.name}/{payload['name']}"
        if not owns(request.user, repo_id) or request.user.role != "write":
            raise Refusal(403, f"You don't have the rights to create a model under the namespace of {repo_id}")
        url = f"{self.endpoint}/{repo_id}"
        if repo_id in self.repositories:
            message = "You already created this model repo"
            raise Refusal(409, message, body={"error": message, "url": url})
        self.create(repo_id, payload.get("visibility") == "private" or payload.get("private", False))
        return {"url": url, "name": repo_id}

    def info(self, request, repo: str, revision: str = "main") -> Any:
        repository = self.repository(repo, request.user)
        commit = self.head(repository, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return {"id": repo, "modelId": repo, "sha": commit.oid, "private": repository.private, "siblings": siblings}

    def tree(self, request, repo: str, revision: str, path: str | None = None) -> Any:
        files = self.head(self.repository(repo, request.user), revision).files
        prefix = f"{path}/" if path else ""
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for name, file in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            folder, inside, _ = name[len(prefix) :].rpartition("/")
            if inside:
                folders.add(prefix + (folder if recursive else folder.split("/")[0]))
            if not inside or recursive:
                entry = {"type": "file", "path": name, "oid": file.blob_id, "size": len(file.content)}
                lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
                entries.append(entry | ({"lfs": lfs} if file.lfs else {}))
        if path and not entries and not folders:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)
        ] + entries

    def refs(self, request, repo: str) -> Any:
        repository = self.repository(repo, request.user)
        branches = [name for name in repository.refs if not name.startswith("refs/pr/")]
        shown = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": repository.refs[name]} for name in branches
        ]
        return {"branches": shown, "converts": [], "tags": []}

    def branch(self, request, repo: str, revision: str) -> Any:
        repository = self.writable(repo, request.user)
        if revision in repository.refs:
            raise Refusal(409, f"Reference already exists: refs/heads/{revision}")
        repository.refs[revision] = self.head(repository, request.json.get("startingPoint", "main")).oid
        return {}

    def preupload(self, request, repo: str, revision: str) -> Any:
        repository = self._target(request, repo)
        files, answer = self.head(repository, revision).files, []
        for entry in request.json["files"]:
            mode = "lfs" if is_lfs(entry["path"], base64.b64decode(entry["sample"]), entry["size"]) else "regular"
            known = files.get(entry["path"])
            oid = known and (known.sha256 if known.lfs else known.blob_id)
            shown = {"oid": oid} if oid else {}
            answer.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, **shown})
        return {"files": answer, "commitOid": repository.refs["main"]}

    def lfs_batch(self, request, repo: str) -> Any:
        if request.user is None:
            raise Refusal(401, "Invalid username or password.")
        repository, payload = self.repository(repo, request.user), request.json
        if payload["operation"] != "upload" or payload["hash_algo"] != "sha256":
            raise Refusal(400, "unsupported operation")
        objects = [self._batch_object(repo, repository, **entry) for entry in payload["objects"]]
        multipart = any(
            "chunk_size" in entry.get("actions", {}).get("upload", {}).get("header", {}) for entry in objects
        )
        return {"transfer": "multipart" if multipart else "basic", "objects": objects}

    def _batch_object(self, repo: str, repository: Repository, oid: str, size: int) -> dict:
        if oid in repository.objects:
            return {"oid": oid, "size": size}
        path = f"/store/{repo}/{oid}"
        if self.multipart_size and size > self.multipart_size:
            complete = f"/api/complete_multipart/{repo}/{oid}"
            header = {"chunk_size": str(self.multipart_size)}
            for part in range(1, -(-size // self.multipart_size) + 1):
                header[f"{part:05d}"] = f"{self.store}{path}/{part}?signature={self.sign(f'{path}/{part}')}"
            upload = {"href": f"{self.endpoint}{complete}?signature={self.sign(complete)}", "header": header}
        else:
            upload = {"href": f"{self.store}{path}?signature={self.sign(path)}"}
        verify = {"href": f"{self.endpoint}/{repo}.git/info/lfs/objects/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, request, repo: str, oid: str) -> Any:
        self._store_object(repo, oid, request.body)
        return 200, {"ETag": f'"{oid}"'}, b""

    def lfs_part(self, request, repo: str, oid: str, part: str) -> Any:
        self.repositories[repo].parts.setdefault(oid, {})[int(part)] = request.body
        return 200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, b""

    def lfs_complete(self, request, repo: str, oid: str) -> Any:
        request.check_signature()
        stored = self.repositories[repo].parts.get(oid, {})
        content = b""
        for entry in request.json["parts"]:
            part = stored.get(entry["partNumber"])
            if part is None or entry["etag"].strip('"') != hashlib.md5(part).hexdigest():
                raise Refusal(400, f"part {entry['partNumber']} is missing or differs")
            content += part
        self._store_object(repo, oid, content)
        return {}

    def _store_object(self, repo: str, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "The SHA256 you specified did not match the calculated checksum.")
        self.repositories[repo].objects[oid] = content

    def lfs_verify(self, request, repo: str) -> Any:
        content = self.writable(repo, request.user).objects.get(request.json["oid"])
        if content is None or len(content) != request.json["size"]:
            raise Refusal(400, "The object is missing or has another size")
        return {}

    def commit_route(self, request, repo: str, revision: str) -> Any:
        repository = self._target(request, repo)
        lines = [json.loads(line) for line in request.body.splitlines()]
        if lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, "a commit begins with its header, which has a summary")
        head = self.head(repository, revision)
        if lines[0]["value"].get("parentCommit", head.oid) != head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            apply_operation(repository, files, line["key"], line["value"])
        pull_request, ref = "create_pr" in request.query, revision
        if pull_request:
            ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}"
        commit = repository.add(ref, files, lines[0]["value"]["summary"], head.oid)
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.endpoint}/{repo}/commit/{commit.oid}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo}/discussions/{ref.rpartition('/')[2]}"
        return answer

    def _target(self, request, repo: str) -> Repository:
        """Whoever may read may also open a pull request."""
        if "create_pr" in request.query and request.user is not None:
            return self.repository(repo, request.user)
        return self.writable(repo, request.user)

    def resolve(self, request, repo: str, revision: str, path: str) -> Any:
        commit = self.head(self.repository(repo, request.user), revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        file = commit.files.get(path)
        if file is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.headers |= headers
            raise refusal
        if not file.lfs:
            return 200, headers | {"ETag": f'"{file.blob_id}"'}, file.content
        stored = f"/store/{repo}/{file.sha256}"
        linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return 302, headers | linked | {"Location": f"{self.store}{stored}?signature={self.sign(stored)}"}, b""

    def download(self, request, repo: str, oid: str) -> Any:
        return 200, {"ETag": f'"{oid}"'}, self.repositories[repo].objects[oid]


_METHODS = {"create": "create_repo", "commit": "commit_route"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args):
        pass

    def _serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        self.url_path, self.query = url.path, parse_qs(url.query)
        matches = (
            (name, re.fullmatch(pattern, url.path)) for name, method, pattern in _ROUTES if method == self.command
        )
        route, match = next((found for found in matches if found[1]), (None, None))
        if match is None:
            # The client also looks up things that have to do with no repository, and takes no for an answer.
            hub.unknown += (
                [f"{self.command} {self.path}"] if any(repo in self.path for repo in hub.repositories) else []
            )
            self._read_body()
            return self._answer(404, {"error": "no such route"})
        hub.requests.append((route, url.path))
        fault = hub.take_fault(route) or Fault(route, 0)
        if fault.cut_after is not None:
            self.rfile.read(min(fault.cut_after, int(self.headers.get("Content-Length", 0))))
            return self._cut()
        self.body = self._read_body()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            return self._answer(fault.status, {"error": "injected"}, fault.headers)
        answer = self._handle(route, match)
        return self._cut() if fault.lose_answer else self._answer(*answer)

    def _handle(self, route: str, match: re.Match) -> tuple:
        hub = self.server.hub
        groups = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
        try:
            with hub._lock:
                if route in _STORE_ROUTES:
                    self._check_store_request()
                elif not self.path.startswith("/cas/"):  # which has tokens of its own
                    self.user = hub.user(self.headers)
                answer = getattr(hub, _METHODS.get(route, route.replace("-", "_")))(self, **groups)
        except Refusal as refusal:
            return refusal.status, refusal.body, refusal.headers
        if isinstance(answer, tuple):
            status, headers, content = answer
            return status, content, headers
        return 200, answer

    def _check_store_request(self) -> None:
        if self.server is not self.server.hub._servers[1] or "Authorization" in self.headers:
            raise Refusal(400, "Only one auth mechanism allowed")
        self.check_signature()

    def check_signature(self) -> None:
        if self.query.get("signature") != [self.server.hub.sign(self.url_path)]:
            raise Refusal(403, "SignatureDoesNotMatch")

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _cut(self) -> None:
        # Closing with unread input and no lingering resets the connection, as a lost network does.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers = {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
