# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Xet storage of the Hub that `hub_server.py` serves: its token, blocks of chunks, and shards that make files of them.

The client decides for Xet by itself; it takes the older routes for blocks and shards where the newer ones answer 404.
"""

import hashlib
import re
import struct
import time

from hub_repository import Refusal, owns

_ENTRY = 48  # bytes of everything in a shard
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30
_END = b"\xff" * 32

# What makes the real client put up with a test: no minutes of waiting, nothing compressed, no reports.
CLIENT_SETTINGS = {
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_READ_TIMEOUT": "300ms",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "1s",
    "HF_XET_XORB_COMPRESSION_POLICY": "none",
    "HF_XET_TELEMETRY_ENABLED": "0",
}


def xet_routes(repo: str, revision: str) -> list[tuple[str, str, str]]:
    """Rows of the Hub's table of routes: name, method, pattern."""
    return [
        ("xet-token", "GET", rf"/api/models/{repo}/xet-write-token/{revision}"),
        ("xet-chunk", "GET", r"/cas/v1/chunks/[\w-]+/(?P<chunk>\w+)"),
        ("xet-grant", "POST", r"/cas/v1/xorb-grants/\w+/\w+"),
        ("xet-xorb", "POST", r"/cas/v1/xorbs/\w+/(?P<xorb>\w+)"),
        ("xet-shard-v2", "POST", r"/cas/v2/shards"),
        ("xet-shard", "POST", r"/cas/v1/shards"),
    ]


def chunks(xorb: bytes) -> list[bytes]:
    """Content of the chunks of a block."""
    found, position = [], 0
    while position + 8 <= len(xorb):
        stored, scheme, size = xorb[position + 1 : position + 4], xorb[position + 4], xorb[position + 5 : position + 8]
        stored = int.from_bytes(stored, "little")
        if xorb[position] != 0 or scheme != 0 or stored != int.from_bytes(size, "little"):
            break  # the footer
        found.append(xorb[position + 8 : position + 8 + stored])
        position += 8 + stored
    return found


def files_of(shard: bytes, xorbs: dict[str, list[bytes]]) -> list[bytes]:
    """Content of the files that a shard puts together."""
    found, position = [], _ENTRY
    while (header := shard[position : position + _ENTRY])[:32] != _END:
        flags, count = struct.unpack_from("<II", header, 32)
        content = b""
        for entry in range(count):
            at = position + _ENTRY * (1 + entry)
            size, first, end = struct.unpack_from("<III", shard, at + 36)
            part = b"".join(xorbs[_name(shard[at : at + 32])][first:end])
            if len(part) != size:
                raise Refusal(400, "a segment has another size than its chunks")
            content += part
        position += _ENTRY * (1 + count * (2 if flags & _VERIFIED else 1))
        if flags & _WITH_SHA256:
            if hashlib.sha256(content).hexdigest() != _name(shard[position : position + 32]):
                raise Refusal(400, "The SHA256 you specified did not match the calculated checksum.")
            position += _ENTRY
        found.append(content)
    return found


def _name(digest: bytes) -> str:
    """Xet writes a hash as four little-endian numbers."""
    return "".join(digest[start : start + 8][::-1].hex() for start in range(0, 32, 8))


class XetStore:
    """Mixed into the Hub: its Xet routes. `cas_endpoint` replaces the address that the token names."""

    cas_endpoint: str | None = None

    def xet_token(self, request, repo: str, revision: str) -> dict:
        """A token for one repository."""
        if request.user is None or not owns(request.user, repo) or request.user.role != "write":
            raise Refusal(401 if request.user is None else 403, "no write access")
        cas = self.cas_endpoint or f"{self.endpoint}/cas"
        token = {"accessToken": f"xet {repo}", "exp": int(time.time()) + 3600, "casUrl": cas}
        return token

    def xet_chunk(self, request, chunk: str) -> None:
        """No chunk is known."""
        raise Refusal(404, "no such chunk")

    def xet_grant(self, request) -> None:
        """Blocks are sent here."""
        raise Refusal(404, "no grants")

    xet_shard_v2 = xet_grant

    def xet_xorb(self, request, xorb: str) -> dict:
        """Keep a block."""
        self._xet_repository(request)
        self.xorbs[xorb] = chunks(request.body)
        return {"was_inserted": True}

    def xet_shard(self, request) -> dict:
        """Make files of blocks."""
        repository = self._xet_repository(request)
        for content in files_of(request.body, self.xorbs):
            repository.objects[hashlib.sha256(content).hexdigest()] = content
        return {"result": 1}

    def _xet_repository(self, request):
        match = re.fullmatch(r"Bearer xet (\S+)", request.headers.get("Authorization", ""))
        if match is None:
            raise Refusal(401, "no Xet token")
        return self.repositories[match[1]]
