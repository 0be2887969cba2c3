"""ASGI middleware: request id, bearer token, other sites, limits on size, number and time, and cancellation when the client disconnects.

Context managers that a handler enters into `request.state.exit_stack` are closed when the request ends, however it ends.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.cross_site import CrossSiteRules
from serving.http.error_responses import ServiceError, error_response
from serving.service import Service

log = logging.getLogger("tessera.serve")

CLIENT_CLOSED_REQUEST = 499
"""Status in log and metrics of a request whose client disconnected."""

UTF8_CHARSET = re.compile(r"^(?!.*charset.*charset).*;\s*charset=\"?utf-8\"?\s*(;|$)")
"""A content type whose only charset parameter is UTF-8."""

STREAM_GRACE_SECONDS = 5.0
"""Seconds after the deadline within which the client must have read a streamed response."""

LINGER_SECONDS = 5.0
"""Longest time in which the rest of a body is read and thrown away after its request was refused."""


@dataclass
class _RequestState:
    """State of one request.

    Args:
        request_id: id in log and responses.
        deadline: on the event loop's clock.
        is_body_complete: whether nothing of the request is left to be read.
        start_time: on `time.monotonic`'s clock.
        status: status of the response, once it has begun.
        complete: whether the whole response was sent.
        disconnected: whether the client disconnected before that.
        in_queue: whether the request counts as one in progress, which GET and HEAD never do.
        refusal: why the request was refused while its body was being read.
    """

    request_id: str
    deadline: float
    is_body_complete: bool
    start_time: float = field(default_factory=time.monotonic)
    status: int | None = None
    complete: bool = False
    disconnected: bool = False
    in_queue: bool = False
    refusal: ServiceError | None = None


class RequestMiddleware:
    """Checks each request and passes it on to `app`."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service, self.settings = app, service, service.settings
        self.rules = CrossSiteRules((self.settings.host, *self.settings.allowed_hosts), self.settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        deadline = asyncio.get_running_loop().time() + self.settings.deadline_seconds
        given_id = headers.get("x-request-id", "")
        request_id = given_id if re.fullmatch(r"[\w.-]{1,64}", given_id, re.ASCII) else uuid.uuid4().hex
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
        request_state = _RequestState(request_id, deadline, not has_body)
        scope.setdefault("state", {}).update(request_id=request_id, deadline=deadline)
        try:
            await self._handle_with_limits(scope, headers, receive, send, request_state)
        finally:
            self._record(scope, request_state)

    async def _handle_with_limits(self, scope: Scope, headers: Headers, receive: Receive, send: Send, request_state: _RequestState) -> None:
        async def send_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                request_state.status = message["status"]
                # The protocol may then send a comment between two events.
                scope["state"]["is_event_stream"] = "text/event-stream" in Headers(raw=message["headers"]).get("content-type", "")
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_state.request_id.encode())]}
            request_state.complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            async with asyncio.timeout_at(request_state.deadline) as timeout:
                self._check_headers(scope, headers)
                await self._handle(scope, receive, send_response, request_state, timeout)
        except (TimeoutError, ServiceError) as error:
            late = ServiceError(504, f"not answered within {self.settings.deadline_seconds:g} seconds", "deadline")
            refusal = error if isinstance(error, ServiceError) else late
            await self._refuse(refusal, scope, receive, send_response, request_state)

    def _check_headers(self, scope: Scope, headers: Headers) -> None:
        """Raises ServiceError for a request that can be refused before its body is read. /health needs no token."""
        if self.service.token is None:
            self.rules.check(headers)
        elif scope["path"] != "/health":
            _check_token(headers, self.service.token)
        for kind in map(str.lower, headers.getlist("content-type")):
            if kind.startswith("multipart/") and "charset" in kind and not UTF8_CHARSET.search(kind):
                # Some of Python's other codecs take minutes for a megabyte.
                raise ServiceError(415, "a form must be encoded in UTF-8", "charset")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.settings.max_bytes:
            raise self._too_large()
        self._check_queue(scope)

    def _check_queue(self, scope: Scope) -> None:
        """Raises ServiceError 429 if there is no place for one more request. GET and HEAD take none."""
        is_full = self.service.in_progress >= self.settings.max_batch + self.settings.max_queue
        if is_full and scope["method"] not in ("GET", "HEAD"):
            raise ServiceError(429, "too many requests are waiting", "queue_full", retry_after=self.service.batcher.retry_after)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_state: _RequestState, timeout: asyncio.Timeout) -> None:
        """Run the app, and cancel it when the client disconnects or its body is refused. Raises ServiceError for the latter."""
        message_queue: asyncio.Queue[Message] = asyncio.Queue(1)

        async def send_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                # From here on the stream itself observes the deadline; this timeout ends a stream that the client does not read.
                timeout.reschedule(request_state.deadline + STREAM_GRACE_SECONDS)
            await send(message)

        async def read_messages() -> None:
            try:
                await self._read_body(scope, receive, message_queue, request_state)
                while not request_state.disconnected and (await receive())["type"] != "http.disconnect":
                    """The body is complete; only the end of the connection is left to wait for."""
                request_state.disconnected = not request_state.complete
            except ServiceError as error:
                request_state.refusal = error
            if not request_state.complete:
                app_task.cancel()

        async with AsyncExitStack() as exit_stack:
            scope["state"]["exit_stack"] = exit_stack
            app_task = asyncio.create_task(self._run(scope, message_queue.get, send_response, request_state))
            read_task = asyncio.create_task(read_messages())
            try:
                await app_task
            except asyncio.CancelledError:
                if not request_state.disconnected and request_state.refusal is None:
                    raise
            finally:
                self.service.in_progress -= request_state.in_queue
                read_task.cancel()
        if request_state.refusal is not None:
            raise request_state.refusal

    async def _read_body(self, scope: Scope, receive: Receive, message_queue: asyncio.Queue[Message], request_state: _RequestState) -> None:
        """Read the body and pass it on; the last part once the request, now whole, has a place in the queue.

        Raises ServiceError if the body is too large, too slow or one too many, or the queue is full.
        """
        message: Message = {"type": "http.request", "body": b"", "more_body": False}
        if not request_state.is_body_complete:
            with self.service.bodies.reading() as body:
                while True:
                    message = await self.service.bodies.receive(body, receive)
                    request_state.is_body_complete = not message.get("more_body")
                    if body.num_bytes > self.settings.max_bytes:
                        raise self._too_large()
                    if request_state.is_body_complete:
                        break
                    await message_queue.put(message)
        if message["type"] == "http.disconnect":
            request_state.disconnected = True
            return
        self._check_queue(scope)
        request_state.in_queue = scope["method"] not in ("GET", "HEAD")
        self.service.in_progress += request_state.in_queue
        await message_queue.put(message)

    async def _run(self, scope: Scope, receive: Receive, send: Send, request_state: _RequestState) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            # An error that was answered and logged ends here; any other is raised to the server.
            if scope["state"].get("failure") is not error:
                raise
            log.debug("request %s ended with %s", request_state.request_id, type(error).__name__)

    async def _refuse(self, error: ServiceError, scope: Scope, receive: Receive, send: Send, request_state: _RequestState) -> None:
        """Send an error response, unless a response has begun. It does not wait for the rest of the body.

        The connection is closed after the response if the body is not complete. The end of the response, which has no bytes, is
        delayed until the rest was read: a client that is still sending when the connection is closed would lose the response.
        """
        if request_state.status is not None:
            return
        response = error_response(error, request_state.request_id)
        if request_state.is_body_complete:
            await response(scope, receive, send)
            return
        response.headers["Connection"] = "close"

        async def send_all_but_the_end(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await response(scope, receive, send_all_but_the_end)
        if "expect" not in Headers(scope=scope):
            await self._discard_body(receive, request_state)
        await send({"type": "http.response.body", "body": b""})

    async def _discard_body(self, receive: Receive, request_state: _RequestState) -> None:
        """Read more of the body, up to a limit of bytes and time."""
        remaining_bytes = 4 * self.settings.max_bytes
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while remaining_bytes > 0 and (message := await receive()).get("more_body"):
                    remaining_bytes -= len(message.get("body", b""))
        except TimeoutError:
            log.info("request %s: the body did not end within %g seconds", request_state.request_id, LINGER_SECONDS)

    def _too_large(self) -> ServiceError:
        return ServiceError(413, f"the request is larger than {self.settings.max_bytes:,} bytes", "too_large")

    def _record(self, scope: Scope, request_state: _RequestState) -> None:
        """Record a request in log and metrics, under the path of its route, so that clients cannot add metric labels."""
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        status = CLIENT_CLOSED_REQUEST if request_state.disconnected else request_state.status or 500
        seconds = time.monotonic() - request_state.start_time
        self.service.metrics.requests.labels(path, str(status)).inc()
        self.service.metrics.seconds.labels(path).observe(seconds)
        level = logging.DEBUG if path in ("/health", "/metrics") else logging.INFO
        log.log(level, "%s %s %s %d %.3f s", request_state.request_id, scope["method"], path, status, seconds)


def _check_token(headers: Headers, expected: str) -> None:
    """Raise ServiceError 401 unless there is one Authorization header, with the scheme Bearer in any case and this token (RFC 6750)."""
    given = headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    # Digests are of equal length for all values, so that the time of the comparison does not reveal the token's length.
    digests = [hashlib.sha256(value).digest() for value in (token.strip(" ").encode("latin-1"), expected.encode())]
    is_same = hmac.compare_digest(*digests)
    if scheme.lower() != "bearer" or not is_same:
        message = "exactly one Authorization header is expected" if len(given) > 1 else "a valid bearer token is required"
        raise ServiceError(401, message, "token", headers={"WWW-Authenticate": "Bearer"})
