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
    """A folder of responses, named by a digest of their requests. Processes may share it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._locks_lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """A lock held while a response is looked up and fetched, so that equal requests are not sent concurrently."""
        with self._locks_lock:
            lock = self._locks[key]
        with lock:
            yield

    def get(self, key: str) -> tuple[Choice, ...] | None:
        """The choices of a cached response; None if it is missing. Raises TesseraError for a file that is not a cached response."""
        path = self._path(key)
        try:
            choices = json.loads(path.read_text(encoding="utf-8"))["choices"]
            return tuple(Choice(**{**choice, **{name: _tuple(choice[name]) for name in ("tokens", "log_probs")}}) for choice in choices)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise TesseraError(f"{path}: not a cached response of an endpoint; delete it to have the question asked again") from error

    def put(self, key: str, cache_record: dict[str, Any], choices: tuple[Choice, ...], usage: object) -> None:
        """Cache a response.

        Args:
            key: `cache_key(cache_record)`.
            cache_record: everything that determines the response, for people.
            choices: the response.
            usage: tokens counted by the endpoint.
        """
        write_json(self._path(key), {"asked": cache_record, "choices": [asdict(choice) for choice in choices], "usage": usage})

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def cache_key(cache_record: dict[str, Any]) -> str:
    """A digest of everything that determines the response: URL, model, messages, images and decoding settings."""
    text = json.dumps(cache_record, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
