"""Fetching images over HTTPS: the certificate must match the host name, at the IP address that was checked."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from serving.http.error_responses import ServiceError
from serving.inputs import safe_fetch
from serving.inputs.safe_fetch import fetch
from tests.serving.conftest import TIMEOUT_SECONDS

HOST, OTHER = "images.example", "other.example"


class Site:
    """A TLS server with certificates for HOST and OTHER, selected by SNI.

    server_names: names of the TLS handshakes; requests: Host header and path of each request.
    """

    def __init__(self, authority: trustme.CA):
        self.server_names: list[str | None] = []
        self.requests: list[tuple[str, str]] = []
        self.contexts = contexts = {name: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for name in (HOST, OTHER)}
        for name, context in contexts.items():
            authority.issue_cert(name).configure_cert(context)

        def select_certificate(socket: Any, name: str | None, _: ssl.SSLContext) -> None:
            self.server_names.append(name)
            # An unknown name gets the certificate of HOST.
            socket.context = contexts.get(name or "", contexts[HOST])

        contexts[HOST].sni_callback = select_certificate
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.server.socket = contexts[HOST].wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port

    def handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.headers["Host"], self.path))
                self.send_response(302 if self.path == "/moved" else 200)
                if self.path == "/moved":
                    self.send_header("Location", f"https://{OTHER}:{site.port}/there")
                self.end_headers()
                self.wfile.write(b"an image")

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that is trusted during a test."""
    certificate_authority = trustme.CA()
    certificate_authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return certificate_authority


@pytest.fixture
def site(authority: trustme.CA) -> Iterator[Site]:
    running = Site(authority)
    threading.Thread(target=running.server.serve_forever, daemon=True).start()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture(autouse=True)
def _resolved_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every host name is resolved to this machine, which is allowed here."""
    monkeypatch.setattr(safe_fetch, "is_public", lambda _: True)
    monkeypatch.setattr(safe_fetch, "resolve", lambda _host, _port: ["127.0.0.1"])


def get(address: str) -> bytes:
    return fetch(address, (HOST, OTHER), 4000, TIMEOUT_SECONDS)


def test_the_certificate_must_match_the_name_and_the_connection_goes_to_the_checked_address(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved: list[str] = []

    def resolve_host(host: str, _: int) -> list[str]:
        resolved.append(host)
        # A second query gets another address, as from a DNS server of an attacker.
        return ["127.0.0.1"] if len(resolved) == 1 else ["10.0.0.1"]

    monkeypatch.setattr(safe_fetch, "resolve", resolve_host)
    assert get(f"https://{HOST}:{site.port}/a.png?x=1") == b"an image"
    assert resolved == [HOST]
    assert site.server_names == [HOST]
    assert site.requests == [(f"{HOST}:{site.port}", "/a.png?x=1")]


def test_a_redirect_is_checked_against_the_certificate_of_its_own_host(site: Site) -> None:
    assert get(f"https://{HOST}:{site.port}/moved") == b"an image"
    assert site.server_names == [HOST, OTHER]
    assert site.requests[1] == (f"{OTHER}:{site.port}", "/there")


def test_a_certificate_of_another_host_is_refused(site: Site) -> None:
    with pytest.raises(ServiceError) as caught:
        fetch(f"https://third.example:{site.port}/", ("third.example",), 4000, TIMEOUT_SECONDS)
    assert (caught.value.status_code, caught.value.code) == (422, "image_address")
    assert site.server_names == ["third.example"] and site.requests == [], "no request is sent to an unverified server"


def test_a_certificate_of_an_untrusted_authority_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "untrusted.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "untrusted.pem"))
    with pytest.raises(ServiceError, match=r"422.*cannot be reached"):
        get(f"https://{HOST}:{site.port}/")
    assert site.requests == []


def test_a_certificate_for_the_ip_address_is_refused(site: Site, authority: trustme.CA) -> None:
    """If the certificate were checked against the IP address, one for 127.0.0.1 would be accepted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    site.contexts[HOST] = context
    with pytest.raises(ServiceError, match=r"422.*cannot be reached"):
        get(f"https://{HOST}:{site.port}/")
    assert site.requests == []
