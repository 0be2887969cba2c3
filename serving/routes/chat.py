"""POST /v1/chat/completions and GET /v1/models: OpenAI's API, with complete or streamed (server-sent events) answers."""

import asyncio
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from answering.protocol import Decoding, ImageInput
from answering.protocol import Request as ModelRequest
from answering.reply import without_placeholders
from dataset.sample import IMAGE_PLACEHOLDER, Message, detect_language, join_parts
from serving.engine import ChatTask, GenerationStarted, TextPiece
from serving.http.error_responses import ServiceError, error_body
from serving.inputs import image_decoder
from serving.inputs.safe_fetch import fetch
from serving.routes.chat_schema import ChatMessage, ChatRequest, ChatResponse, ImagePart, ModelList
from serving.service import Service

SERVER_START_TIME = int(time.time())
"""Creation time of the model in GET /v1/models, in seconds since the epoch."""


@dataclass
class Completion:
    """One completion in progress.

    Args:
        model: model name in the response.
        n: number of answers.
        logprobs: whether log-probabilities are returned.
        usage: whether a stream ends with the token counts.
        id: id of the completion.
        created: time in seconds since the epoch.
        prompt_tokens: length of the prompt; None if the system does not report it.
        tokens: number of generated tokens so far.
    """

    model: str
    n: int
    logprobs: bool
    usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int | None = None
    tokens: int = 0

    def common_fields(self, kind: str) -> dict[str, Any]:
        """The fields of every response and every chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage_counts(self) -> dict[str, int] | None:
        """Token counts of prompt and answers; None if the system does not report them."""
        if self.prompt_tokens is None:
            return None
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    def to_response(self, events: list[GenerationStarted | TextPiece]) -> dict[str, Any]:
        """The completion as one response."""
        pieces = list(self.count_tokens(events))
        return {
            **self.common_fields("chat.completion"),
            "choices": [self._choice(i, pieces) for i in range(self.n)],
            "usage": self.usage_counts(),
        }

    def count_tokens(self, events: list[GenerationStarted | TextPiece]) -> Iterator[TextPiece]:
        """The text pieces of the events, counted as tokens."""
        for event in events:
            if isinstance(event, GenerationStarted):
                self.prompt_tokens = event.prompt_tokens
            else:
                self.tokens += 1
                yield event

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        """One chunk as a server-sent event."""
        chunk = {**self.common_fields("chat.completion.chunk"), "choices": choices}
        return _event({**chunk, "usage": usage} if self.usage else chunk)

    def first_chunk(self) -> str:
        """The first chunk: the role of each answer."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self.n)])

    def piece_chunks(self, piece: TextPiece) -> Iterator[str]:
        """The chunks of a text piece."""
        if piece.text or (self.logprobs and piece.token is not None):
            logprobs = {"content": _logprobs([piece])} if self.logprobs else None
            delta = {"content": piece.text}
            yield self.chunk([{"index": piece.sample, "delta": delta, "logprobs": logprobs, "finish_reason": None}])
        if piece.end:
            yield self.chunk([{"index": piece.sample, "delta": {}, "logprobs": None, "finish_reason": piece.end}])

    def _choice(self, sample: int, pieces: list[TextPiece]) -> dict[str, Any]:
        sample_pieces = [piece for piece in pieces if piece.sample == sample]
        return {
            "index": sample,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in sample_pieces)},
            "logprobs": {"content": _logprobs(sample_pieces)} if self.logprobs else None,
            "finish_reason": next((piece.end for piece in sample_pieces if piece.end), None),
        }


def router(service: Service) -> APIRouter:
    """The routes of OpenAI's API."""
    routes = APIRouter(prefix="/v1", tags=["chat"])

    @routes.get("/models", summary="Names of the models", response_model=ModelList)
    async def models() -> Any:
        service.ready()
        return {
            "object": "list",
            "data": [{"id": service.plan.name, "object": "model", "created": SERVER_START_TIME, "owned_by": "tessera"}],
        }

    @routes.post("/chat/completions", summary="Continue a conversation about images", response_model=ChatResponse)
    async def completions(chat_request: ChatRequest, http_request: Request) -> Any:
        engine, decoding = service.ready(), _requested_decoding(service, chat_request)
        if chat_request.model != service.plan.name:
            raise ServiceError(404, f"model: there is no model {chat_request.model!r}, only {service.plan.name!r}", "model_not_found")
        if chat_request.logprobs and not engine.streams_tokens:
            raise ServiceError(422, "logprobs: this system does not report them", "logprobs")
        completion = Completion(
            chat_request.model,
            chat_request.n or 1,
            bool(chat_request.logprobs),
            bool(chat_request.stream_options and chat_request.stream_options.include_usage),
        )
        messages = tuple(_message(service, turn) for turn in chat_request.messages)
        image_urls = [url for turn in chat_request.messages for url in _image_urls_of(turn)]
        if len(image_urls) > service.settings.max_images:
            raise ServiceError(422, f"messages: at most {service.settings.max_images} images, found {len(image_urls)}", "images")
        data = [await _load_image_bytes(service, url) for url in image_urls]
        repeatable = decoding.strategy == "greedy" or chat_request.seed is not None
        image_hashes = [hashlib.sha256(image).hexdigest() for image in data]
        # A digest, since a conversation may be long and the size of the cache is bounded.
        key = hashlib.sha256(repr((messages, image_hashes, decoding, chat_request.seed)).encode()).digest()
        cached = service.cache.get(key) if repeatable else None
        if cached is None:
            exit_stack = http_request.state.exit_stack
            decoded = await exit_stack.enter_async_context(service.decoder.decoded(data))
            question = _build_request(messages, decoded, chat_request.seed)
            job = exit_stack.enter_context(service.submit(ChatTask(question, decoding, bool(chat_request.stream))))
            events = _cache_when_done(service, key if repeatable else None, job.events())
        else:
            events = _replay(cached)
        if not chat_request.stream:
            return JSONResponse(completion.to_response(_repeat_for_samples([event async for event in events], decoding, completion.n)))
        # A request that cannot be answered fails before its first event, so that the response still gets an error status.
        first = await anext(events)
        event_stream = _stream(completion, _prepend(first, events), decoding, http_request.state)
        return StreamingResponse(
            event_stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )

    return routes


async def _stream(
    completion: Completion, events: AsyncIterator[GenerationStarted | TextPiece], decoding: Decoding, state: Any
) -> AsyncIterator[str]:
    yield completion.first_chunk()
    try:
        async with asyncio.timeout_at(state.deadline):
            async for event in events:
                for piece in completion.count_tokens(_repeat_for_samples([event], decoding, completion.n)):
                    for chunk in completion.piece_chunks(piece):
                        yield chunk
    except TimeoutError:
        yield _event(error_body(504, "the answer was not finished before the deadline", "deadline", state.request_id))
        return
    except ServiceError as error:
        yield _event(error_body(error.status_code, str(error.detail), error.code, state.request_id))
        return
    if completion.usage:
        yield completion.chunk([], completion.usage_counts())
    yield "data: [DONE]\n\n"


async def _cache_when_done(
    service: Service, key: object | None, events: AsyncIterator[GenerationStarted | TextPiece]
) -> AsyncIterator[GenerationStarted | TextPiece]:
    """The events; after the last one they are cached under `key`, if there is one."""
    seen_events = []
    async for event in events:
        seen_events.append(event)
        service.metrics.tokens.inc(isinstance(event, TextPiece) and service.ready().streams_tokens)
        yield event
    if key is not None:
        service.cache.put(key, seen_events, sum(200 + len(str(event)) for event in seen_events))


async def _replay(events: list[GenerationStarted | TextPiece]) -> AsyncIterator[GenerationStarted | TextPiece]:
    for event in events:
        yield event


async def _prepend(
    first: GenerationStarted | TextPiece, rest: AsyncIterator[GenerationStarted | TextPiece]
) -> AsyncIterator[GenerationStarted | TextPiece]:
    yield first
    async for event in rest:
        yield event


def _repeat_for_samples(events: list[GenerationStarted | TextPiece], decoding: Decoding, n: int) -> list[GenerationStarted | TextPiece]:
    """Greedy decoding generates one answer: its events are repeated for all n answers."""
    copies = n if decoding.strategy == "greedy" else 1
    return [
        event if isinstance(event, GenerationStarted) else dataclasses.replace(event, sample=event.sample + copy)
        for event in events
        for copy in range(1 if isinstance(event, GenerationStarted) else copies)
    ]


def _requested_decoding(service: Service, chat_request: ChatRequest) -> Decoding:
    """The decoding of a request. Raises ServiceError 422 if a parameter exceeds the service's limits."""
    settings, n = service.settings, chat_request.n or 1
    max_new_tokens_limit = (
        chat_request.max_completion_tokens or chat_request.max_tokens or min(settings.default_max_new_tokens, settings.max_new_tokens)
    )
    temperature = settings.temperature if chat_request.temperature is None else chat_request.temperature
    for name, value, limit in (("n", n, settings.max_candidates), ("max_tokens", max_new_tokens_limit, settings.max_new_tokens)):
        if value > limit:
            raise ServiceError(422, f"{name}: at most {limit}, found {value}", name)
    if temperature == 0:
        return Decoding(num_candidates=1, strategy="greedy", max_new_tokens=max_new_tokens_limit)
    return Decoding(num_candidates=n, strategy="sample", temperature=temperature, max_new_tokens=max_new_tokens_limit)


def _message(service: Service, turn: ChatMessage) -> Message:
    """A turn with its parts joined as those of the training data. Raises ServiceError 422 if its text is too long."""
    given = [turn.content] if isinstance(turn.content, str) else turn.content
    parts = [None if isinstance(part, ImagePart) else part if isinstance(part, str) else part.text for part in given]
    num_chars = sum(len(part) for part in parts if part is not None)
    if num_chars > service.settings.max_question_chars:
        raise ServiceError(
            422, f"messages: at most {service.settings.max_question_chars} characters a turn, found {num_chars}", "text_length"
        )
    content = join_parts(IMAGE_PLACEHOLDER if part is None else without_placeholders(part) for part in parts)
    return Message("system" if turn.role == "developer" else turn.role, content)


def _image_urls_of(turn: ChatMessage) -> list[str]:
    """URLs of the images of a turn. Raises ServiceError 422 if another turn than the user's has images."""
    image_urls = [part.image_url.url for part in turn.content if isinstance(part, ImagePart)] if isinstance(turn.content, list) else []
    if image_urls and turn.role != "user":
        raise ServiceError(422, f"messages: a turn of the {turn.role} has an image; only turns of the user may have images", "images")
    return image_urls


async def _load_image_bytes(service: Service, url: str) -> bytes:
    """The bytes of an image given as a data URL or, on an allowed host, as an http(s) URL. Raises ServiceError."""
    settings = service.settings
    if url[:5].lower() == "data:":
        return image_decoder.decode_data_url(url)
    if url.lower().startswith(("http://", "https://")) and settings.remote_hosts:
        return await asyncio.to_thread(fetch, url, settings.remote_hosts, settings.max_bytes, settings.remote_seconds)
    raise ServiceError(422, "image_url: expected data:image/...;base64,...; other URLs are not fetched", "image_address")


def _build_request(messages: tuple[Message, ...], images: Sequence[ImageInput], seed: int | None) -> ModelRequest:
    """The conversation as a request of the model. With a seed the same conversation gets the same samples."""
    request_id = uuid.uuid4().hex if seed is None else f"seed {seed}"
    return ModelRequest(request_id, tuple(images), messages, "conversation", detect_language(messages[-1].content))


def _logprobs(pieces: list[TextPiece]) -> list[dict[str, Any]]:
    return [
        {
            "token": piece.token,
            "logprob": piece.log_prob,
            # A token may be part of a multi-byte character.
            "bytes": None if "\ufffd" in piece.token else list(piece.token.encode()),
            "top_logprobs": [],
        }
        for piece in pieces
        if piece.token is not None
    ]


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
