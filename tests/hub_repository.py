# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Users, repositories and commits of the Hub that `hub_server.py` serves, with what the real one refuses to take."""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from fnmatch import fnmatch

import yaml

_LFS_PATTERNS = ("*.safetensors", "*.bin", "*.onnx", "*.pt", "*.pth", "*.h5", "*.npz", "*.zip", "*.ckpt")
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS)
_REGULAR_LIMIT = 10 * 2**20  # bytes
_LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other", "unknown"}


class Refusal(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None):
        self.status, self.body = status, body or {"error": message}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class User:
    """Owner of a token; `role` is "read" or "write"."""

    name: str
    role: str


@dataclass(frozen=True)
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        content = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A commit with its whole tree."""

    oid: str
    parent: str | None
    summary: str
    files: dict[str, File]


@dataclass
class Repository:
    """A model repository; `refs` holds branches and pull requests."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def add(self, ref: str, files: dict[str, File], summary: str, parent: str | None) -> Commit:
        commit = Commit(secrets.token_hex(20), parent, summary, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit


def owns(user: User | None, repo_id: str) -> bool:
    return user is not None and user.name == repo_id.split("/")[0]


def is_lfs(path: str, sample: bytes, size: int | None = None) -> bool:
    large = (len(sample) if size is None else size) > _REGULAR_LIMIT
    return large or b"\0" in sample or any(fnmatch(path, pattern) for pattern in _LFS_PATTERNS)


def apply_operation(repository: Repository, files: dict[str, File], key: str, value: dict) -> None:
    """One operation of a commit."""
    path = value["path"]
    if key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "lfsFile":
        content = repository.objects.get(value["oid"])
        if content is None or value["algo"] != "sha256":
            raise Refusal(400, "Your push was rejected because an LFS pointer pointed to a file that does not exist.")
        if value.get("size", len(content)) != len(content):
            raise Refusal(400, "Your push was rejected because an LFS pointer has another size than its file.")
        files[path] = File(content, True)
    elif key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if is_lfs(path, content):
            raise Refusal(400, f"Your push was rejected because it contains binary files: {path}")
        files[path] = File(content, False)
    else:
        raise Refusal(400, f"unknown operation {key}")


def card_errors(content: str) -> list[str]:
    header = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    data = yaml.safe_load(header[1]) if header else None
    if not isinstance(data, dict):
        return []
    errors = []
    if "license" in data and data["license"] not in _LICENSES:
        errors.append('"license" must be one of [apache-2.0, mit, ...]')
    for entry in data.get("model-index", []):
        if not entry.get("name"):
            errors.append('"model-index[0].name" is required')
        for result in entry["results"]:
            needed = [("task", "type"), ("dataset", "type"), ("dataset", "name")]
            errors += [f'"{a}.{b}" is required' for a, b in needed if not result.get(a, {}).get(b)]
            for metric in result["metrics"]:
                if not isinstance(metric.get("value"), (int, float, str)) or metric["value"] != metric["value"]:
                    errors.append(f'"metrics.value" of {metric.get("type")} is no value')
    return errors
