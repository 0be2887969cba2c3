"""Download an image from an http(s) URL, with limits on size and time."""

import time

import requests

from errors import TesseraError

MAX_BYTES = 32 * 2**20
"""Default limit of the size of the body."""

TIMEOUT_SECONDS = 20.0
"""Default limit of the time for the whole download."""

_CHUNK = 2**16


def is_url(name: str) -> bool:
    """Whether `name` is an http(s) URL and not a file."""
    return name.lower().startswith(("http://", "https://"))


def fetch(url: str, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """Download a URL. timeout: seconds for the whole download.

    Raises TesseraError on a connection error or an HTTP error status, when the body is larger than `max_bytes`, or on timeout.
    """
    deadline = time.monotonic() + timeout
    data = bytearray()
    try:
        with requests.get(url, stream=True, timeout=timeout / 2, headers={"User-Agent": "tessera"}) as response:
            if not response.ok:
                raise TesseraError(f"{url}: the server answers {response.status_code} {response.reason}")
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise TesseraError(f"{url}: larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TesseraError(f"{url}: not finished after {timeout:g} seconds")
    except requests.RequestException as error:
        raise TesseraError(f"{url}: cannot be fetched ({' '.join(str(error).split())[:200]})") from error
    return bytes(data)
