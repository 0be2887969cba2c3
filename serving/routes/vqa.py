"""POST /vqa: answers a question about an image, with all candidates and their scores."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from answering.protocol import Decoding
from answering.reply import Reply, question_request
from serving.engine import VqaTask
from serving.http.error_responses import ServiceError
from serving.http.validation_messages import describe_value
from serving.inputs.text_limits import clean_text
from serving.routes.decoding_fields import DecodingForm, with_fields
from serving.service import Service

EXAMPLE: dict[str, Any] = {
    "status": "success",
    "question": "What color is the circle?",
    "answer": "red",
    "confidence": 0.97,
    "candidates": [
        {"text": "red", "log_prob": -0.02, "mean_log_prob": -0.01, "raw": "red", "count": 1, "clip": 24.1, "fused": 1.0},
        {"text": "blue", "log_prob": -4.71, "mean_log_prob": -2.35, "raw": "blue", "count": 1, "clip": 19.6, "fused": 0.0},
    ],
}
"""Example response in the API documentation."""


class VqaCandidate(BaseModel):
    """A candidate answer. log_prob: in nats, summed over its tokens; clip and fused: scores, if the candidates were reranked."""

    model_config = ConfigDict(extra="allow")

    text: str
    log_prob: float | None
    mean_log_prob: float | None
    raw: str
    count: int
    clip: float | None = None
    fused: float | None = None


class VqaResponse(BaseModel):
    """The answer to a question and all candidates, best first. confidence: probability that the answer is right, 0..1, if an
    evaluation fitted it for this decoding. unlike: "image", "words", where these are unlike those that the confidence was learnt from."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]}, extra="allow")

    status: str
    question: str
    answer: str
    confidence: float | None = None
    unlike: list[str] | None = None
    candidates: list[VqaCandidate]


def router(service: Service) -> APIRouter:
    """The route for short-answer questions."""
    routes = APIRouter(tags=["questions"])

    @routes.post("/vqa", summary="Ask about an image", response_model=VqaResponse)
    async def vqa(
        image: Annotated[UploadFile, File(description="The image: JPEG, PNG, WebP, GIF or BMP")],
        question: Annotated[str, Form(description="The question, in English or Chinese", examples=["What color is the circle?"])],
        k: Annotated[int | None, Form(ge=1, description="Number of candidates; default: decoding.num_candidates", examples=[5])] = None,
        rerank: Annotated[
            bool | None, Form(description="Whether the candidates are reranked; default: yes, if CLIP is loaded", examples=[True])
        ] = None,
        *,
        http_request: Request,
        fields: Annotated[DecodingForm, Depends()],
    ) -> Any:
        engine = service.ready()
        _check_fields(await http_request.form())
        text = clean_text(question, "question", service.settings.max_question_chars)
        decoding = _requested_decoding(service, k, fields.given())
        if rerank and engine.reranker is None:
            raise ServiceError(422, "rerank: this service has no reranker (rerank.clip is null)", "no_reranker")
        reranked = engine.reranker is not None if rerank is None else rerank
        data = await image.read()
        key = "vqa", hashlib.sha256(data).digest(), text, decoding, reranked
        if (cached := service.cache.get(key)) is not None:
            return JSONResponse(cached, headers={"X-Cache": "hit"})
        async with service.decoder.decoded([data]) as images:
            # The same id for all requests: samples depend on the seed alone, so that an answer can be cached.
            with service.submit(VqaTask(question_request("vqa", text, images), decoding, reranked)) as job:
                reply: Reply = await job.result()
        confidence = reply.confidence_record()
        answer = {"status": "success", "question": reply.question, "answer": reply.chosen, **confidence, "candidates": reply.candidates()}
        service.cache.put(key, answer, len(str((key, answer)).encode()))
        return JSONResponse(answer, headers={"X-Cache": "miss"})

    return routes


def _check_fields(form: Mapping[str, Any]) -> None:
    """Raises ServiceError 422 for a field that the form does not have, such as a misspelt one."""
    known = {"image", "question", "k", "rerank", *(field.name for field in dataclasses.fields(DecodingForm))}
    if unknown := next((name for name in form if name not in known), None):
        message = f"{describe_value(unknown)}: not a field of this request; it has {', '.join(sorted(known))}"
        raise ServiceError(422, message, "invalid_request")


def _requested_decoding(service: Service, k: int | None, given: dict[str, Any]) -> Decoding:
    """The configured decoding with k candidates and the fields of a request. Raises ServiceError 422 if one cannot be used."""
    decoding, limit = service.plan.decoding, service.settings.max_candidates
    if k is not None:
        if k > limit:
            raise ServiceError(422, f"k: at most {limit}, found {k}", "k")
        if k > 1 and given.get("strategy") == "greedy":
            raise ServiceError(422, f"k: greedy decoding gives a single candidate, found {k}", "k")
        # Greedy decoding yields only one candidate.
        strategy = "beam" if decoding.strategy == "greedy" and k > 1 else decoding.strategy
        decoding = dataclasses.replace(decoding, num_candidates=k, strategy=strategy)
    return with_fields(service, decoding, given)
