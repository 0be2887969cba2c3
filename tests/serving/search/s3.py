"""A local object storage: the part of S3's HTTP API that LanceDB's client uses."""

import hashlib
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Bucket:
    """Objects by key, and the access keys of the requests. unavailable: every request fails."""

    name: str = "library"
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    unavailable: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def listing(self, prefix: str, delimiter: str) -> str:
        """ListObjectsV2, in one page."""
        keys, folders = [], set()
        for key in sorted(self.objects):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                keys.append(key)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>{tag(self.objects[key])}</ETag>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders))
        return f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>{contents}{common}</ListBucketResult>"

    def put(self, key: str, data: bytes, only_new: bool) -> int:
        """Write an object atomically and return the HTTP status."""
        with self.lock:
            if only_new and key in self.objects:
                return 412
            self.objects[key] = data
            return 200


def tag(data: bytes) -> str:
    """The ETag of an object."""
    return f'"{hashlib.md5(data).hexdigest()}"'


def handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    """The request handler of a bucket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            name, _, key = unquote(parts.path).lstrip("/").partition("/")
            signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
            if bucket.unavailable or name != bucket.name or signed is None:
                return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            bucket.keys.add(signed[1])
            return self.handle_object(key, query, body) if key else self.handle_bucket(key, query, body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 - the names that the base class requires

        def handle_bucket(self, _: str, query: dict[str, str], body: bytes) -> None:
            if "delete" in query:
                deleted_keys = [element.text or "" for element in ElementTree.fromstring(body).iter() if element.tag.endswith("Key")]
                for key in deleted_keys:
                    bucket.objects.pop(key, None)
                deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in deleted_keys)
                return self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
            return self.answer(200, bucket.listing(query.get("prefix", ""), query.get("delimiter", "")).encode())

        def handle_object(self, key: str, query: dict[str, str], body: bytes) -> None:
            only_new = self.headers.get("If-None-Match") == "*"
            if self.command == "DELETE":
                bucket.objects.pop(key, None)
                return self.answer(204, b"")
            if "uploads" in query:
                bucket.parts[key] = {}
                return self.answer(200, b"<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>")
            if self.command == "PUT" and "partNumber" in query:
                bucket.parts[key][int(query["partNumber"])] = body
                return self.answer(200, b"", {"ETag": tag(body)})
            if self.command == "POST":
                status = bucket.put(key, b"".join(part for _, part in sorted(bucket.parts.pop(key).items())), only_new)
                done = "<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
                return self.answer(status, done.encode())
            if self.command == "PUT":
                return self.answer(bucket.put(key, body, only_new), b"", {"ETag": tag(body)})
            return self.read(key)

        def read(self, key: str) -> None:
            data = bucket.objects.get(key)
            if data is None:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            headers = {"ETag": tag(data), "Last-Modified": formatdate(1_767_225_600, usegmt=True)}
            byte_range = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if byte_range is None:
                return self.answer(200, data, headers)
            first = int(byte_range[1]) if byte_range[1] else max(0, len(data) - int(byte_range[2]))
            last = min(int(byte_range[2]), len(data) - 1) if byte_range[1] and byte_range[2] else len(data) - 1
            return self.answer(206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"})

        def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


@contextmanager
def storage() -> Iterator[Bucket]:
    """A running storage with one bucket, at its `url`."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(bucket))
    server.daemon_threads = True
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
