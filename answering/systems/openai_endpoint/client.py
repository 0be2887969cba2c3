"""One request to an OpenAI-compatible endpoint, through the official client: tried again, held back, and read strictly."""

import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai

from answering.config import OpenAiSystem
from answering.systems.openai_endpoint.api_key import redact
from answering.systems.openai_endpoint.response_cache import Choice
from errors import TesseraError

RETRYABLE_STATUSES = frozenset({408, 409, 429})
"""Statuses below 500 after which another try may succeed."""
MAX_RETRY_WAIT = 60.0
"""Seconds; an endpoint that asks for more gets more, up to ten minutes."""


class EndpointError(TesseraError):
    """A request that the endpoint did not answer, with its reason and without the key."""


class RateLimiter:
    """Begins of requests, evenly spaced so that a minute holds at most so many; None: no limit."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep):
        self.interval = 0.0 if per_minute is None else 60.0 / per_minute
        self.clock, self.sleep = clock, sleep
        self._lock, self._next = threading.Lock(), -math.inf

    def wait(self) -> None:
        """Return when the next request may begin."""
        with self._lock:
            now = self.clock()
            begin = max(now, self._next)
            self._next = begin + self.interval
        if begin > now:
            self.sleep(begin - now)


class EndpointClient:
    """Sends bodies of chat completions. Threads may share it; once `stopped` is set, they wait for nothing any more."""

    def __init__(self, system: OpenAiSystem, key: str, sleep: Callable[[float], object] | None = None):
        self.system, self._key, self.stopped = system, key, threading.Event()
        self.sleep = sleep or self.stopped.wait
        self.rate_limiter = RateLimiter(system.requests_per_minute, sleep=self.sleep)
        # The client's own further tries would not be counted by the pace.
        self._client = openai.OpenAI(api_key=key, base_url=system.base_url, timeout=system.timeout, max_retries=0)

    def complete(self, body: dict[str, Any]) -> tuple[tuple[Choice, ...], object]:
        """The choices of a reply, and the tokens that the endpoint counted. Raises EndpointError."""
        raw = self._with_retries(lambda: self._client.chat.completions.with_raw_response.create(**body, extra_body=self.system.extra_body))
        try:
            reply = json.loads(raw.text)
            choices = tuple(_parse_choice(choice["message"], choice) for choice in reply["choices"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(self._redacted(f"the endpoint's reply is no chat completion: {raw.text[:200]!r}")) from error
        if not choices:
            raise EndpointError("the endpoint's reply holds no choice")
        return choices, reply.get("usage")

    def stream(self, body: dict[str, Any]) -> Iterator[Choice]:
        """Pieces of the one choice of a reply, as they come; only its beginning is tried again. Raises EndpointError."""
        chunks = self._with_retries(lambda: self._client.chat.completions.create(**body, stream=True, extra_body=self.system.extra_body))
        try:
            for chunk in chunks:
                for choice in chunk.model_dump()["choices"] or []:
                    yield _parse_choice(choice["delta"], choice)
        except (openai.OpenAIError, httpx2.HTTPError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(self._redacted(f"the endpoint's stream broke off: {error}")) from None

    def _with_retries(self, send: Callable[[], Any]) -> Any:
        wait = self.system.retry_wait
        for retries_left in range(self.system.retries, -1, -1):
            self.rate_limiter.wait()
            if self.stopped.is_set():
                raise EndpointError("the run was interrupted")
            try:
                return send()
            except openai.OpenAIError as error:
                if not retries_left or not _is_retryable(error):
                    tries = self.system.retries - retries_left + 1
                    # Without the cause: it holds the request with its headers, and what the endpoint said.
                    raise EndpointError(self._redacted(f"{_error_message(error)} ({tries} {'tries' if tries > 1 else 'try'})")) from None
                # A little more than that, so that clients that were refused together do not come back together.
                self.sleep(max(_retry_after(error), min(wait, MAX_RETRY_WAIT)) * random.uniform(1.0, 1.25))
                wait *= 2
        raise AssertionError("a last try returns or raises")

    def _redacted(self, text: str) -> str:
        return redact(" ".join(text.split())[:500], self._key)


def _is_retryable(error: openai.OpenAIError) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, openai.APIStatusError):
        # A quota that is used up comes with the status of a rate limit, and does not pass.
        return (error.status_code in RETRYABLE_STATUSES and error.code != "insufficient_quota") or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def _error_message(error: openai.OpenAIError) -> str:
    if isinstance(error, openai.APIStatusError):
        message_text = error.body.get("message") if isinstance(error.body, dict) else None
        return f"the endpoint answered with status {error.status_code}: {message_text or error.message}"
    if isinstance(error, openai.APITimeoutError):
        return "the endpoint did not answer in time"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection to the endpoint: {error.__cause__ or error}"
    return f"the endpoint's answer cannot be read: {error}"


def _retry_after(error: openai.OpenAIError) -> float:
    """Seconds that the endpoint asks for, 0 where it says nothing that is a number, 600 at most."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    try:
        seconds = float(error.response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), 600.0) if math.isfinite(seconds) else 0.0


def _parse_choice(message: dict[str, Any], choice: dict[str, Any]) -> Choice:
    """A choice, or a piece of one. Log-probabilities that are no finite numbers are taken for none at all."""
    text = message.get("content")
    if not isinstance(text, str | None):
        raise TypeError("the content is no text")
    if text is not None:
        # Half a character, escaped in JSON, could not be written down.
        text = text.encode("utf-8", "replace").decode()
    token_entries = (choice.get("logprobs") or {}).get("content")
    if not token_entries:
        return Choice(text, choice.get("finish_reason"))
    log_probs = tuple(float(token["logprob"]) for token in token_entries)
    if not all(map(math.isfinite, log_probs)):
        return Choice(text, choice.get("finish_reason"))
    return Choice(text, choice.get("finish_reason"), tuple(str(token["token"]) for token in token_entries), log_probs)
