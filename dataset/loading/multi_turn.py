"""Short questions about one picture asked in one conversation, so that the picture's tokens are paid for once.

In: samples as they were merged, with their lengths. Out: which are asked together, and what is said then.
LLaVA-1.5 merges its VQA data like this (Liu et al. 2023, arXiv:2310.03744). Called for training data; nobody is asked
several questions at once in an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.sample import IMAGE_MARK, Message, Sample, uniform


@dataclass(frozen=True, slots=True)
class Measured:
    """A sample's row in the store and its tokens with each of its targets; `saved`: how many fewer when it is not the first."""

    row: int
    sample_id: str
    lengths: tuple[int, ...]
    saved: int = 0

    def length(self, seed: int, epoch: int) -> int:
        """Tokens with the target of an epoch."""
        return self.lengths[uniform(self.sample_id, seed, epoch, len(self.lengths))]


Conversation = tuple[Measured, ...]


def can_join(sample: Sample) -> bool:
    """Whether other questions may stand before or behind it: one short question about one picture."""
    return sample.task == "vqa" and len(sample.image_ids) == 1 and len(sample.messages) == 1


def question_text(sample: Sample) -> str:
    """The question as it stands behind earlier turns, without the picture's mark."""
    return sample.messages[-1].content.replace(IMAGE_MARK, "").strip()


def conversations(samples: Sequence[tuple[Measured, int | None]], most: int, max_tokens: int) -> list[Conversation]:
    """Samples with the picture that each may share, None when it stays alone, as conversations of at most `most` questions.

    None is longer than `max_tokens`, whatever its targets and its first question. They come in the order of their first samples.
    """
    made: list[list[Measured]] = []
    open_at: dict[int, int] = {}
    for sample, picture in samples:
        place = open_at.get(picture) if picture is not None else None
        if place is not None and len(made[place]) < most and _longest([*made[place], sample]) <= max_tokens:
            made[place].append(sample)
            continue
        if picture is not None:
            open_at[picture] = len(made)
        made.append([sample])
    return [tuple(conversation) for conversation in made]


def _longest(members: Sequence[Measured]) -> int:
    """The most tokens that these can take together: the first one saves nothing."""
    saved = [member.saved for member in members]
    return sum(max(member.lengths) for member in members) - sum(saved) + max(saved)


def ordered(conversation: Conversation, seed: int, epoch: int) -> list[Measured]:
    """The questions in the order of an epoch, drawn by a hash: every one comes first now and then."""
    if len(conversation) == 1:
        return list(conversation)
    return sorted(conversation, key=lambda member: (uniform(member.sample_id, seed, epoch, 1 << 32), member.sample_id))


def length(conversation: Conversation, seed: int, epoch: int) -> int:
    """Tokens of a conversation with the targets and the order of an epoch."""
    first, *later = ordered(conversation, seed, epoch)
    return first.length(seed, epoch) + sum(member.length(seed, epoch) - member.saved for member in later)


def spoken(samples: Sequence[Sample], seed: int, epoch: int) -> tuple[tuple[Message, ...], str]:
    """Messages and last target of samples that are asked one behind the other, with the targets of an epoch."""
    first, *later = samples
    messages, target = first.messages, first.target(seed, epoch)
    for sample in later:
        messages += (Message("assistant", target), Message("user", question_text(sample)))
        target = sample.target(seed, epoch)
    return messages, target
