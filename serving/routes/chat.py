"""POST /v1/chat/completions and GET /v1/models: what OpenAI's clients speak, whole or as a stream of events."""

import asyncio
import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from answering.protocol import Decoding
from answering.protocol import Request as Question
from answering.reply import question_request
from dataset.sample import IMAGE_MARK, Message
from serving.engine import Chat, Piece, Started
from serving.http.error_responses import ServiceError, body
from serving.inputs import image_decoder
from serving.inputs.safe_fetch import fetch
from serving.routes.chat_schema import ChatAnswer, ChatMessage, ChatRequest, ImagePart, ModelList
from serving.service import Service

STARTED = int(time.time())


@dataclass
class Completion:
    """One completion while it grows. usage: whether a stream ends with the number of tokens."""

    model: str
    n: int
    logprobs: bool
    usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    prompt_tokens: int | None = None
    tokens: int = 0

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer and every chunk says."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def count(self) -> dict[str, int] | None:
        """Tokens of prompt and answers; None where the system does not tell."""
        if self.prompt_tokens is None:
            return None
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    def whole(self, events: list[Started | Piece]) -> dict[str, Any]:
        """The completion as one answer."""
        pieces = list(self.read(events))
        return {**self.head("chat.completion"), "choices": [self._choice(i, pieces) for i in range(self.n)], "usage": self.count()}

    def read(self, events: list[Started | Piece]) -> Iterator[Piece]:
        """The pieces, each for the sample that it belongs to; tokens are counted."""
        for event in events:
            if isinstance(event, Started):
                self.prompt_tokens = event.prompt_tokens
            else:
                self.tokens += 1
                yield event

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> str:
        """An event of the stream."""
        chunk = {**self.head("chat.completion.chunk"), "choices": choices}
        return _event({**chunk, "usage": usage} if self.usage else chunk)

    def opening(self) -> str:
        """The first chunk: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self.n)])

    def chunks(self, piece: Piece) -> Iterator[str]:
        """A piece as events."""
        if piece.text or (self.logprobs and piece.token is not None):
            logprobs = {"content": _logprobs([piece])} if self.logprobs else None
            delta = {"content": piece.text}
            yield self.chunk([{"index": piece.sample, "delta": delta, "logprobs": logprobs, "finish_reason": None}])
        if piece.end:
            yield self.chunk([{"index": piece.sample, "delta": {}, "logprobs": None, "finish_reason": piece.end}])

    def _choice(self, sample: int, pieces: list[Piece]) -> dict[str, Any]:
        own = [piece for piece in pieces if piece.sample == sample]
        return {
            "index": sample,
            "message": {"role": "assistant", "content": "".join(piece.text for piece in own)},
            "logprobs": {"content": _logprobs(own)} if self.logprobs else None,
            "finish_reason": next((piece.end for piece in own if piece.end), None),
        }


def router(service: Service) -> APIRouter:
    """The routes that OpenAI's clients use."""
    routes = APIRouter(prefix="/v1", tags=["chat"])

    @routes.get("/models", summary="What can be asked", response_model=ModelList)
    async def models() -> Any:
        service.ready()
        return {"object": "list", "data": [{"id": service.plan.name, "object": "model", "created": STARTED, "owned_by": "tessera"}]}

    @routes.post("/chat/completions", summary="Continue a conversation about pictures", response_model=ChatAnswer)
    async def completions(asked: ChatRequest, http: Request) -> Any:
        engine, decoding = service.ready(), _decoding(service, asked)
        if asked.model != service.plan.name:
            raise ServiceError(404, f"model: there is no {asked.model!r} here, only {service.plan.name!r}", "model_not_found")
        if asked.logprobs and not engine.follows:
            raise ServiceError(422, "logprobs: this system does not tell them", "logprobs")
        completion = Completion(
            asked.model, asked.n or 1, bool(asked.logprobs), bool(asked.stream_options and asked.stream_options.include_usage)
        )
        turns, addresses = [_texts(service, turn) for turn in asked.messages], [_images(turn) for turn in asked.messages]
        if (number := sum(map(len, addresses))) > service.settings.max_pictures:
            raise ServiceError(422, f"messages: at most {service.settings.max_pictures} pictures, found {number}", "pictures")
        found = [[await _bytes(service, address) for address in group] for group in addresses]
        data = [one for group in found for one in group]
        repeatable = decoding.mode == "greedy" or asked.seed is not None
        seen = [[hashlib.sha256(one).hexdigest() for one in group] for group in found]
        # A digest, since a conversation may be long, and what is kept is bounded.
        key = hashlib.sha256(repr((turns, seen, decoding, asked.seed)).encode()).digest()
        known = service.cache.get(key) if repeatable else None
        if known is None:
            closing = http.state.closing
            decoded = iter(await closing.enter_async_context(service.decoder.decoded(data)))
            question = _question(turns, [[next(decoded) for _ in group] for group in found], asked.seed)
            job = closing.enter_context(service.submit(Chat(question, decoding, bool(asked.stream))))
            events = _kept(service, key if repeatable else None, job.events())
        else:
            events = _again(known)
        if not asked.stream:
            return JSONResponse(completion.whole(_copied([event async for event in events], decoding, completion.n)))
        # What cannot be answered is found out before the first event, so that it still gets a status of its own.
        first = await anext(events)
        said = _stream(completion, _joined(first, events), decoding, http.state)
        return StreamingResponse(said, media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    return routes


async def _stream(completion: Completion, events: AsyncIterator[Started | Piece], decoding: Decoding, state: Any) -> AsyncIterator[str]:
    yield completion.opening()
    try:
        async with asyncio.timeout_at(state.deadline):
            async for event in events:
                for piece in completion.read(_copied([event], decoding, completion.n)):
                    for chunk in completion.chunks(piece):
                        yield chunk
    except TimeoutError:
        yield _event(body(504, "the answer was not finished in time", "deadline", state.request_id))
        return
    except ServiceError as error:
        yield _event(body(error.status_code, str(error.detail), error.code, state.request_id))
        return
    if completion.usage:
        yield completion.chunk([], completion.count())
    yield "data: [DONE]\n\n"


async def _kept(service: Service, key: object | None, events: AsyncIterator[Started | Piece]) -> AsyncIterator[Started | Piece]:
    """The events; once the last has come they are kept, where there is a key."""
    seen = []
    async for event in events:
        seen.append(event)
        service.metrics.tokens.inc(isinstance(event, Piece) and service.ready().follows)
        yield event
    if key is not None:
        service.cache.put(key, seen, sum(200 + len(str(event)) for event in seen))


async def _again(events: list[Started | Piece]) -> AsyncIterator[Started | Piece]:
    for event in events:
        yield event


async def _joined(first: Started | Piece, rest: AsyncIterator[Started | Piece]) -> AsyncIterator[Started | Piece]:
    yield first
    async for event in rest:
        yield event


def _copied(events: list[Started | Piece], decoding: Decoding, n: int) -> list[Started | Piece]:
    """Without a temperature all n answers are the same one."""
    copies = n if decoding.mode == "greedy" else 1
    return [
        event if isinstance(event, Started) else dataclasses.replace(event, sample=event.sample + copy)
        for event in events
        for copy in range(1 if isinstance(event, Started) else copies)
    ]


def _decoding(service: Service, asked: ChatRequest) -> Decoding:
    """Raises ServiceError 422 for what is over the service's limits."""
    settings, n = service.settings, asked.n or 1
    longest = asked.max_completion_tokens or asked.max_tokens or min(settings.new_tokens, settings.max_new_tokens)
    temperature = settings.temperature if asked.temperature is None else asked.temperature
    for name, value, most in (("n", n, settings.max_candidates), ("max_tokens", longest, settings.max_new_tokens)):
        if value > most:
            raise ServiceError(422, f"{name}: at most {most}, found {value}", name)
    if temperature == 0:
        return Decoding(k=1, mode="greedy", max_new_tokens=longest)
    return Decoding(k=n, mode="sample", temperature=temperature, max_new_tokens=longest)


def _texts(service: Service, turn: ChatMessage) -> tuple[str, str]:
    """Role and text of a turn. Raises ServiceError 422 when it is too long."""
    parts = turn.content if isinstance(turn.content, list) else []
    text = "\n".join(part.text for part in parts if not isinstance(part, ImagePart)) if parts else str(turn.content or "")
    if len(text) > service.settings.max_question:
        raise ServiceError(422, f"messages: at most {service.settings.max_question} characters a turn, found {len(text)}", "text_length")
    return "system" if turn.role == "developer" else turn.role, text


def _images(turn: ChatMessage) -> list[str]:
    """Addresses of a turn's pictures. Raises ServiceError 422 when it is not the user's."""
    addresses = [part.image_url.url for part in turn.content if isinstance(part, ImagePart)] if isinstance(turn.content, list) else []
    if addresses and turn.role != "user":
        raise ServiceError(422, f"messages: a picture stands in a turn of the {turn.role}; only the user's may have some", "pictures")
    return addresses


async def _bytes(service: Service, address: str) -> bytes:
    """What a picture's address stands for. A path is none."""
    settings = service.settings
    if address[:5].lower() == "data:":
        return image_decoder.from_data_url(address)
    if address.lower().startswith(("http://", "https://")) and settings.remote_hosts:
        return await asyncio.to_thread(fetch, address, settings.remote_hosts, settings.max_bytes, settings.remote_seconds)
    raise ServiceError(422, "image_url: expected data:image/...;base64,...; addresses are not fetched", "picture_address")


def _question(turns: list[tuple[str, str]], images: list[list[Any]], seed: int | None) -> Question:
    """The conversation as the model's request. With a seed the same conversation gets the same samples."""
    identity = uuid.uuid4().hex if seed is None else f"seed {seed}"
    last = question_request(identity, turns[-1][1], images[-1], "conversation")
    before = []
    for (role, text), own in zip(turns[:-1], images[:-1], strict=True):
        content = question_request(identity, text, own).messages[-1].content
        before.append(Message(role, content if role == "user" else text.replace(IMAGE_MARK, " ")))  # type: ignore[arg-type]
    everything = tuple(picture for group in images for picture in group)
    final = Message(turns[-1][0], last.messages[-1].content)  # type: ignore[arg-type]
    return dataclasses.replace(last, pictures=everything, messages=(*before, final))


def _logprobs(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [
        {
            "token": piece.token,
            "logprob": piece.log_prob,
            # A token may be a part of a character.
            "bytes": None if "\ufffd" in piece.token else list(piece.token.encode()),
            "top_logprobs": [],
        }
        for piece in pieces
        if piece.token is not None
    ]


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
