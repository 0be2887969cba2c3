"""Error responses: a status, a message and the id of the request as JSON. Never a traceback."""

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.http.validation_messages import describe_problems

log = logging.getLogger("tessera.serve")

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's error types by status. Other statuses are `invalid_request_error` below 500 and `server_error` from 500 on."""

_FIELD = re.compile(r"[a-z_]\w*(\[\d+\]|\.\w+)*(?=: )")
"""The field that a message about a request begins with, such as `messages[0].content: ...`."""


class ServiceError(HTTPException):
    """A refused or failed request.

    Args:
        status: HTTP status.
        message: text for people.
        code: error code for programs.
        retry_after: in seconds, for the header Retry-After.
        headers: further ones.
    """

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None, headers: dict[str, str] | None = None):
        retry_headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, {**(headers or {}), **retry_headers})
        self.code = code


def error_body(status: int, message: str, code: str | None, request_id: str) -> dict[str, Any]:
    """The JSON of an error response; `error` has the fields of OpenAI's API."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    field = _FIELD.match(message) if status < 500 else None
    error = {"message": message, "type": kind, "param": field and field[0], "code": code}
    return {"status": "error", "error": error, "request_id": request_id}


def error_response(error: HTTPException, request_id: str) -> JSONResponse:
    """The response to an exception."""
    code = error.code if isinstance(error, ServiceError) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return JSONResponse(error_body(error.status_code, str(error.detail), code, request_id), error.status_code, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every exception of the app with an error response of this form."""

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error, request.state.request_id)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(ServiceError(422, describe_problems(error.errors(), error.body), "invalid_request"), request.state.request_id)

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed: %s: %s", request.state.request_id, type(error).__name__, error, exc_info=error)
        # Starlette raises the error again after this handler; the middleware sees by this that it was logged.
        request.state.failure = error
        internal = ServiceError(500, "internal error; the server's log has the details under the request id", "internal")
        return error_response(internal, request.state.request_id)
