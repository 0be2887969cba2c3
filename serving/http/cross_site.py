"""Keeps other web pages from using a service through the browser of somebody who can reach it.

A page of another site sends its own Origin. One whose host name was pointed at this machine (DNS rebinding) sends that name as Host.
Programs send no Origin, and are not affected.
"""

import ipaddress
import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.http.error_responses import ServiceError, error_response

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Ports that a browser leaves out."""


@dataclass(frozen=True)
class CrossSiteRules:
    """What may be asked for, and by which pages.

    Args:
        hosts: host names of the service in addition to localhost and all IP addresses, which no DNS server can hand out as its own;
            "*.example.org": all names below it; "*": all.
        origins: origins whose pages may use the service, such as https://example.org; "*": all.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def check(self, headers: Headers) -> None:
        """Raise ServiceError 403 unless Host names this service, and Origin, if there is one, is its own or allowed."""
        given = headers.getlist("host")
        host, port = _split_host(given[0]) if len(given) == 1 else ("", None)
        if not self._is_own_host(host):
            message = f"the host {host!r:.100} is not a name of this service; names besides localhost and IP addresses: serve.allowed_hosts"
            raise ServiceError(403, message, "host")
        for origin in headers.getlist("origin"):
            is_allowed = "*" in self.origins or origin.lower() in map(str.lower, self.origins)
            if not is_allowed and not _is_same_site(origin, host, port):
                message = f"a page of {origin!r:.100} may not use this service; pages of other sites are allowed in serve.allowed_origins"
                raise ServiceError(403, message, "origin")

    def _is_own_host(self, host: str) -> bool:
        is_local = host == "localhost" or host.endswith(".localhost") or _is_ip_address(host)
        return is_local or any(
            allowed == "*" or host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:]))
            for allowed in map(str.lower, self.hosts)
        )


class CrossSiteMiddleware:
    """ASGI middleware that applies the rules to every request, for an app that does not do so itself."""

    def __init__(self, app: ASGIApp, rules: CrossSiteRules):
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                self.rules.check(Headers(scope=scope))
            except ServiceError as error:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                else:
                    await error_response(error, uuid.uuid4().hex)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _split_host(value: str) -> tuple[str, int | None]:
    """Host name in lower case, without brackets and final dot, and port, of a Host header; an empty name if it is malformed."""
    try:
        parts = urlsplit(f"//{value.strip()}")
        if parts.netloc != value.strip() or "@" in value:
            return "", None
        return (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return "", None


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_same_site(origin: str, host: str, port: int | None) -> bool:
    """Whether an origin is the service under the name and port of the Host header. The scheme is not compared: a proxy adds TLS."""
    scheme, separator, rest = origin.partition("://")
    default_port = DEFAULT_PORTS.get(scheme.lower())
    if not separator or default_port is None:
        return False
    origin_host, origin_port = _split_host(rest)
    return origin_host != "" and (origin_host, origin_port or default_port) == (host, port or default_port)
