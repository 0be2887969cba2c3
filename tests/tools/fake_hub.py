"""A local server that speaks as the Hugging Face hub does, with files in memory, faults and attacks."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CUT = 11 << 20
"""Number of bytes after which a response is cut off."""


@dataclass
class FakeHub:
    """Repositories by name, or by name@revision, and the requests for them.

    Args:
        cut: cut off the next large response.
        damage: change a byte of the next large response.
        etag: sent in the place of the right one, as are `commit` and `oid`, the hash in a listing.
        listed: an additional path in listings.
    """

    repositories: dict[str, dict[str, bytes]]
    url: str = ""
    cut: bool = False
    damage: bool = False
    etag: str | None = None
    commit: str = COMMIT
    oid: str | None = None
    listed: str | None = None
    ranges: list[str | None] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


def handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    def repository(name: str, revision: str) -> dict[str, bytes] | None:
        for known in hub.repositories:
            if known.startswith(f"{name}@") and hashlib.sha1(known.split("@")[1].encode()).hexdigest() == revision:
                return hub.repositories[known]
        return hub.repositories.get(f"{name}@{revision}", hub.repositories.get(name))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.file(body=False)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not path.startswith("/api/models/"):
                return self.file(body=True)
            name = "/".join(path.split("/")[3:5])
            revision = re.findall(r"/(?:tree|revision)/([^/]+)", path)
            files = repository(name, revision[0] if revision else "main")
            if files is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if hub.listed is not None:
                files = {**files, hub.listed: b"{}"}
            if "/tree/" in path:
                content: Any = [
                    {"type": "file", "path": path, "size": len(data), "oid": hub.oid or hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
            else:
                commit = hub.commit if not revision or revision[0] == "main" else hashlib.sha1(revision[0].encode()).hexdigest()
                content = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
            return self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def file(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/", 4)
            if len(parts) < 5:
                return self.answer(404, b"", {})
            owner, short_name, _, revision, path = parts
            data = (repository(f"{owner}/{short_name}", revision) or {})[path]
            digest = (hashlib.sha256(data) if path.endswith(".safetensors") else hashlib.sha1(data)).hexdigest()
            commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else hub.commit
            headers = {"ETag": f'"{hub.etag or digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if not body:
                return self.answer(200, data, headers, body=False)
            hub.fetched.append(path)
            byte_range = self.headers.get("Range")
            if len(data) > CUT:
                hub.ranges.append(byte_range)
            start = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
            if byte_range:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut, damage = hub.cut and len(data) > CUT, hub.damage and len(data) > CUT
            hub.cut, hub.damage = hub.cut and not cut, hub.damage and not damage
            if damage:
                data = b"damaged" + data[7:]
            return self.answer(206 if byte_range else 200, data[start:], headers, limit=CUT if cut else None)

        def answer(self, status: int, data: bytes, headers: dict[str, str], body: bool = True, limit: int | None = None) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:limit])
            self.close_connection = limit is not None

    return Handler
