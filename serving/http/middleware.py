"""ASGI middleware: request id, bearer token, limits on size, number and time, and cancellation when the client disconnects.

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

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.error_responses import ServiceError, error_response
from serving.service import Service

log = logging.getLogger("tessera.serve")

PUBLIC_PATHS = frozenset({"/health"})
"""Paths that need no token."""

CLIENT_CLOSED_REQUEST = 499
"""Status in log and metrics of a request whose client disconnected."""

UTF8_CHARSET = re.compile(rb"^(?!.*charset.*charset).*;\s*charset=\"?utf-8\"?\s*(;|$)")
"""A content type whose only charset parameter is UTF-8."""

STREAM_GRACE_SECONDS = 5.0
"""Seconds after the deadline within which the client must have read a streamed response."""


@dataclass
class _RequestState:
    """State of one request.

    Args:
        request_id: id in log and responses.
        deadline: on the event loop's clock.
        start_time: on `time.monotonic`'s clock.
        status: status of the response, once it has begun.
        complete: whether the whole response was sent.
        disconnected: whether the client disconnected before that.
    """

    request_id: str
    deadline: float
    start_time: float = field(default_factory=time.monotonic)
    status: int | None = None
    complete: bool = False
    disconnected: bool = False


class RequestMiddleware:
    """Checks each request and passes it on to `app`."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service, self.settings = app, service, service.settings
        self.token = None if service.token is None else _digest(f"Bearer {service.token}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        deadline = asyncio.get_running_loop().time() + self.settings.deadline_seconds
        request_state = _RequestState(_request_id(headers), deadline)
        scope.setdefault("state", {}).update(request_id=request_state.request_id, deadline=deadline)
        try:
            await self._handle_with_limits(scope, headers, receive, send, request_state)
        finally:
            self._record(scope, request_state)

    async def _handle_with_limits(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send, request_state: _RequestState
    ) -> None:
        async def send_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                request_state.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_state.request_id.encode())]}
            request_state.complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async def refuse(error: ServiceError) -> None:
            if request_state.status is None:
                await error_response(error, request_state.request_id)(scope, receive, send_response)

        try:
            async with asyncio.timeout_at(request_state.deadline) as timeout:
                self._check_headers(scope, headers)
                await self._handle(scope, receive, send_response, request_state, timeout)
        except TimeoutError:
            seconds = self.settings.deadline_seconds
            await refuse(ServiceError(504, f"not answered within {seconds:g} seconds", "deadline"))
        except ServiceError as error:
            if b"expect" not in headers:
                await self._drain(receive, request_state)
            await refuse(error)

    def _check_headers(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises ServiceError for a request that can be refused before its body is read."""
        if self.token is not None and scope["path"] not in PUBLIC_PATHS:
            given = _digest(headers.get(b"authorization", b""))
            if not hmac.compare_digest(given, self.token):
                raise ServiceError(401, "a valid bearer token is required", "token", headers={"WWW-Authenticate": "Bearer"})
        kind = headers.get(b"content-type", b"").lower()
        if kind.startswith(b"multipart/") and b"charset" in kind and not UTF8_CHARSET.search(kind):
            # Some of Python's other codecs take minutes for a megabyte.
            raise ServiceError(415, "a form must be encoded in UTF-8", "charset")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_bytes:
            raise self._too_large()
        if _has_body(scope) and self.service.in_progress >= self.settings.max_batch + self.settings.max_queue:
            raise ServiceError(429, "too many requests are waiting", "queue_full", retry_after=self.service.batcher.retry_after)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, request_state: _RequestState, timeout: asyncio.Timeout) -> None:
        """Run the app, and cancel it when the client disconnects."""
        message_queue: asyncio.Queue[Message | ServiceError] = asyncio.Queue(1)

        async def receive_queued() -> Message:
            message = await message_queue.get()
            if isinstance(message, ServiceError):
                raise message
            return message

        async def send_response(message: Message) -> None:
            if message["type"] == "http.response.start":
                # From here on the stream itself observes the deadline; this timeout ends a stream that the client does not read.
                timeout.reschedule(request_state.deadline + STREAM_GRACE_SECONDS)
            await send(message)

        async def read_messages() -> None:
            bytes_read = 0
            while (message := await receive())["type"] != "http.disconnect":
                bytes_read += len(message.get("body", b""))
                if bytes_read > self.settings.max_bytes:
                    if message["more_body"]:
                        await self._drain(receive, request_state)
                    await message_queue.put(self._too_large())
                    return
                await message_queue.put(message)
            if not request_state.complete:
                request_state.disconnected = True
                app_task.cancel()

        async with AsyncExitStack() as exit_stack:
            scope["state"]["exit_stack"] = exit_stack
            app_task = asyncio.create_task(self._run(scope, receive_queued, send_response, request_state))
            receive_task = asyncio.create_task(read_messages())
            self.service.in_progress += _has_body(scope)
            try:
                await app_task
            except asyncio.CancelledError:
                if not request_state.disconnected:
                    raise
            finally:
                self.service.in_progress -= _has_body(scope)
                receive_task.cancel()

    async def _run(self, scope: Scope, receive: Receive, send: Send, request_state: _RequestState) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            # An error that was answered and logged ends here; any other is raised to the server.
            if scope["state"].get("failure") is not error:
                raise
            log.debug("request %s ended with %s", request_state.request_id, type(error).__name__)

    async def _drain(self, receive: Receive, request_state: _RequestState) -> None:
        """Read more of the body, up to a limit: a client that is still sending does not read the response."""
        remaining_bytes = 4 * self.settings.max_bytes
        try:
            async with asyncio.timeout_at(request_state.deadline):
                while remaining_bytes > 0 and (message := await receive()).get("more_body"):
                    remaining_bytes -= len(message.get("body", b""))
        except TimeoutError:
            log.info("request %s: the body did not end before the deadline", request_state.request_id)

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


def _has_body(scope: Scope) -> bool:
    """Whether a request counts as in progress: all but GET and HEAD."""
    return scope["method"] not in ("GET", "HEAD")


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The id that the client sent if it is well-formed, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex


def _digest(value: bytes) -> bytes:
    """SHA-256: of equal length for all values, so that the time of a comparison does not reveal the token's length."""
    return hashlib.sha256(value).digest()
