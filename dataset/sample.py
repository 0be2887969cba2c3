"""`Sample`, the unit of the merged data, how a turn is made of its parts, and the Parquet schemas of the merged tables."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

from dataset.bounding_box import FULL, Box, Region, refill
from dataset.chinese_characters import HAS_CJK
from dataset.source_base import Split

IMAGE_PLACEHOLDER = "<image>"
"""Placeholder in the content of a message, replaced by the image tokens of one image."""

Task = Literal["caption", "conversation", "grounding", "vqa"]
"""Kind of a question. grounding: its answer is a box (see `dataset.bounding_box`)."""
Language = Literal["en", "zh"]
Role = Literal["system", "user", "assistant"]

Prompts = Mapping[Task, Mapping[Language, str]]
"""The sentences that say how an answer is wanted, by kind and language of the question."""

_TRAILING_IMAGES = re.compile(rf"(?:\s*{IMAGE_PLACEHOLDER})*\s*\Z")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about images.

    Args:
        sample_id: Unique in the merged data; begins with the name of the source.
        image_ids: Ids in images.parquet; the k-th belongs to the k-th `<image>` placeholder in `messages`.
        source: Name of the source that the sample comes from.
        task: Kind of sample; decides how it is scored.
        language: `zh` when the conversation (of VQA, the question) holds a Chinese character, else `en`.
        split: Split that the merge assigned.
        messages: Conversation up to and including the last user turn.
        targets: Possible assistant replies to the last user turn; never empty.
        answers: Reference answers for scoring (ten for VQA, the captions for captions). Only `evaluation/` reads them.
        prompt: Sentence that says how an answer is wanted, if the source has one; `messages` do not contain it.
        category: What the sample is about, if its source says so; data can be balanced by it.
        regions: Boxes that the messages and targets name, in the order of their places.
    """

    sample_id: str
    image_ids: tuple[int, ...]
    source: str
    task: Task
    language: Language
    split: Split
    messages: tuple[Message, ...]
    targets: tuple[str, ...]
    answers: tuple[str, ...] = ()
    prompt: str | None = None
    category: str | None = None
    regions: tuple[Region, ...] = ()

    @property
    def prompted_messages(self) -> tuple[Message, ...]:
        """The conversation as it is trained: `messages`, with the prompt after every question."""
        return with_prompt(self.messages, self.prompt)

    def with_boxes(self, boxes: Sequence[Box]) -> "Sample":
        """The sample with other boxes in the places of those of its regions, as when its images were mirrored. Its answers stay."""
        texts, regions = refill([*(message.content for message in self.messages), *self.targets], self.regions, boxes)
        messages = tuple(replace(message, content=text) for message, text in zip(self.messages, texts, strict=False))
        return replace(self, messages=messages, targets=tuple(texts[len(messages) :]), regions=tuple(regions))

    def with_widest_boxes(self) -> "Sample":
        """The sample with boxes in whose places any others fit."""
        return self.with_boxes([Box(FULL, FULL, FULL, FULL)] * len(self.regions)) if self.regions else self

    def target(self, seed: int, epoch: int) -> str:
        """The target of an epoch. A hash picks it, so it is the same on every rank and after a resume."""
        return self.targets[hash_to_index(self.sample_id, seed, epoch, len(self.targets))]


def is_alternating(messages: Sequence[Message]) -> bool:
    """Whether an optional system turn is followed by user and assistant turns in alternation, the user last."""
    turns = [message.role for message in messages][bool(messages) and messages[0].role == "system" :]
    return len(turns) % 2 == 1 and turns == (["user", "assistant"] * len(turns))[: len(turns)]


def detect_language(*texts: str) -> Language:
    """`zh` when one of the texts contains a Chinese character, else `en`."""
    return "zh" if any(not text.isascii() and HAS_CJK.search(text) for text in texts) else "en"


def question_text(content: str) -> str:
    """The text of a turn on one line, without its image placeholders."""
    return " ".join(content.replace(IMAGE_PLACEHOLDER, " ").split())


def join_parts(parts: Iterable[str]) -> str:
    """The content of a user turn made of parts, texts and image placeholders: in their order, each on a line of its own.

    Every question is put together here, in the data and wherever one is asked, so that equal questions get equal tokens.
    """
    return "\n".join(text for part in parts if (text := part.strip()))


def with_prompt(messages: Sequence[Message], prompt: str | None) -> tuple[Message, ...]:
    """The messages with the prompt after every user turn (see `add_prompt`)."""
    if not prompt:
        return tuple(messages)
    return tuple(Message("user", add_prompt(turn.content, prompt)) if turn.role == "user" else turn for turn in messages)


def add_prompt(content: str, prompt: str) -> str:
    """The content of a user turn with a prompt on a line of its own: after the question, before images that follow it.

    A turn without a question, and one that ends with this prompt already, stay as they are.
    """
    end = _TRAILING_IMAGES.search(content)
    question, images = (content[: end.start()], end[0]) if end else (content, "")
    if not question.replace(IMAGE_PLACEHOLDER, "").strip() or question.endswith(prompt):
        return content
    return join_parts((question, prompt, images))


def hash_to_index(key: str, seed: int, epoch: int, n: int) -> int:
    """Hash `key`, `seed` and `epoch` to an index in 0..n-1: uniform over keys, equal on all machines.

    Args:
        key: What the index is chosen for, usually a sample id.
        seed: Changes the index of every key.
        epoch: Changes the index from epoch to epoch.
        n: Number of choices.
    """
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * n >> 64


IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        ("source", pa.string()),
    ]
)

REGION_TYPE = pa.struct([("image", pa.int32()), ("turn", pa.int32()), ("start", pa.int32()), ("box", pa.list_(pa.float64()))])
"""A `dataset.bounding_box.Region`."""

SAMPLES_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("image_ids", pa.list_(pa.int64())),
        ("source", pa.string()),
        ("task", pa.string()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("targets", pa.list_(pa.string())),
        ("answers", pa.list_(pa.string())),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("regions", pa.list_(REGION_TYPE)),
    ]
)
