"""`Sample`: what the merge writes and everything after it reads."""

import hashlib
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from dataset.config import Split

IMAGE_PLACEHOLDER = "<image>"
"""Marks in a message's content where a picture stands."""

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
    """A conversation about pictures.

    `messages` ends with a user turn; `targets` (never empty) are the texts that may stand as the assistant's turn behind
    it. The k-th `<image>` in the contents stands for the k-th of `image_ids`. `answers` are reference answers for scoring
    (ten for VQA; the captions for captions); only `evaluation/` reads them.
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
        """The target of an epoch: drawn by a hash, so the same in every process and on resume."""
        return self.targets[hash_to_index(self.sample_id, seed, epoch, len(self.targets))]


def hash_to_index(key: str, seed: int, epoch: int, n: int) -> int:
    """A number in 0..n-1, evenly spread over keys and the same everywhere."""
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
