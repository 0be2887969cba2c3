"""Pictures over HTTPS: the certificate must be that of the host that was named, at the very address that was checked."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from serving.http.error_responses import ServiceError
from serving.inputs.safe_fetch import fetch
from tests.serving.conftest import TIMEOUT_SECONDS

HOST, OTHER = "pictures.example", "other.example"


class Site:
    """A TLS server with a certificate of HOST and one of OTHER, each shown to who asks for it by name (SNI). `asked`: those names,
    and of each request the Host header and path."""

    def __init__(self, authority: trustme.CA):
        self.names: list[str | None] = []
        self.asked: list[tuple[str, str]] = []
        self.contexts = contexts = {name: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for name in (HOST, OTHER)}
        for name, context in contexts.items():
            authority.issue_cert(name).configure_cert(context)

        def by_name(socket: Any, name: str | None, _: ssl.SSLContext) -> None:
            self.names.append(name)
            # Whoever asks for a name that is not here is shown the first certificate.
            socket.context = contexts.get(name or "", contexts[HOST])

        contexts[HOST].sni_callback = by_name
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.server.daemon_threads = True
        self.server.socket = contexts[HOST].wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port

    def handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.headers["Host"], self.path))
                self.send_response(302 if self.path == "/moved" else 200)
                if self.path == "/moved":
                    self.send_header("Location", f"https://{OTHER}:{site.port}/there")
                self.end_headers()
                self.wfile.write(b"a picture")

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """A certificate authority that this machine trusts for the time of a test."""
    found = trustme.CA()
    found.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return found


@pytest.fixture
def site(authority: trustme.CA) -> Iterator[Site]:
    found = Site(authority)
    threading.Thread(target=found.server.serve_forever, daemon=True).start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def get(address: str, seconds: float = TIMEOUT_SECONDS, **changes: Any) -> bytes:
    chosen = {"is_allowed": lambda _: True, "resolve_host": lambda _host, _port: ["127.0.0.1"], **changes}
    return fetch(address, (HOST, OTHER), 4000, seconds, **chosen)


def test_the_certificate_is_that_of_the_name_and_the_connection_goes_to_the_checked_address(site: Site) -> None:
    looked_up: list[str] = []

    def resolve_host(host: str, _: int) -> list[str]:
        looked_up.append(host)
        # Who asks a second time is sent elsewhere, as a name server of an attacker would.
        return ["127.0.0.1"] if len(looked_up) == 1 else ["10.0.0.1"]

    assert get(f"https://{HOST}:{site.port}/a.png?x=1", resolve_host=resolve_host) == b"a picture"
    assert looked_up == [HOST]
    assert site.names == [HOST]
    assert site.asked == [(f"{HOST}:{site.port}", "/a.png?x=1")]


def test_a_redirect_is_checked_against_the_certificate_of_its_own_host(site: Site) -> None:
    assert get(f"https://{HOST}:{site.port}/moved") == b"a picture"
    assert site.names == [HOST, OTHER]
    assert site.asked[1] == (f"{OTHER}:{site.port}", "/there")


def test_a_certificate_of_another_host_is_refused(site: Site) -> None:
    with pytest.raises(ServiceError) as caught:
        fetch(
            f"https://third.example:{site.port}/",
            ("third.example",),
            4000,
            TIMEOUT_SECONDS,
            is_allowed=bool,
            resolve_host=lambda *_: ["127.0.0.1"],
        )
    assert (caught.value.status_code, caught.value.code) == (422, "image_address")
    assert site.names == ["third.example"] and site.asked == [], "nothing is asked of a stranger"


def test_a_certificate_that_nobody_vouches_for_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "stranger.pem"))
    with pytest.raises(ServiceError, match=r"422.*cannot be reached"):
        get(f"https://{HOST}:{site.port}/")
    assert site.asked == []


def test_an_address_is_never_taken_for_the_name_of_a_certificate(site: Site, authority: trustme.CA) -> None:
    """With the name checked against the address, a certificate for 127.0.0.1 would do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    site.contexts[HOST] = context
    with pytest.raises(ServiceError, match=r"422.*cannot be reached"):
        get(f"https://{HOST}:{site.port}/")
    assert site.asked == []
