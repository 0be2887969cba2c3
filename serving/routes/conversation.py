"""The conversation of a chat request as the model is asked it: turns of one role joined, parts joined, images in their places."""

import asyncio
from collections.abc import Sequence
from itertools import groupby

from answering.reply import without_placeholders
from dataset.sample import IMAGE_PLACEHOLDER, Message, Role, join_parts
from serving.config import ServeConfig
from serving.http.error_responses import ServiceError
from serving.inputs import image_decoder
from serving.inputs.safe_fetch import fetch
from serving.routes.chat_schema import ChatMessage, ImagePart, RefusalPart


def conversation(turns: Sequence[ChatMessage], max_chars: int) -> tuple[Message, ...]:
    """The turns as messages: an optional system turn, then user and assistant in alternation.

    Turns of one role in a row are one turn, joined as the parts of a turn are (`dataset.sample.join_parts`).
    Raises ServiceError 422 if a turn has more than `max_chars` characters or the order is one that no model is trained with.
    """
    contents = [_content(turn, i, max_chars) for i, turn in enumerate(turns)]
    roles: list[Role] = ["system" if turn.role == "developer" else turn.role for turn in turns]
    _check_order(roles)
    runs = [[i for i, _ in run] for _, run in groupby(enumerate(roles), key=lambda indexed: indexed[1])]
    # A single turn is not stripped again: an answer of the model stays what it was.
    return tuple(Message(roles[run[0]], contents[run[0]] if len(run) == 1 else join_parts(contents[i] for i in run)) for run in runs)


def image_urls(turns: Sequence[ChatMessage], max_images: int) -> list[tuple[str, str]]:
    """The URL of each image, after its field in the request. Raises ServiceError 422 if another turn than the user's has images."""
    urls = []
    for i, turn in enumerate(turns):
        for j, part in enumerate(turn.content):
            if isinstance(part, ImagePart):
                if turn.role != "user":
                    message = f"messages[{i}].content[{j}]: only turns of the user may have images, found {turn.role}"
                    raise ServiceError(422, message, "images")
                urls.append((f"messages[{i}].content[{j}].image_url.url", part.image_url.url))
    if len(urls) > max_images:
        raise ServiceError(422, f"messages: at most {max_images} images, found {len(urls)}", "images")
    return urls


async def load_image_bytes(settings: ServeConfig, field: str, url: str) -> bytes:
    """The bytes of an image given as a data URL or, on an allowed host, as an http(s) URL. Raises ServiceError.

    field: the URL's field in the request, for messages.
    """
    try:
        if url[:5].lower() == "data:":
            return image_decoder.decode_data_url(url)
        if url.lower().startswith(("http://", "https://")) and settings.remote_hosts:
            return await asyncio.to_thread(fetch, url, settings.remote_hosts, settings.max_bytes, settings.remote_seconds)
    except ServiceError as error:
        message = f"{field}: {str(error.detail).removeprefix('image_url: ')}"
        raise ServiceError(error.status_code, message, error.code, headers=dict(error.headers or {})) from error
    raise ServiceError(422, f"{field}: expected data:image/...;base64,...; other URLs are not fetched", "image_address")


def _content(turn: ChatMessage, index: int, max_chars: int) -> str:
    """The parts of a turn joined as those of the training data. Raises ServiceError 422 if its text is too long."""
    texts = [None if isinstance(part, ImagePart) else part.refusal if isinstance(part, RefusalPart) else part.text for part in turn.content]
    num_chars = sum(len(text) for text in texts if text is not None)
    if num_chars > max_chars:
        raise ServiceError(422, f"messages[{index}].content: at most {max_chars} characters a turn, found {num_chars}", "text_length")
    return join_parts(IMAGE_PLACEHOLDER if text is None else without_placeholders(text) for text in texts)


def _check_order(roles: Sequence[Role]) -> None:
    """Raises ServiceError 422 unless system turns come first, then one of the user, and one of the user is last."""
    num_system = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    if "system" in roles[num_system:]:
        index = num_system + roles[num_system:].index("system")
        raise ServiceError(422, f"messages[{index}].role: system turns stand before all others", "roles")
    if num_system == len(roles):
        raise ServiceError(422, "messages: expected a turn of the user, found system turns alone", "roles")
    if roles[num_system] != "user":
        raise ServiceError(422, f"messages[{num_system}].role: the conversation begins with the user, found {roles[num_system]}", "roles")
    if roles[-1] != "user":
        raise ServiceError(422, f"messages[{len(roles) - 1}].role: the last turn is the user's, found {roles[-1]}", "roles")
