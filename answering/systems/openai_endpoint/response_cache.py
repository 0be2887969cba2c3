"""Responses of endpoints on disk, one file each, so that none is paid for twice, however a run ended."""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atomic_io import write_json
from errors import TesseraError


@dataclass(frozen=True, slots=True)
class Choice:
    """One text of a response; None if the endpoint withheld it. tokens, log_probs (nats): None if the endpoint returned none."""

    text: str | None
    finish_reason: str | None = None
    tokens: tuple[str, ...] | None = None
    log_probs: tuple[float, ...] | None = None


class ResponseCache:
    """A folder of responses, one file each, named by a digest of their requests. Processes may share it.

    A request is given as a record of everything that determines the response: URL, model, messages, images and decoding settings.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._locks_lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def locked_file(self, request: dict[str, Any]) -> Iterator[Path]:
        """The file of a response, locked while it is looked up and fetched, so that equal requests are not sent concurrently."""
        text = json.dumps(request, ensure_ascii=False, sort_keys=True, allow_nan=False)
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        with self._locks_lock:
            lock = self._locks[key]
        with lock:
            yield self.folder / key[:2] / f"{key}.json"


def read_response(path: Path) -> tuple[Choice, ...] | None:
    """The choices of a cached response; None if it is missing. Raises TesseraError for a file that is not a cached response."""
    try:
        choices = json.loads(path.read_text(encoding="utf-8"))["choices"]
        return tuple(Choice(**{**choice, **{name: _tuple(choice[name]) for name in ("tokens", "log_probs")}}) for choice in choices)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise TesseraError(f"{path}: not a cached response of an endpoint; delete it to have the question asked again") from error


def write_response(path: Path, request: dict[str, Any], choices: tuple[Choice, ...], usage: object) -> None:
    """Cache a response, with its request for people. usage: tokens counted by the endpoint."""
    write_json(path, {"asked": request, "choices": [asdict(choice) for choice in choices], "usage": usage})


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
