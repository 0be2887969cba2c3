"""What a client is told when something cannot be done: a status, a sentence, and the id of the request. Never a traceback."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger("tessera.serve")

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Names of kinds of errors by status, as OpenAI's clients know them; others are wrong requests below 500, else the server's."""


class ServiceError(HTTPException):
    """A request that is refused or failed. code: a word for programs; retry_after: seconds after which to try again."""

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None, headers: dict[str, str] | None = None):
        retry_headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, message, {**(headers or {}), **retry_headers})
        self.code = code


def error_body(status: int, message: str, code: str | None, request_id: str) -> dict[str, Any]:
    """The JSON of a failure; `error` is as OpenAI's clients expect it."""
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"status": "error", "error": error, "request_id": request_id}


def error_response(error: HTTPException, request_id: str) -> JSONResponse:
    """A failure as a response."""
    code = error.code if isinstance(error, ServiceError) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return JSONResponse(error_body(error.status_code, str(error.detail), code, request_id), error.status_code, error.headers)


def install_error_handlers(app: FastAPI) -> None:
    """Let every failure of the app leave in this form."""

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        return error_response(error, request.state.request_id)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not repeated: it may be a picture.
        problems = [f"{'.'.join(map(str, one['loc'][1:])) or 'body'}: {one['msg'].lower()}" for one in error.errors()]
        return error_response(ServiceError(422, "; ".join(problems[:5]), "invalid_request"), request.state.request_id)

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed: %s: %s", request.state.request_id, type(error).__name__, error, exc_info=error)
        # The framework raises it once more behind this; who meets it there knows that it was said.
        request.state.failure = error
        return error_response(ServiceError(500, "the server failed; its log has the request id", "internal"), request.state.request_id)
