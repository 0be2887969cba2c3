"""Settings of the HTTP service."""

from typing import Annotated

from pydantic import Field

from config_schema import section

PositiveInt = Annotated[int, Field(ge=1)]
HostName = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?)$")]
"""A host name without scheme and port, or a pattern of names: *.example.org, *."""
Origin = Annotated[str, Field(pattern=r"^(\*|null|https?://[A-Za-z0-9_.\[\]:-]*[A-Za-z0-9_\]])$")]
"""Scheme, host and port of a page's URL, without a path; "null" for pages without an origin, such as files; * for all pages."""
Seconds = Annotated[float, Field(gt=0.0)]


@section
class ServeConfig:
    """The HTTP service: its address, the system that answers, and the limits of a request."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all network interfaces."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: a free port, which is printed."""
    system: str | None = None
    """Name of the system of eval.systems that answers; null: the latest checkpoint, under the experiment's name."""
    token_env: str | None = None
    """Environment variable that holds the bearer token required for every request but /health; null: no token is required."""
    allowed_hosts: tuple[HostName, ...] = ()
    """Host names under which the service and the demo page are reached, such as vqa.example.org or *.example.org, in addition to
    localhost and IP addresses; "*": any. Other names get 403 (DNS rebinding). Not checked where a token is required."""
    allowed_origins: tuple[Origin, ...] = ()
    """Web sites whose pages may use the service, such as https://example.org, in addition to its own; "*": any. Pages of other sites
    get 403. Not checked where a token is required, but their scripts can read answers only if they are listed here (CORS)."""
    max_batch: PositiveInt = 16
    """Largest number of questions in a batch."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 25.0
    """Time in ms after a batch in which the next one waits to become as large; a question that finds the model idle is answered at once."""
    max_queue: Annotated[int, Field(ge=0)] = 64
    """Largest number of waiting requests, in addition to those being answered; further requests get 429."""
    max_uploads: PositiveInt = 256
    """Largest number of requests whose body is still being read. One more takes the place of the one that has been silent for longest,
    for a second at least (408); else it gets 429."""
    max_upload_bytes: PositiveInt = 500_000_000
    """Largest number of bytes of all bodies that are still being read, at least max_bytes; beyond it as with max_uploads."""
    upload_silence_seconds: Seconds = 10.0
    """Longest time in seconds in which nothing of a body arrives (408)."""
    deadline_seconds: Seconds = 60.0
    """Timeout of a request in seconds (504)."""
    max_bytes: PositiveInt = 20_000_000
    """Largest request body, and largest image fetched from a URL, in bytes; larger ones get 413."""
    max_pixels: PositiveInt = 40_000_000
    """Largest image in pixels; a larger one gets 413 before it is decoded."""
    max_images: PositiveInt = 8
    """Largest number of images in a request."""
    max_candidates: PositiveInt = 16
    """Largest k of /vqa and n of chat completions."""
    max_question_chars: PositiveInt = 4000
    """Longest text in characters: a question, a search text or a turn of a conversation."""
    max_new_tokens: PositiveInt = 512
    """Longest answer of a chat completion, in tokens; a larger max_tokens counts as this."""
    default_max_new_tokens: PositiveInt = 128
    """max_tokens of a chat completion that does not set it; at most max_new_tokens."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """Temperature of a chat completion that does not set it; 0: greedy decoding."""
    search: bool = True
    """Whether images can be searched, added and removed; needs search.clip or rerank.clip."""
    max_results: PositiveInt = 50
    """Largest top_k of /text2image_search."""
    cache_mib: Annotated[float, Field(ge=0.0)] = 64.0
    """Size of the answer cache in MiB; 0: no cache."""
    remote_hosts: tuple[str, ...] = ()
    """Hosts from which images may be fetched by URL; empty: URLs are refused."""
    remote_seconds: Seconds = 10.0
    """Timeout of fetching an image, in seconds."""
