"""LLaVA conversations: [{"id", "image": name, "conversations": [{"from": "human" | "gpt", "value": text}]}].

All turns are kept, with their line breaks, and `<image>` stays where it stood. `image` may be a list of names, or absent
where the conversation is about no picture.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.config import LlavaSource
from dataset.sample import Message, Role
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    Item,
    Place,
    RawSample,
    Reading,
    conversation_sample,
    convert,
    fields,
    list_of,
    numbered,
    picture_file,
    required,
    turn,
)

ROLES: tuple[tuple[str, Role], ...] = (("human", "user"), ("gpt", "assistant"), ("system", "system"))


def read(source: LlavaSource, _reading: Reading) -> Iterator[Item]:
    """One sample a conversation."""
    folder = source.images or source.annotations.parent
    for place, record in numbered(read_array(source.annotations), source.limit):
        yield convert(place, _sample, record, folder)


def _sample(place: Place, record: Any, folder: Path) -> RawSample:
    turns = list_of(required(fields(record), "conversations"), "conversations")
    image = record.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    return conversation_sample(place, [picture_file(folder, name) for name in names], [_turn(entry) for entry in turns])


def _turn(entry: Any) -> Message:
    return turn(fields(entry).get("from"), entry.get("value"), ROLES)
