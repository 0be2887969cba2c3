"""Request and response schemas of OpenAI's chat completions API. Unsupported parameters that would change an answer are errors."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serving.inputs.text_limits import check_well_formed

MAX_TURNS, MAX_PARTS = 256, 64
"""Largest number of turns of a conversation, and of parts of a turn; larger requests are refused before their images are read."""

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""An image of one pixel as a data URL, for the example."""

EXAMPLE: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PIXEL}},
                {"type": "text", "text": "What color is the picture?"},
            ],
        }
    ],
    "max_tokens": 16,
    "temperature": 0,
}
"""Example request in the API documentation."""
Text = Annotated[str, AfterValidator(check_well_formed)]
"""A text without lone surrogates."""


class StrictModel(BaseModel):
    """Base of request schemas: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class TextPart(StrictModel):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(StrictModel):
    """A data URL that holds an image, or the URL of an image on an allowed host."""

    url: Annotated[str, Field(description="data:image/...;base64,... or, where the service allows its host, http(s)://...")]
    detail: Literal["auto"] | None = None


class ImagePart(StrictModel):
    """An image part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(StrictModel):
    """A turn. Only turns of the user may have images; each part of a turn begins on a new line, in the order of the parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MAX_PARTS)]


class StreamOptions(StrictModel):
    """include_usage: the last chunk has the token counts."""

    include_usage: bool = False


class ChatRequest(StrictModel):
    """A conversation to continue."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS)]
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_logprobs: Literal[0] | None = None
    top_p: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    stop: None = None


class ChatResponse(BaseModel):
    """The chat completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "chatcmpl-5f0c6f1e",
                    "object": "chat.completion",
                    "created": 1790000000,
                    "model": "tiny",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": "red"}, "logprobs": None, "finish_reason": "stop"}
                    ],
                    "usage": {"prompt_tokens": 48, "completion_tokens": 2, "total_tokens": 50},
                }
            ]
        }
    )

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None


class ModelList(BaseModel):
    """The models that clients can name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1790000000, "owned_by": "tessera"}]}]
        }
    )

    object: Literal["list"]
    data: list[dict[str, Any]]
