"""Fetches images from URLs that clients send: only from configured hosts, and never from a private network (SSRF protection).

A host name is resolved once; the connection goes to the very IP address that was checked, so that a second DNS answer cannot
replace it. Each redirect is checked like the first URL.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from serving.http.error_responses import ServiceError

MAX_REDIRECTS = 3
"""Largest number of redirects that are followed."""
_CHUNK = 2**16
"""Bytes read at once."""
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""The public IPv6 range. Outside it are addresses that embed an IPv4 address, and site-local ones."""
_IETF_PROTOCOL_ASSIGNMENTS = ipaddress.ip_network("192.0.0.0/24")
"""IPv4 addresses reserved for protocols (RFC 6890)."""
_URL_SAFE_CHARS = "/%:@!$&'()*+,;=~?"
"""Characters of a path or query that are not percent-encoded."""


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not loopback, private, link-local or multicast, and not an IPv6 address
    that embeds an IPv4 address (6to4, NAT64, Teredo, IPv4-compatible)."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return ip.is_global and ip in _GLOBAL_UNICAST and ip.sixtofour is None and ip.teredo is None
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and ip not in _IETF_PROTOCOL_ASSIGNMENTS


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def fetch(address: str, hosts: tuple[str, ...], max_bytes: int, seconds: float) -> bytes:
    """The bytes at a URL.

    Args:
        address: http(s) URL.
        hosts: names of the allowed hosts.
        max_bytes: largest body.
        seconds: timeout of the whole fetch, redirects included.

    Raises:
        ServiceError: 403 if the URL may not be fetched, 413 if the body is larger than `max_bytes`, 422 if the URL is invalid
            or the fetch fails or times out.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        parts = _parse_url(address, hosts)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
        try:
            ips = resolve(host, port)
        except OSError as error:
            raise _fetch_error(host, "the host name cannot be resolved") from error
        if not ips or not all(map(is_public, ips)):
            raise ServiceError(403, f"image_url: {host} is not on the public internet", "image_address")
        answer = _get(parts, host, ips[0], port, max_bytes, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            address = urljoin(address, answer)
        except ValueError as error:
            raise ServiceError(422, "image_url: it redirects to an invalid URL", "image_address") from error
    raise _fetch_error(host, f"more than {MAX_REDIRECTS} redirects")


def _parse_url(address: str, hosts: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(address)
        host_and_port = parts.hostname, parts.port
    except ValueError as error:
        raise ServiceError(422, "image_url: not a valid URL", "image_address") from error
    if parts.scheme not in ("http", "https") or parts.username is not None or not host_and_port[0]:
        raise ServiceError(422, "image_url: expected http(s)://host/..., without a user name", "image_address")
    if host_and_port[0] not in {host.lower() for host in hosts}:
        raise ServiceError(403, "image_url: images are not fetched from this host; send the image as a data URL", "image_address")
    return parts


def _get(parts: SplitResult, host: str, ip: str, port: int, max_bytes: int, deadline: float) -> bytes | str:
    """One GET request.

    Args:
        parts: the parsed URL.
        host: host name for the Host header and the certificate.
        ip: checked IP address to connect to.
        port: port to connect to.
        max_bytes: largest body.
        deadline: on `time.monotonic`'s clock.

    Returns:
        The body as bytes, or the target of a redirect as a string.
    """
    path = quote(parts.path or "/", safe=_URL_SAFE_CHARS) + (f"?{quote(parts.query, safe=_URL_SAFE_CHARS)}" if parts.query else "")
    remaining_seconds = max(0.1, deadline - time.monotonic())
    name = f"[{host}]" if ":" in host else host
    headers = {"Host": name if parts.port is None else f"{name}:{port}", "User-Agent": "tessera", "Accept-Encoding": "identity"}
    connection = (
        HTTPSConnection(ip, port, timeout=remaining_seconds, server_hostname=host, assert_hostname=host)
        if parts.scheme == "https"
        else HTTPConnection(ip, port, timeout=remaining_seconds)
    )
    try:
        with _hard_timeout(remaining_seconds, connection) as sockets:
            connection.connect()
            sockets.append(connection.sock)
            connection.request("GET", path, headers=headers, preload_content=False, decode_content=False)
            response = connection.getresponse()
            if location := response.get_redirect_location():
                return str(location)
            if response.status != 200:
                raise _fetch_error(host, f"the server answers {response.status}")
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise ServiceError(413, f"image_url: larger than {max_bytes:,} bytes", "too_large")
            if time.monotonic() >= deadline:
                raise _fetch_error(host, "timed out")
            return bytes(data)
    except (HTTPError, HTTPException, CertificateError, OSError) as error:
        raise _fetch_error(host, "it cannot be reached, or timed out") from error


@contextmanager
def _hard_timeout(seconds: float, connection: HTTPConnection) -> Iterator[list[socket.socket | None]]:
    """Closes the connection after `seconds`, whatever its state: a socket's own timeout restarts with every byte.

    Yields a list to append the connection's socket to, since the connection hands it on to the response.
    """
    finished, sockets = threading.Event(), list[socket.socket | None]()

    def watch() -> None:
        remaining_seconds = seconds
        while not finished.wait(remaining_seconds):
            remaining_seconds = 0.1
            for open_socket in filter(None, (connection.sock, *sockets)):
                with suppress(OSError):
                    # Not the shutdown of the TLS socket, which would detach it while another thread reads from it.
                    socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield sockets
    finally:
        finished.set()
        connection.close()


def _fetch_error(host: str, reason: str) -> ServiceError:
    return ServiceError(422, f"image_url: {host}: {reason}", "image_address")
