"""Replies of endpoints on disk, a file each: what was paid for is never asked for again, whatever ended the run."""

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
    """One text of a reply; None where the endpoint held it back. `tokens` with their log-probabilities (nats), where it gave them."""

    text: str | None
    finish_reason: str | None = None
    tokens: tuple[str, ...] | None = None
    log_probs: tuple[float, ...] | None = None


class ResponseCache:
    """A folder of replies by the digest of what was asked; processes may share it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._locks_lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    @contextmanager
    def asking(self, key: str) -> Iterator[None]:
        """Held while a reply is looked up and fetched, so that the same question is not asked twice at once."""
        with self._locks_lock:
            lock = self._locks[key]
        with lock:
            yield

    def get(self, key: str) -> tuple[Choice, ...] | None:
        """The choices of a reply; None where there is none. Raises TesseraError for a file that is none of ours."""
        path = self._path(key)
        try:
            choices = json.loads(path.read_text(encoding="utf-8"))["choices"]
            return tuple(Choice(**{**choice, **{name: _tuple(choice[name]) for name in ("tokens", "log_probs")}}) for choice in choices)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise TesseraError(f"{path}: not a reply of an endpoint; delete it to have the question asked again") from error

    def put(self, key: str, cache_record: dict[str, Any], choices: tuple[Choice, ...], usage: object) -> None:
        """Keep a reply. asked: what the key was made of, for people; usage: tokens that the endpoint counted."""
        write_json(self._path(key), {"asked": cache_record, "choices": [asdict(choice) for choice in choices], "usage": usage})

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def cache_key(cache_record: dict[str, Any]) -> str:
    """Digest of all that makes an answer: address, model, messages, pictures and decoding."""
    text = json.dumps(cache_record, ensure_ascii=False, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
