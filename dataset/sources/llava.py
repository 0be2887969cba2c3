"""LLaVA conversations: [{"id", "image": name, "conversations": [{"from": "human" | "gpt", "value": text}]}].

All turns are kept, with their line breaks, and `<image>` placeholders keep their position. `image` may be a list of names,
or absent in a conversation without an image.
"""

from collections.abc import Iterator
from typing import Any

from dataset.config import LlavaSource
from dataset.sample import Message, Role
from dataset.sources.json_reader import read_array
from dataset.sources.record import (
    ImageFolder,
    ParsedRecord,
    RawSample,
    ReadOptions,
    RecordLocation,
    conversation_sample,
    enumerate_records,
    parse_record,
    parse_turn,
    require_field,
    require_list,
    require_object,
)

ROLES: tuple[tuple[str, Role], ...] = (("human", "user"), ("gpt", "assistant"), ("system", "system"))
"""Pairs of the role name in the file and ours."""


def read(source: LlavaSource, _options: ReadOptions) -> Iterator[ParsedRecord]:
    """One sample per conversation."""
    folder = ImageFolder.of(source, source.annotations)
    for location, record in enumerate_records(read_array(source.annotations), source.limit):
        yield parse_record(location, _sample, record, folder)


def _sample(location: RecordLocation, record: Any, folder: ImageFolder) -> RawSample:
    turns = require_list(require_field(require_object(record), "conversations"), "conversations")
    image = record.get("image")
    names = image if isinstance(image, list) else [] if image is None else [image]
    return conversation_sample(location, [folder.path(name) for name in names], [_parse_turn(entry) for entry in turns])


def _parse_turn(entry: Any) -> Message:
    return parse_turn(require_object(entry).get("from"), entry.get("value"), ROLES)
