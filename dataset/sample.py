"""`Sample`, the unit of the merged data, and the Parquet schemas of the merged tables."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from dataset.config import Split

IMAGE_PLACEHOLDER = "<image>"
"""Placeholder in the content of a message, replaced by the image tokens of one image."""

Task = Literal["caption", "conversation", "vqa"]
Language = Literal["en", "zh"]
Role = Literal["system", "user", "assistant"]


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

    def target(self, seed: int, epoch: int) -> str:
        """The target of an epoch. A hash picks it, so it is the same on every rank and after a resume."""
        return self.targets[hash_to_index(self.sample_id, seed, epoch, len(self.targets))]


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
    ]
)
