"""Fetching images by URL: allowed hosts only, public addresses only, each redirect checked, limits on size and time."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.http.error_responses import ServiceError
from serving.inputs import safe_fetch
from serving.inputs.safe_fetch import fetch, is_public
from tests.serving.conftest import TIMEOUT_SECONDS, wait_for

HOSTS = ("images.example", "other.example")


disconnected_paths: set[str] = set()
"""Paths of requests whose client disconnected before the end."""


class Site(BaseHTTPRequestHandler):
    """A server that answers, redirects, sends slowly or never."""

    def do_GET(self) -> None:
        redirects = {
            "/away": "http://evil.example/x",
            "/inside": "http://other.example/x",
            "/round": "/round",
            "/file": "file:///etc/passwd",
            "/none": "http://[",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path in ("/slow/head", "/slow/body"):
            self.send_slowly()
            return
        if self.path == "/never":
            threading.Event().wait(2)
            return
        body = b"x" * (5000 if self.path == "/large" else 10) + self.headers["Host"].encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def send_slowly(self) -> None:
        """Send byte by byte, so that no single read times out."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"A: " if self.path.endswith("head") else b"\r\n"))
        try:
            for _ in range(400):
                self.wfile.write(b"x")
                threading.Event().wait(0.05)
            self.wfile.write(b"\r\n\r\n")
        except OSError:
            disconnected_paths.add(self.path)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def get(port: int, path: str, seconds: float = TIMEOUT_SECONDS, **changes: Any) -> bytes:
    """Fetch with every host name resolved to this machine, which is allowed here. changes: other functions of the module."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in {"is_public": lambda _: True, "resolve": lambda _host, _port: ["127.0.0.1"], **changes}.items():
            patch.setattr(safe_fetch, name, function)
        return fetch(f"http://images.example:{port}{path}", HOSTS, 4000, seconds)


def refused(*arguments: Any, **changes: Any) -> tuple[int, str]:
    with pytest.raises(ServiceError) as caught:
        get(*arguments, **changes)
    return caught.value.status_code, str(caught.value.detail)


def test_an_image_is_fetched_with_the_name_of_its_host(port: int) -> None:
    assert get(port, "/a.png?x=1") == b"x" * 10 + f"images.example:{port}".encode()


def test_only_configured_hosts_are_allowed() -> None:
    for address in ("http://evil.example/x", "http://images.example.evil.example/", "http://127.0.0.1/", "http://[::1]/"):
        with pytest.raises(ServiceError, match="403"):
            fetch(address, HOSTS, 4000, 1.0)
    for address in ("ftp://images.example/", "http://user@images.example/", "http:///x", "http://images.example:x/", "http://[/"):
        with pytest.raises(ServiceError, match="422"):
            fetch(address, HOSTS, 4000, 1.0)


@pytest.mark.parametrize(
    "private_ip",
    [
        *("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "224.0.0.1", "0.0.0.0"),
        *("::1", "fd00::1", "fe80::1", "fec0::1", "ff0e::1", "::", "4000::1"),
        # IPv4 addresses embedded in IPv6: mapped, compatible, NAT64, 6to4, Teredo.
        *("::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::169.254.169.254", "2002:7f00:1::", "2001:0:7f00:1::"),
    ],
)
def test_a_host_name_that_resolves_to_a_private_address_is_refused(port: int, private_ip: str) -> None:
    assert not is_public(private_ip)
    assert refused(port, "/a.png", is_public=is_public, resolve=lambda _host, _port: ["8.8.8.8", private_ip])[0] == 403


def test_addresses_of_the_public_internet_are_allowed() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700::1111") and is_public("::ffff:8.8.8.8")


def test_redirects_are_checked_like_the_first_url(port: int) -> None:
    assert refused(port, "/away")[0] == 403
    assert refused(port, "/file")[0] == 422
    assert refused(port, "/none") == (422, "image_url: it redirects to an invalid URL")
    names: list[str] = []

    def resolve_host(host: str, _: int) -> list[str]:
        names.append(host)
        return ["10.0.0.1"] if host == "other.example" else ["127.0.0.1"]

    assert refused(port, "/inside", is_public=lambda ip: ip != "10.0.0.1", resolve=resolve_host)[0] == 403
    assert names == ["images.example", "other.example"]
    assert refused(port, "/round") == (422, "image_url: images.example: more than 3 redirects")


def test_a_large_slow_or_missing_image_is_refused(port: int) -> None:
    assert refused(port, "/large")[0] == 413
    assert refused(port, "/never", seconds=0.2) == (422, "image_url: images.example: it cannot be reached, or timed out")
    assert refused(port, "/missing") == (422, "image_url: images.example: the server answers 404")


@pytest.mark.parametrize("part", ["head", "body"])
def test_the_timeout_holds_for_a_server_that_sends_byte_by_byte(port: int, part: str) -> None:
    status, message = refused(port, f"/slow/{part}", seconds=0.3)
    assert status == 422 and "timed out" in message
    wait_for(lambda: f"/slow/{part}" in disconnected_paths)


def test_a_host_name_that_cannot_be_resolved_is_refused(port: int) -> None:
    def resolve_host(host: str, port: int) -> list[str]:
        raise OSError(host, port)

    assert refused(port, "/", resolve=resolve_host) == (422, "image_url: images.example: the host name cannot be resolved")
