"""Any OpenAI-compatible endpoint as an answerer: a paid service, or a model served by another program."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

from answering.config import OpenAiSystem
from answering.decoding.candidates import Generation, merge
from answering.prompts import PromptPolicy
from answering.protocol import Answer, Decoding, Description, FinishReason, ImageInput, Request
from answering.request_images import JPEG_QUALITY, data_url, image_digest
from answering.systems.openai_endpoint.client import EndpointClient, EndpointError
from answering.systems.openai_endpoint.response_cache import Choice, ResponseCache, read_response, write_response
from dataset.loading.encoded_sample import check_messages
from dataset.sample import IMAGE_PLACEHOLDER, Message
from errors import TesseraError


class EndpointAnswerer:
    """Sends several questions to an endpoint concurrently; every response is cached.

    An endpoint has no beam search: with `strategy: beam` the first generation is greedy and the others are samples at the decoding
    temperature and top_p. `strategy: greedy` requests the first alone, `strategy: sample` samples alone. Settings that OpenAI's API does
    not have (`answerer_factory.check_decoding`) are not sent.
    """

    def __init__(self, system: OpenAiSystem, client: EndpointClient):
        self.system, self.client = system, client
        self.policy, self.cache = PromptPolicy.from_config(system), ResponseCache(system.cache)

    @property
    def description(self) -> Description:
        names = ("model", "base_url", "max_image_side", "sampling", "log_probabilities", "token_limit", "extra_body")
        return Description(self.system.kind, {**{name: getattr(self.system, name) for name in names}, **self.policy.settings()})

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        """One Answer per request, in the order of the requests; a request that the endpoint rejects gets an Answer with an error."""
        with ThreadPoolExecutor(self.system.concurrency) as pool:
            futures = [pool.submit(self._answer, request, decoding) for request in requests]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() for future in futures):
                    # Ctrl+C or a bug: running requests stop waiting for the endpoint, and no others start.
                    self.client.stopped.set()
                    pool.shutdown(wait=False, cancel_futures=True)
            return [future.result() for future in futures if not future.cancelled()]

    def stream(self, request: Request, decoding: Decoding) -> Generator[str, None, FinishReason]:
        """Pieces of the greedy answer (or of the first sample, with `strategy: sample`) before cleaning. Returns why it ended.

        Raises TesseraError if the endpoint rejects the request.
        """
        endpoint_request = _EndpointRequest(self.system, self._messages(request), request.images)
        body = self._body(decoding, 0 if decoding.strategy == "sample" else None)
        record = endpoint_request.cache_record(body)
        with self.cache.locked_file(record) as path:
            cached = read_response(path)
            chunks = iter(cached) if cached is not None else self.client.stream(endpoint_request.body(body))
            text, num_emitted, received = "", 0, []
            for chunk in chunks:
                received.append(chunk)
                text += chunk.text or ""
                # Trailing whitespace is held back: it is stripped if the answer ends here.
                stripped = text.strip()
                if len(stripped) > num_emitted:
                    yield stripped[num_emitted:]
                    num_emitted = len(stripped)
            whole = _merge_chunks(received, text)
            if cached is None:
                write_response(path, record, (whole,), None)
        return _finish_reason(whole.finish_reason)

    def _answer(self, request: Request, decoding: Decoding) -> Answer:
        prompt = ""
        try:
            messages = self._messages(request)
            prompt = "\n".join(f"{message.role}: {message.content}" for message in messages)
            choices = self._choices(_EndpointRequest(self.system, messages, request.images), decoding)
        except TesseraError as error:
            return Answer(request.request_id, error=str(error), prompt=prompt)
        answered = [choice for choice in choices if choice.text is not None]
        generations = [self._read(choice, request) for choice in answered]
        if not generations:
            reasons = ", ".join(sorted({choice.finish_reason or "none given" for choice in choices}))
            return Answer(request.request_id, error=f"the endpoint returned no text (finish_reason: {reasons})", prompt=prompt)
        candidates = merge(generations)
        by_text = {generation.raw: _finish_reason(choice.finish_reason) for generation, choice in zip(generations, answered, strict=True)}
        finish_reasons = tuple(by_text[candidate.raw] for candidate in candidates)
        return Answer(request.request_id, candidates, prompt=prompt, finish_reasons=finish_reasons)

    def _messages(self, request: Request) -> tuple[Message, ...]:
        """The messages of a request under the policy. Raises EncodingError."""
        messages = self.policy.messages(request)
        check_messages(messages, len(request.images))
        return messages

    def _choices(self, endpoint_request: "_EndpointRequest", decoding: Decoding) -> list[Choice]:
        """The greedy choice, unless all are sampled, then samples. If the endpoint returns fewer than n, the missing ones are requested
        again."""
        choices = [] if decoding.strategy == "sample" else list(self._fetch(endpoint_request, self._body(decoding)))[:1]
        num_choices = 1 if decoding.strategy == "greedy" else decoding.num_candidates
        while (missing := num_choices - len(choices)) > 0:
            body = self._body(decoding, len(choices))
            count_options = {"n": missing} if self.system.sampling == "n" and missing > 1 else {}
            choices += self._fetch(endpoint_request, body | count_options)[:missing]
        return choices

    def _fetch(self, endpoint_request: "_EndpointRequest", body: dict[str, Any]) -> tuple[Choice, ...]:
        record = endpoint_request.cache_record(body)
        with self.cache.locked_file(record) as path:
            choices = read_response(path)
            if choices is None:
                choices, usage = self.client.complete(endpoint_request.body(body))
                write_response(path, record, choices, usage)
        return choices

    def _body(self, decoding: Decoding, index: int | None = None) -> dict[str, Any]:
        """Fields of the request for the samples from `index` on; None: for the greedy answer."""
        sampling = {} if index is None else {"seed": decoding.seed + index, "top_p": decoding.top_p}
        logprob_options = {"logprobs": True} if self.system.log_probabilities else {}
        # Sent where they change something: endpoints need not know them, and responses cached without them stay valid.
        penalties = {name: value for name in ("presence_penalty", "frequency_penalty") if (value := getattr(decoding, name))}
        stop = {"stop": list(decoding.stop)} if decoding.stop else {}
        temperature = 0.0 if index is None else decoding.temperature
        options = {**logprob_options, **penalties, **stop, **sampling}
        return {"temperature": temperature, self.system.token_limit: decoding.max_new_tokens, **options}

    def _read(self, choice: Choice, request: Request) -> Generation:
        raw = (choice.text or "").strip()
        log_prob = None if choice.log_probs is None else sum(choice.log_probs)
        return Generation(self.policy.clean(raw, request), raw, choice.tokens or (raw,), log_prob)


class _EndpointRequest:
    """The content of a request: messages with their images."""

    def __init__(self, system: OpenAiSystem, messages: Sequence[Message], images: Sequence[ImageInput]):
        self.system, self.messages, self.images = system, messages, images
        self.digests = [image_digest(image) for image in images]

    def body(self, decoding: dict[str, Any]) -> dict[str, Any]:
        """The body of the request. Raises ImageError."""
        urls = iter(self._urls)
        messages = [{"role": message.role, "content": _parts(message.content, urls)} for message in self.messages]
        return {"model": self.system.model, "messages": messages, **decoding}

    @cached_property
    def _urls(self) -> list[str]:
        return [data_url(image, self.system.max_image_side) for image in self.images]

    def cache_record(self, decoding: dict[str, Any]) -> dict[str, Any]:
        """Everything that determines the response. Images appear as digests of their originals, which do not depend on the JPEG encoder."""
        return {
            "base_url": self.system.base_url,
            "model": self.system.model,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "pictures": [{"sha256": sha256, "max_side": self.system.max_image_side, "quality": JPEG_QUALITY} for sha256 in self.digests],
            "decoding": decoding,
            "extra_body": self.system.extra_body,
        }


def _parts(content: str, urls: Iterator[str]) -> str | list[dict[str, Any]]:
    """A text without placeholders unchanged; a text with placeholders as parts, with an image in place of each."""
    texts = content.split(IMAGE_PLACEHOLDER)
    if len(texts) == 1:
        return content
    parts: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        if i:
            parts.append({"type": "image_url", "image_url": {"url": next(urls)}})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return parts


def _finish_reason(given: str | None) -> FinishReason:
    """The endpoint's own reason; reasons that only tools or filters give count as an end."""
    return "length" if given == "length" else "stop"


def _merge_chunks(chunks: Sequence[Choice], text: str) -> Choice:
    """The complete choice; with log-probabilities if every chunk with text has them. Raises EndpointError."""
    if not chunks:
        raise EndpointError("the endpoint's stream has no choices")
    reason = next((chunk.finish_reason for chunk in reversed(chunks) if chunk.finish_reason), None)
    tokens = tuple(token for chunk in chunks for token in chunk.tokens or ())
    if not tokens or any(chunk.text and chunk.tokens is None for chunk in chunks):
        return Choice(text, reason)
    log_probs = tuple(value for chunk in chunks for value in chunk.log_probs or ())
    return Choice(text, reason, tokens, log_probs)
