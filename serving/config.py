"""Settings of the HTTP service."""

from typing import Annotated

from pydantic import Field

from config_schema import section

PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0.0)]


@section
class ServeConfig:
    """The HTTP service: where it listens, which system answers, and what a client may ask of it."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network of the machine."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0: any free one, which is printed."""
    system: str | None = None
    """Name of the system of eval.systems that answers; null: the newest checkpoint, under the experiment's name."""
    token_env: str | None = None
    """Environment variable that holds the bearer token which every request but /health must bring; null: none is asked for."""
    max_batch: PositiveInt = 16
    """Most questions answered together."""
    max_wait_ms: Annotated[float, Field(ge=0.0)] = 25.0
    """Longest time that a question waits for others to be answered with; one that came alone, as the one before it, does not wait."""
    max_queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait beside those that are answered; more are refused (429)."""
    deadline_seconds: Seconds = 60.0
    """A request that is not answered after this time is given up (504)."""
    max_bytes: PositiveInt = 20_000_000
    """Largest body of a request in bytes, and largest picture that is fetched; more is refused (413)."""
    max_pixels: PositiveInt = 40_000_000
    """Largest picture in pixels; more is refused before it is decoded (413)."""
    max_images: PositiveInt = 8
    """Most pictures in a request."""
    max_candidates: PositiveInt = 16
    """Largest k of /vqa and n of chat completions."""
    max_question_chars: PositiveInt = 4000
    """Longest text of a request in characters."""
    max_new_tokens: PositiveInt = 512
    """Largest max_tokens of a chat completion, in tokens."""
    default_max_new_tokens: PositiveInt = 128
    """Tokens of a chat completion that names no max_tokens, at most max_new_tokens."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """Temperature of a chat completion that names none; 0: always the likeliest token."""
    search: bool = True
    """Whether pictures can be searched, added and removed; needs search.clip or rerank.clip."""
    max_results: PositiveInt = 50
    """Largest top_k of /text2image_search."""
    cache_mib: Annotated[float, Field(ge=0.0)] = 64.0
    """Memory for answers that were given before, in MiB; 0: every question is answered anew."""
    remote_hosts: tuple[str, ...] = ()
    """Hosts from which pictures are fetched where a client names an address; empty: addresses are refused."""
    remote_seconds: Seconds = 10.0
    """Longest time that fetching a picture may take."""
