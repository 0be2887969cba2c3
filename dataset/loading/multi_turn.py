"""Short questions about one picture asked in one conversation, so that the picture's tokens are paid for once.

In: samples as they were merged, with their lengths. Out: which are asked together, and what is said then.
LLaVA-1.5 merges its VQA data like this (Liu et al. 2023, arXiv:2310.03744). Called for training data; nobody is asked
several questions at once in an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.sample import IMAGE_PLACEHOLDER, Message, Sample, hash_to_index


@dataclass(frozen=True, slots=True)
class MeasuredSample:
    """A sample's row in the store and its tokens with each of its targets; `saved`: how many fewer when it is not the first."""

    row: int
    sample_id: str
    lengths: tuple[int, ...]
    saved_tokens: int = 0

    def num_tokens(self, seed: int, epoch: int) -> int:
        """Tokens with the target of an epoch."""
        return self.lengths[hash_to_index(self.sample_id, seed, epoch, len(self.lengths))]


Conversation = tuple[MeasuredSample, ...]


def can_share_conversation(sample: Sample) -> bool:
    """Whether other questions may stand before or behind it: one short question about one picture."""
    return sample.task == "vqa" and len(sample.image_ids) == 1 and len(sample.messages) == 1


def follow_up_text(sample: Sample) -> str:
    """The question as it stands behind earlier turns, without the picture's mark."""
    return sample.messages[-1].content.replace(IMAGE_PLACEHOLDER, "").strip()


def conversations(samples: Sequence[tuple[MeasuredSample, int | None]], max_questions: int, max_length: int) -> list[Conversation]:
    """Samples with the picture that each may share, None when it stays alone, as conversations of at most `most` questions.

    None is longer than `max_tokens`, whatever its targets and its first question. They come in the order of their first samples.
    """
    groups: list[list[MeasuredSample]] = []
    open_conversations: dict[int, int] = {}
    for sample, image in samples:
        index = open_conversations.get(image) if image is not None else None
        if index is not None and len(groups[index]) < max_questions and _max_total_tokens([*groups[index], sample]) <= max_length:
            groups[index].append(sample)
            continue
        if image is not None:
            open_conversations[image] = len(groups)
        groups.append([sample])
    return [tuple(conversation) for conversation in groups]


def _max_total_tokens(members: Sequence[MeasuredSample]) -> int:
    """The most tokens that these can take together: the first one saves nothing."""
    saved_tokens = [member.saved_tokens for member in members]
    return sum(max(member.lengths) for member in members) - sum(saved_tokens) + max(saved_tokens)


def shuffled_questions(conversation: Conversation, seed: int, epoch: int) -> list[MeasuredSample]:
    """The questions in the order of an epoch, drawn by a hash: every one comes first now and then."""
    if len(conversation) == 1:
        return list(conversation)
    return sorted(conversation, key=lambda member: (hash_to_index(member.sample_id, seed, epoch, 1 << 32), member.sample_id))


def num_tokens(conversation: Conversation, seed: int, epoch: int) -> int:
    """Tokens of a conversation with the targets and the order of an epoch."""
    first, *follow_ups = shuffled_questions(conversation, seed, epoch)
    return first.num_tokens(seed, epoch) + sum(member.num_tokens(seed, epoch) - member.saved_tokens for member in follow_ups)


def to_messages(samples: Sequence[Sample], seed: int, epoch: int) -> tuple[tuple[Message, ...], str]:
    """Messages and last target of samples that are asked one behind the other, with the targets of an epoch."""
    first, *follow_ups = samples
    messages, target = first.messages, first.target(seed, epoch)
    for sample in follow_ups:
        messages += (Message("assistant", target), Message("user", follow_up_text(sample)))
        target = sample.target(seed, epoch)
    return messages, target
