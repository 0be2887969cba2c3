"""Pictures from an address that a client names: only from hosts that were configured, and never from a private network.

The address that a name stands for is checked and then used itself, so that it cannot become another one in between. Each
redirect is checked like the first address.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3

from serving.failures import ServiceError

REDIRECTS = 3
_CHUNK = 2**16


def is_public(address: str) -> bool:
    """True for an address of the open internet: not of this machine, not private, not link-local, no multicast."""
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    found = mapped or found
    return found.is_global and not found.is_multicast


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def fetch(
    address: str,
    hosts: tuple[str, ...],
    max_bytes: int,
    seconds: float,
    *,
    allowed: Callable[[str], bool] = is_public,
    addresses: Callable[[str, int], list[str]] = resolve,
) -> bytes:
    """The bytes at an http(s) address on one of `hosts`.

    Raises ServiceError: 403 where it may not be fetched, 413 where it is larger than `max_bytes`, 422 where it cannot be had
    in time. allowed: whether an IP address may be spoken to; addresses: those of a host.
    """
    deadline = time.monotonic() + seconds
    for _ in range(REDIRECTS + 1):
        parts = _checked(address, hosts)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
        try:
            found = addresses(host, port)
        except OSError as error:
            raise _failed(host, "its name cannot be resolved") from error
        if not found or not all(map(allowed, found)):
            raise ServiceError(403, f"image_url: {host} is not on the open internet", "picture_address")
        answer = _get(parts, host, found[0], port, max_bytes, deadline)
        if isinstance(answer, bytes):
            return answer
        address = urljoin(address, answer)
    raise _failed(host, f"more than {REDIRECTS} redirects")


def _checked(address: str, hosts: tuple[str, ...]) -> SplitResult:
    try:
        parts = urlsplit(address)
        named = parts.hostname, parts.port
    except ValueError as error:
        raise ServiceError(422, "image_url: not an address", "picture_address") from error
    if parts.scheme not in ("http", "https") or parts.username is not None or not named[0]:
        raise ServiceError(422, "image_url: expected http(s)://host/..., without a user", "picture_address")
    if named[0] not in {host.lower() for host in hosts}:
        raise ServiceError(403, "image_url: pictures are not fetched from this host; send the picture as a data URL", "picture_address")
    return parts


def _get(parts: SplitResult, host: str, ip: str, port: int, max_bytes: int, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    timeout = urllib3.Timeout(total=max(0.1, deadline - time.monotonic()))
    pool: urllib3.HTTPConnectionPool
    if parts.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(ip, port, timeout, retries=False, server_hostname=host, assert_hostname=host)
    else:
        pool = urllib3.HTTPConnectionPool(ip, port, timeout, retries=False)
    try:
        with pool:
            name = f"[{host}]" if ":" in host else host
            headers = {"Host": name if parts.port is None else f"{name}:{port}", "User-Agent": "tessera", "Accept-Encoding": "identity"}
            response = pool.request("GET", path, headers=headers, redirect=False, preload_content=False)
            if location := response.get_redirect_location():
                return str(location)
            if response.status != 200:
                raise _failed(host, f"it answers {response.status}")
            data = bytearray()
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise ServiceError(413, f"image_url: larger than {max_bytes:,} bytes", "too_large")
                if time.monotonic() > deadline:
                    raise _failed(host, "not finished in time")
            return bytes(data)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _failed(host, "it cannot be reached, or not in time") from error


def _failed(host: str, why: str) -> ServiceError:
    return ServiceError(422, f"image_url: {host}: {why}", "picture_address")
