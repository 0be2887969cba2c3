"""POST /v1/chat/completions and GET /v1/models: OpenAI's API, with complete or streamed (server-sent events) answers."""

import asyncio
import dataclasses
import hashlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, StreamingResponse

from answering.config import OpenAiSystem, for_descriptions
from answering.protocol import Decoding
from answering.protocol import Request as ModelRequest
from dataset.sample import detect_language
from serving.engine import ChatEvent, ChatTask, TextPiece
from serving.http.error_responses import ServiceError, error_body
from serving.http.validation_messages import describe_value
from serving.routes.chat_response import Completion, server_sent_event
from serving.routes.chat_schema import ChatRequest, ChatResponse, ModelCard, ModelList
from serving.routes.conversation import conversation, image_urls, load_image_bytes
from serving.routes.decoding_fields import with_fields, without_sampling
from serving.service import Service

SERVER_START_TIME = int(time.time())
"""Creation time of the model in GET /v1/models, in seconds since the epoch."""


def router(service: Service) -> APIRouter:
    """The routes of OpenAI's API."""
    routes = APIRouter(prefix="/v1", tags=["chat"])
    model_card = {"id": service.plan.name, "object": "model", "created": SERVER_START_TIME, "owned_by": "tessera"}

    @routes.get("/models", summary="Names of the models", response_model=ModelList)
    async def models() -> Any:
        service.ready()
        return {"object": "list", "data": [model_card]}

    @routes.get("/models/{model:path}", summary="One model", response_model=ModelCard)
    async def model(model: Annotated[str, Path(description="Name of the model", examples=["tiny"])]) -> Any:
        service.ready()
        _check_model(service, model)
        return model_card

    @routes.post("/chat/completions", summary="Continue a conversation about images", response_model=ChatResponse)
    async def completions(chat_request: ChatRequest, http_request: Request) -> Any:
        engine, decoding = service.ready(), _requested_decoding(service, chat_request)
        _check_model(service, chat_request.model)
        if chat_request.logprobs and not engine.streams_tokens:
            raise ServiceError(422, "logprobs: this system does not report them", "logprobs")
        messages = conversation(chat_request.messages, service.settings.max_question_chars)
        urls = image_urls(chat_request.messages, service.settings.max_images)
        data = [await load_image_bytes(service.settings, field, url) for field, url in urls]
        repeatable = decoding.strategy == "greedy" or chat_request.seed is not None
        image_hashes = [hashlib.sha256(image).hexdigest() for image in data]
        # A digest, since a conversation may be long and the size of the cache is bounded.
        key = hashlib.sha256(repr((messages, image_hashes, decoding, chat_request.seed)).encode()).digest()
        cached = service.cache.get(key) if repeatable else None
        if cached is None:
            exit_stack = http_request.state.exit_stack
            images = tuple(await exit_stack.enter_async_context(service.decoder.decoded(data)))
            # With a seed the same conversation gets the same samples.
            request_id = uuid.uuid4().hex if chat_request.seed is None else f"seed {chat_request.seed}"
            question = ModelRequest(request_id, images, messages, "conversation", detect_language(messages[-1].content))
            job = exit_stack.enter_context(service.submit(ChatTask(question, decoding, bool(chat_request.stream))))
            events = _cache_when_done(service, key if repeatable else None, job.events())
        else:
            events = _replay(cached)
        completion = Completion(chat_request, is_greedy=decoding.strategy == "greedy")
        # The first event has no text. A request that cannot be answered fails before it, so that a stream still gets an error status.
        completion.pieces(await anext(events))
        if not chat_request.stream:
            return JSONResponse(completion.to_response([piece async for event in events for piece in completion.pieces(event)]))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(completion, events, http_request.state), media_type="text/event-stream", headers=headers)

    return routes


def _check_model(service: Service, name: str) -> None:
    """Raises ServiceError 404 if there is no model of this name."""
    if name != service.plan.name:
        message = f"model: there is no model {describe_value(name)}, only {describe_value(service.plan.name)}"
        raise ServiceError(404, message, "model_not_found")


async def _stream(completion: Completion, events: AsyncIterator[ChatEvent], state: Any) -> AsyncIterator[str]:
    yield completion.first_chunk()
    try:
        async with asyncio.timeout_at(state.deadline):
            async for event in events:
                for chunk in completion.chunks(event):
                    yield chunk
    except (TimeoutError, ServiceError) as error:
        late = ServiceError(504, "the answer was not finished before the deadline", "deadline")
        failure = error if isinstance(error, ServiceError) else late
        yield server_sent_event(error_body(failure.status_code, str(failure.detail), failure.code, state.request_id))
        return
    if completion.has_usage_chunk:
        yield completion.chunk([], completion.usage_counts())
    yield "data: [DONE]\n\n"


async def _cache_when_done(service: Service, key: object | None, events: AsyncIterator[ChatEvent]) -> AsyncIterator[ChatEvent]:
    """The events; after the last one they are cached under `key`, if there is one."""
    seen_events = []
    async for event in events:
        seen_events.append(event)
        service.metrics.tokens.inc(isinstance(event, TextPiece) and service.ready().streams_tokens)
        yield event
    if key is not None:
        service.cache.put(key, seen_events, sum(200 + len(str(event)) for event in seen_events))


async def _replay(events: list[ChatEvent]) -> AsyncIterator[ChatEvent]:
    for event in events:
        yield event


def _requested_decoding(service: Service, chat_request: ChatRequest) -> Decoding:
    """The configured decoding of long texts with the fields of a request; more tokens than the service allows are capped.

    Raises ServiceError 422 for a field that cannot be used here.
    """
    settings, n = service.settings, chat_request.n or 1
    if n > settings.max_candidates:
        raise ServiceError(422, f"n: at most {settings.max_candidates}, found {n}", "n")
    requested_tokens = chat_request.max_completion_tokens or chat_request.max_tokens or settings.default_max_new_tokens
    base = for_descriptions(service.plan.decoding, min(requested_tokens, settings.max_new_tokens))
    if chat_request.length_penalty not in (None, 1.0):
        raise ServiceError(422, "length_penalty: acts on beam search, and chat completions are greedy or sampled", "length_penalty")
    temperature = settings.temperature if chat_request.temperature is None else chat_request.temperature
    sampled = dataclasses.replace(base, strategy="sample", num_candidates=n, temperature=temperature or 1.0, length_penalty=1.0)
    decoding = with_fields(service, sampled, chat_request.decoding_fields())
    if chat_request.seed is not None and isinstance(service.plan.system, OpenAiSystem):
        # Systems in this process sample by the id of the request, so that requests with different seeds share a batch.
        decoding = dataclasses.replace(decoding, seed=chat_request.seed)
    return decoding if temperature else without_sampling(decoding)
