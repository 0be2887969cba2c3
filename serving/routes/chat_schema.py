"""Request and response schemas of OpenAI's chat completions API. What would change an answer and cannot be had is an error.

null means the same as leaving a field out, and so does the value that changes nothing ("neutral"). Source: OpenAI's API reference,
"Create chat completion".
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator

from serving.http.validation_messages import FieldError, describe_value
from serving.inputs.text_limits import check_well_formed
from serving.routes.decoding_fields import CountPenalty, LengthPenalty, NgramSize, RepetitionPenalty, StopTexts, TopK, TopP

MAX_TURNS, MAX_PARTS = 256, 64
"""Largest number of turns of a conversation, and of parts of a turn; larger requests are refused before their images are read."""

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""An image of one pixel as a data URL, for the example."""

CONTENT_EXAMPLE: list[Any] = [{"type": "image_url", "image_url": {"url": PIXEL}}, {"type": "text", "text": "What color is the picture?"}]
MODEL_EXAMPLE: dict[str, Any] = {"id": "tiny", "object": "model", "created": 1790000000, "owned_by": "tessera"}
"""For the examples in the API documentation."""

Text = Annotated[str, AfterValidator(check_well_formed)]
"""A text without lone surrogates."""

OTHER_PARTS = {"input_audio": "audio is not read", "file": "files are not read, send an image as image_url"}
"""Types of parts that OpenAI's API has and this service has not."""

NO_TOOLS = "the model calls no tools; leave it out"
NO_CACHE = "there is no cache of prompts to set up; leave it out"

Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]
"""By field: its neutral values, and why it can have no other."""

REQUEST_FIELDS: Unsupported = {
    "audio": ((), "answers are text; leave it out"),
    "function_call": (("none", "auto"), NO_TOOLS),
    "functions": (([],), NO_TOOLS),
    "logit_bias": (({},), "single tokens cannot be made more or less probable; leave it out"),
    "modalities": (([], ["text"]), "answers are text; leave it out or send ['text']"),
    "moderation": ((), "answers are not moderated; leave it out"),
    "parallel_tool_calls": ((True, False), NO_TOOLS),
    "prediction": ((), "a predicted answer is not used; leave it out"),
    "prompt_cache_options": (({},), NO_CACHE),
    "prompt_cache_retention": (("in_memory",), NO_CACHE),
    "reasoning_effort": (("none",), "the model answers without reasoning first; leave it out or send 'none'"),
    "response_format": (({}, {"type": "text"}), "answers are free text; leave it out, or ask for the form in the question"),
    "service_tier": (("auto", "default"), "all requests are served alike; leave it out or send 'auto'"),
    "store": ((False,), "answers are not stored; leave it out or send false"),
    "tool_choice": (("none", "auto"), NO_TOOLS),
    "tools": (([],), NO_TOOLS),
    "top_logprobs": ((0,), "only the log-probabilities of the answer's own tokens are known; leave it out"),
    "verbosity": (("medium",), "the length of an answer is limited by max_tokens alone; leave it out"),
    "web_search_options": ((), "the model does not search the web; leave it out"),
}
MESSAGE_FIELDS: Unsupported = {
    "annotations": (([],), "annotations of an answer are not read; leave them out"),
    "audio": ((), "audio is not read; leave it out"),
    "function_call": ((), NO_TOOLS),
    "name": ((), "the model is not told names; leave it out, or write it into the content"),
    "tool_call_id": ((), NO_TOOLS),
    "tool_calls": (([],), NO_TOOLS),
}
PART_FIELDS: Unsupported = {"prompt_cache_breakpoint": ((), NO_CACHE)}
STREAM_FIELDS: Unsupported = {"include_obfuscation": ((False,), "chunks are not padded; leave it out or send false")}


def without_neutral(value: object, unsupported: Unsupported) -> object:
    """An object of a request without null and neutral fields; any other value unchanged.

    Raises FieldError for a field that asks for what cannot be had.
    """
    if not isinstance(value, Mapping):
        return value
    given = {name: item for name, item in value.items() if item is not None}
    for name in given.keys() & unsupported.keys():
        neutral, reason = unsupported[name]
        # A number is not taken for the truth value that Python holds equal to it.
        if not any(given[name] == item and isinstance(given[name], bool) == isinstance(item, bool) for item in neutral):
            raise FieldError(name, f"{reason} (found {describe_value(given[name])})")
        del given[name]
    return given


class StrictModel(BaseModel):
    """Base of request schemas: null and neutral fields are as if they were left out, unknown ones are errors."""

    model_config = ConfigDict(extra="forbid")


class TextPart(StrictModel):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class RefusalPart(StrictModel):
    """A text part of an earlier answer in which the assistant refused; it is read as any text."""

    type: Literal["refusal"]
    refusal: Text


class ImageUrl(StrictModel):
    """A data URL that holds an image, or the URL of an image on an allowed host.

    detail: accepted in all its values; the model sees every image at the size that its image processor gives it.
    """

    url: Annotated[str, Field(description="data:image/...;base64,... or, where the service allows its host, http(s)://...")]
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(StrictModel):
    """An image part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _checked_part(part: object) -> object:
    """A part of a known type, without neutral fields. Raises FieldError."""
    if not isinstance(part, Mapping):
        raise FieldError("", f"expected a part such as {{type: text, text: ...}}, found {describe_value(part)}")
    kind = part.get("type")
    if kind not in ("text", "image_url", "refusal"):
        known = f"{OTHER_PARTS[kind]}; " if isinstance(kind, str) and kind in OTHER_PARTS else ""
        raise FieldError("type", f"{known}expected text or image_url, found {describe_value(kind)}")
    return without_neutral(part, PART_FIELDS)


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")] | Annotated[ImagePart, Tag("<image>")],
    Discriminator(lambda part: {"text": "<text>", "refusal": "<refusal>"}.get(part.get("type"), "<image>")),
    BeforeValidator(_checked_part),
]


def _as_parts(content: Any) -> Any:
    """A text as a list of one part; a list unchanged. Raises FieldError for anything else."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise FieldError("", f"expected text or a list of parts, found {describe_value(content)}")
    return content


Content = Annotated[
    list[Part],
    Field(max_length=MAX_PARTS),
    BeforeValidator(_as_parts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]
"""A text, or parts. It is validated as parts."""


class ChatMessage(StrictModel):
    """A turn. Only turns of the user may have images; each part of a turn begins on a new line, in the order of the parts.

    Turns of one role in a row are joined as parts are.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, turn: object) -> object:
        given = without_neutral(turn, MESSAGE_FIELDS)
        if not isinstance(given, dict):
            return given
        if given.get("role") in ("tool", "function"):
            raise FieldError("role", f"the model calls no tools, so there are no turns of one; found {describe_value(given['role'])}")
        if given.get("role") == "assistant" and isinstance(given.get("refusal"), str) and isinstance(given.get("content", []), str | list):
            # What the assistant said in place of an answer, or after it.
            given["content"] = [*_as_parts(given.get("content", [])), {"type": "refusal", "refusal": given.pop("refusal")}]
        return given


class StreamOptions(StrictModel):
    """include_usage: the last chunk has the token counts."""

    include_usage: bool = False


def _stop_texts(stop: object) -> object:
    """One text as a list; an empty text as none. Raises FieldError for what is neither a text nor a list."""
    if not isinstance(stop, str | list):
        raise FieldError("", f"expected text or a list of texts, found {describe_value(stop)}")
    return ([stop] if stop else []) if isinstance(stop, str) else stop


Stop = Annotated[StopTexts, BeforeValidator(_stop_texts), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})]


class ChatRequest(StrictModel):
    """A conversation to continue.

    top_k, repetition_penalty and no_repeat_ngram_size are not part of OpenAI's API; its client sends them in extra_body.
    user, safety_identifier, prompt_cache_key and metadata change no answer; metadata is returned with it.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{
        "model": "tiny", "messages": [{"role": "user", "content": CONTENT_EXAMPLE}], "max_tokens": 16, "temperature": 0,
    }]})  # fmt: skip

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS)]
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    repetition_penalty: RepetitionPenalty | None = None
    no_repeat_ngram_size: NgramSize | None = None
    presence_penalty: CountPenalty | None = None
    frequency_penalty: CountPenalty | None = None
    length_penalty: Annotated[LengthPenalty, Field(description="1: answers are not searched by beams here")] | None = None
    stop: Stop | None = None
    max_tokens: Annotated[int, Field(ge=1, description="Larger than serve.max_new_tokens counts as that")] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, description="Today's name of max_tokens")] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions, BeforeValidator(partial(without_neutral, unsupported=STREAM_FIELDS))] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Annotated[dict[str, Text], Field(max_length=16)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, request: object) -> object:
        return without_neutral(request, REQUEST_FIELDS)

    def decoding_fields(self) -> dict[str, Any]:
        """The decoding settings that the request has, under the names of the configuration, but for the temperature."""
        names = {"top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size", "presence_penalty", "frequency_penalty", "stop"}
        return self.model_dump(include=names, exclude_none=True)


class ChatResponse(BaseModel):
    """The chat completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [{
        "id": "chatcmpl-5f0c6f1e", "object": "chat.completion", "created": 1790000000, "model": "tiny",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "red", "refusal": None}, "logprobs": None, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 48, "completion_tokens": 2, "total_tokens": 50},
    }]})  # fmt: skip

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None
    metadata: dict[str, str] | None = None


class ModelCard(BaseModel):
    """A model that clients can name."""

    model_config = ConfigDict(json_schema_extra={"examples": [MODEL_EXAMPLE]})

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that clients can name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"object": "list", "data": [MODEL_EXAMPLE]}]})

    object: Literal["list"]
    data: list[ModelCard]
