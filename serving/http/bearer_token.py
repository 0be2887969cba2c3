"""The bearer token that clients must send (RFC 6750)."""

import hashlib
import hmac

from starlette.datastructures import Headers

from serving.http.error_responses import ServiceError


class BearerToken:
    """The token of a service; only its digest is kept."""

    def __init__(self, token: str):
        self._expected = _digest(token.encode())

    def check(self, headers: Headers) -> None:
        """Raise ServiceError 401 unless there is one Authorization header, with the scheme Bearer in any case and this token."""
        given = headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        is_same = hmac.compare_digest(_digest(token.strip(" ").encode("latin-1")), self._expected)
        if scheme.lower() != "bearer" or not is_same:
            message = "exactly one Authorization header is expected" if len(given) > 1 else "a valid bearer token is required"
            raise ServiceError(401, message, "token", headers={"WWW-Authenticate": "Bearer"})


def _digest(value: bytes) -> bytes:
    """SHA-256: of equal length for all values, so that the time of a comparison does not reveal the token's length."""
    return hashlib.sha256(value).digest()
