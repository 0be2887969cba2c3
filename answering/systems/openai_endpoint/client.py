"""Requests to an OpenAI-compatible endpoint through the official client, with retries, a rate limit and strict parsing."""

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
from answering.systems.openai_endpoint.api_key import NO_KEY
from answering.systems.openai_endpoint.response_cache import Choice
from errors import TesseraError

RETRYABLE_STATUSES = frozenset({408, 409, 429})
"""Status codes below 500 after which a retry may succeed."""
MAX_RETRY_WAIT = 60.0
"""Seconds; longer only if the endpoint asks for it with Retry-After, up to ten minutes."""


class EndpointError(TesseraError):
    """A request failed. The message has the reason and never the API key."""


class RateLimiter:
    """Spaces the starts of requests evenly, at most `per_minute` in a minute; None: no limit. Thread-safe."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], object] = time.sleep):
        self.interval = 0.0 if per_minute is None else 60.0 / per_minute
        self.clock, self.sleep = clock, sleep
        self._lock, self._next = threading.Lock(), -math.inf

    def wait(self) -> None:
        """Block until the next request may start."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + self.interval
        if start > now:
            self.sleep(start - now)


class EndpointClient:
    """Sends chat completion requests. Thread-safe; once `stopped` is set, waiting threads give up."""

    def __init__(self, system: OpenAiSystem, key: str, sleep: Callable[[float], object] | None = None):
        self.system, self._key, self.stopped = system, key, threading.Event()
        self.sleep = sleep or self.stopped.wait
        self.rate_limiter = RateLimiter(system.requests_per_minute, sleep=self.sleep)
        # The official client's own retries would not be counted by the rate limiter.
        self._client = openai.OpenAI(api_key=key, base_url=system.base_url, timeout=system.timeout, max_retries=0)

    def complete(self, body: dict[str, Any]) -> tuple[tuple[Choice, ...], object]:
        """The choices of a response, and the token usage that the endpoint reports. Raises EndpointError."""
        raw = self._with_retries(lambda: self._client.chat.completions.with_raw_response.create(**body, extra_body=self.system.extra_body))
        try:
            reply = json.loads(raw.text)
            choices = tuple(_parse_choice(choice["message"], choice) for choice in reply["choices"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(self._redacted(f"the endpoint's response is not a chat completion: {raw.text[:200]!r}")) from error
        if not choices:
            raise EndpointError("the endpoint's response has no choices")
        return choices, reply.get("usage")

    def stream(self, body: dict[str, Any]) -> Iterator[Choice]:
        """The chunks of a streamed response with one choice. Only its start is retried. Raises EndpointError."""
        chunks = self._with_retries(lambda: self._client.chat.completions.create(**body, stream=True, extra_body=self.system.extra_body))
        try:
            for chunk in chunks:
                for choice in chunk.model_dump()["choices"] or []:
                    yield _parse_choice(choice["delta"], choice)
        except (openai.OpenAIError, httpx2.HTTPError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(self._redacted(f"the endpoint's stream was interrupted: {error}")) from None

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
                    # Raise without the cause: it contains the request with its headers, and the endpoint's message.
                    raise EndpointError(self._redacted(f"{_error_message(error)} ({tries} {'tries' if tries > 1 else 'try'})")) from None
                # Jitter, so that clients that were refused together do not retry together.
                self.sleep(max(_retry_after(error), min(wait, MAX_RETRY_WAIT)) * random.uniform(1.0, 1.25))
                wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def _redacted(self, text: str) -> str:
        """One line without the key, which an endpoint may repeat in its messages."""
        line = " ".join(text.split())[:500]
        return line if self._key == NO_KEY else line.replace(self._key, "***")


def _is_retryable(error: openai.OpenAIError) -> bool:
    if isinstance(error, openai.APIStatusError):
        # An exhausted quota has the status of a rate limit, but a retry does not help.
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
    """The Retry-After header in seconds, at most 600; 0 if it is missing or not a number."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    try:
        seconds = float(error.response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), 600.0) if math.isfinite(seconds) else 0.0


def _parse_choice(message: dict[str, Any], choice: dict[str, Any]) -> Choice:
    """A choice, or one chunk of a streamed one. Log-probabilities that are not finite are dropped."""
    text = message.get("content")
    if not isinstance(text, str | None):
        raise TypeError("the content is not text")
    if text is not None:
        # Lone surrogates, escaped in JSON, cannot be written to a file.
        text = text.encode("utf-8", "replace").decode()
    token_entries = (choice.get("logprobs") or {}).get("content") or []
    log_probs = tuple(float(token["logprob"]) for token in token_entries)
    if not token_entries or not all(map(math.isfinite, log_probs)):
        return Choice(text, choice.get("finish_reason"))
    return Choice(text, choice.get("finish_reason"), tuple(str(token["token"]) for token in token_entries), log_probs)
