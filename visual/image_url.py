"""The bytes of a picture at an http(s) address, with a limit on size and time."""

import time

import requests

from errors import TesseraError

MAX_BYTES = 32 * 2**20
SECONDS = 20.0
_CHUNK = 2**16


def is_address(name: str) -> bool:
    """True for what `fetch` takes rather than a file."""
    return name.lower().startswith(("http://", "https://"))


def fetch(address: str, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What stands at an address.

    Raises TesseraError when it does not answer with success, is larger than `max_bytes` or takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    data = bytearray()
    try:
        with requests.get(address, stream=True, timeout=seconds / 2, headers={"User-Agent": "tessera"}) as response:
            if not response.ok:
                raise TesseraError(f"{address}: the server answers {response.status_code} {response.reason}")
            for chunk in response.iter_content(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise TesseraError(f"{address}: larger than {max_bytes / 2**20:g} MiB")
                if time.monotonic() > deadline:
                    raise TesseraError(f"{address}: not finished after {seconds:g} seconds")
    except requests.RequestException as error:
        raise TesseraError(f"{address}: cannot be fetched ({' '.join(str(error).split())[:200]})") from error
    return bytes(data)
