"""Pictures from an address that a client names: only from hosts that were configured, and never from a private network.

The address that a name stands for is checked and then used itself, so that it cannot become another one in between. Each
redirect is checked like the first address.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from serving.http.error_responses import ServiceError

MAX_REDIRECTS = 3
_CHUNK = 2**16
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""What of IPv6 is given out to the open internet; outside it are forms that carry an address of IPv4, and the sites' own."""
_IETF_PROTOCOL_ASSIGNMENTS = ipaddress.ip_network("192.0.0.0/24")
_URL_SAFE_CHARS = "/%:@!$&'()*+,;=~?"
"""What stands in a path or a query as it is."""


def is_public(address: str) -> bool:
    """True for an address of the open internet: not of this machine, not private, not link-local, no multicast, and none of IPv6
    that leads to one of IPv4 (6to4, NAT64, compatible), whatever that is."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return found.is_global and found in _GLOBAL_UNICAST and found.sixtofour is None and found.teredo is None
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast and found not in _IETF_PROTOCOL_ASSIGNMENTS


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def fetch(
    address: str,
    hosts: tuple[str, ...],
    max_bytes: int,
    seconds: float,
    *,
    is_allowed: Callable[[str], bool] = is_public,
    resolve_host: Callable[[str, int], list[str]] = resolve,
) -> bytes:
    """The bytes at an http(s) address on one of `hosts`.

    Raises ServiceError: 403 where it may not be fetched, 413 where it is larger than `max_bytes`, 422 where it cannot be had
    in time. allowed: whether an IP address may be spoken to; addresses: those of a host.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        parts = _parse_url(address, hosts)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
        try:
            found = resolve_host(host, port)
        except OSError as error:
            raise _fetch_error(host, "its name cannot be resolved") from error
        if not found or not all(map(is_allowed, found)):
            raise ServiceError(403, f"image_url: {host} is not on the open internet", "image_address")
        answer = _get(parts, host, found[0], port, max_bytes, deadline)
        if isinstance(answer, bytes):
            return answer
        address = _redirect_url(address, answer)
    raise _fetch_error(host, f"more than {MAX_REDIRECTS} redirects")


def _parse_url(address: str, hosts: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(address)
        host_and_port = parts.hostname, parts.port
    except ValueError as error:
        raise ServiceError(422, "image_url: not an address", "image_address") from error
    if parts.scheme not in ("http", "https") or parts.username is not None or not host_and_port[0]:
        raise ServiceError(422, "image_url: expected http(s)://host/..., without a user", "image_address")
    if host_and_port[0] not in {host.lower() for host in hosts}:
        raise ServiceError(403, "image_url: pictures are not fetched from this host; send the picture as a data URL", "image_address")
    return parts


def _redirect_url(address: str, redirect: str) -> str:
    try:
        return urljoin(address, redirect)
    except ValueError as error:
        raise ServiceError(422, "image_url: it leads to what is not an address", "image_address") from error


def _get(parts: SplitResult, host: str, ip: str, port: int, max_bytes: int, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
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
                raise _fetch_error(host, f"it answers {response.status}")
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise ServiceError(413, f"image_url: larger than {max_bytes:,} bytes", "too_large")
            if time.monotonic() >= deadline:
                raise _fetch_error(host, "not finished in time")
            return bytes(data)
    except (HTTPError, HTTPException, CertificateError, OSError) as error:
        raise _fetch_error(host, "it cannot be reached, or not in time") from error


@contextmanager
def _hard_timeout(seconds: float, connection: HTTPConnection) -> Iterator[list[socket.socket | None]]:
    """Ends the connection after so many seconds, in whatever state it is: a socket's own timeout begins anew with every byte.

    Yields where to put its socket, which the connection hands on to its response.
    """
    finished, sockets = threading.Event(), list[socket.socket | None]()

    def watch() -> None:
        remaining_seconds = seconds
        while not finished.wait(remaining_seconds):
            remaining_seconds = 0.1
            for found in filter(None, (connection.sock, *sockets)):
                with suppress(OSError):
                    # Not TLS's own, which would take the socket from the hands of who reads it.
                    socket.socket.shutdown(found, socket.SHUT_RDWR)

    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield sockets
    finally:
        finished.set()
        connection.close()


def _fetch_error(host: str, reason: str) -> ServiceError:
    return ServiceError(422, f"image_url: {host}: {reason}", "image_address")
