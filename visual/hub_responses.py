"""Checks what the Hugging Face hub, or the server that HF_ENDPOINT names, calls its files, before the hub's client writes any.

The client names files in its cache by what the server says: a file by its path, its content by the ETag, a snapshot by its commit.
It checks the path only; an ETag or a commit with `/` or `..` would be written outside of the cache.
"""

import functools
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.utils import _http

from errors import TesseraError

_SAFE_ID = re.compile(r"[0-9A-Za-z][\w.-]{0,255}", re.ASCII)
_ETAG = re.compile(r'(W/)?"?(?P<id>.*?)"?')


@functools.cache
def check_hub_responses() -> None:
    """Make the hub's client check every response of this process."""

    def client_with_check() -> Any:
        client = _http.default_client_factory()
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], check_response]}
        return client

    huggingface_hub.set_client_factory(client_with_check)


def check_response(response: Any) -> None:
    """Raise TesseraError if an httpx response names a file, content or commit so that it would be written outside of its folder."""
    headers, address = response.headers, f"{response.url.scheme}://{response.url.host}"
    ids = [("commit", headers.get("X-Repo-Commit"))]
    if response.request.method == "HEAD":
        etag = headers.get("X-Linked-ETag") or headers.get("ETag")
        ids.append(("ETag", etag and _ETAG.fullmatch(etag)["id"]))  # type: ignore[index]
    if headers.get("Content-Type", "").startswith("application/json") and response.url.path.startswith("/api/"):
        response.read()
        try:
            content = response.json()
        except ValueError:
            # Not the answer that the client expects either: it reports that itself.
            content = None
        ids += _ids(content)
        for path in (entry[key] for entry in _entries(content) for key in ("path", "rfilename") if key in entry):
            if not is_safe_path(path):
                raise TesseraError(f"{address} names a file {path!r:.200}, which lies outside of its folder; nothing was written")
    for kind, value in ids:
        if value is not None and not (isinstance(value, str) and _SAFE_ID.fullmatch(value)):
            raise TesseraError(f"{address} sends the {kind} {value!r:.200}, which cannot be the name of a file; nothing was written")


def is_safe_path(path: object) -> bool:
    """Whether a path that a server names stays below the folder that it is written to, on every operating system."""
    if not isinstance(path, str) or not path or re.search(r"[\\:\x00-\x1f]", path):
        return False
    return not path.startswith("/") and not {"", ".", ".."}.intersection(path.split("/")) and not PurePosixPath(path).is_absolute()


def _ids(content: Any) -> Iterator[tuple[str, Any]]:
    """The commit of a description of a model, and what a listing of its files calls their contents."""
    if isinstance(content, dict):
        yield "commit", content.get("sha")
    for entry in _entries(content):
        yield from (("hash", entry.get(key)) for key in ("oid", "blobId", "xetHash"))
        if isinstance(lfs := entry.get("lfs"), dict):
            yield from (("hash", lfs.get(key)) for key in ("oid", "sha256"))


def _entries(content: Any) -> list[dict[str, Any]]:
    """The files of a listing, or of a description of a model."""
    files = content.get("siblings") if isinstance(content, dict) else content
    return [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []
