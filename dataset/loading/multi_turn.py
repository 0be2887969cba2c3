"""Group short VQA questions about one image into multi-turn conversations, so that its image tokens are encoded once.

LLaVA-1.5 merges its VQA data in this way (Liu et al. 2023, arXiv:2310.03744). Training only: evaluation asks every
question on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dataset.sample import IMAGE_PLACEHOLDER, Message, Sample, hash_to_index


@dataclass(frozen=True, slots=True)
class MeasuredSample:
    """A sample with its length.

    Args:
        row: Row in the `SampleStore`.
        sample_id: Id of the sample.
        lengths: Tokens of the whole sample with each of its targets.
        saved_tokens: Tokens saved when the sample is a follow-up turn, without image and system prompt.
    """

    row: int
    sample_id: str
    lengths: tuple[int, ...]
    saved_tokens: int = 0

    def num_tokens(self, seed: int, epoch: int) -> int:
        """Number of tokens with the target of an epoch."""
        return self.lengths[hash_to_index(self.sample_id, seed, epoch, len(self.lengths))]


Conversation = tuple[MeasuredSample, ...]


def can_share_conversation(sample: Sample) -> bool:
    """Whether the sample can be one turn among others: a single VQA question about one image."""
    return sample.task == "vqa" and len(sample.image_ids) == 1 and len(sample.messages) == 1


def follow_up_text(sample: Sample) -> str:
    """The last question with its prompt and without its image placeholder, for use as a follow-up turn."""
    return sample.prompted_messages[-1].content.replace(IMAGE_PLACEHOLDER, "").strip()


def conversations(samples: Sequence[tuple[MeasuredSample, int | None]], max_questions: int, max_length: int) -> list[Conversation]:
    """Group samples into conversations, ordered by their first samples.

    Args:
        samples: Each sample with the id of its image, or None when it must stay on its own.
        max_questions: Most samples of a conversation.
        max_length: Most tokens of a conversation, whatever targets and first question an epoch picks.
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


def balance_by_category(conversations: Sequence[Conversation], category_of_row: Sequence[str | None]) -> list[Conversation]:
    """Repeat conversations of smaller categories until each category has as many as the largest.

    Args:
        conversations: Conversations; the first sample of each decides its category.
        category_of_row: Category of each sample of the `SampleStore`, None for none; those conversations stay as they are.
    """
    by_category: dict[str | None, list[Conversation]] = {}
    for conversation in conversations:
        by_category.setdefault(category_of_row[conversation[0].row], []).append(conversation)
    without = by_category.pop(None, [])
    largest = max(map(len, by_category.values()), default=0)
    return [*without, *(members[i % len(members)] for members in by_category.values() for i in range(largest))]


def _max_total_tokens(members: Sequence[MeasuredSample]) -> int:
    """Upper bound of the tokens of a conversation: the longest targets, and the first question saves nothing."""
    saved_tokens = [member.saved_tokens for member in members]
    return sum(max(member.lengths) for member in members) - sum(saved_tokens) + max(saved_tokens)


def shuffled_questions(conversation: Conversation, seed: int, epoch: int) -> list[MeasuredSample]:
    """The questions in the order of an epoch. A hash orders them, so each comes first in some epochs."""
    if len(conversation) == 1:
        return list(conversation)
    return sorted(conversation, key=lambda member: (hash_to_index(member.sample_id, seed, epoch, 1 << 32), member.sample_id))


def num_tokens(conversation: Conversation, seed: int, epoch: int) -> int:
    """Number of tokens of a conversation with the targets and the order of an epoch."""
    first, *follow_ups = shuffled_questions(conversation, seed, epoch)
    return first.num_tokens(seed, epoch) + sum(member.num_tokens(seed, epoch) - member.saved_tokens for member in follow_ups)


def to_messages(samples: Sequence[Sample], seed: int, epoch: int) -> tuple[tuple[Message, ...], str]:
    """Messages and final target of samples joined to one conversation, with the targets of an epoch."""
    first, *follow_ups = samples
    messages, target = first.prompted_messages, first.target(seed, epoch)
    for sample in follow_ups:
        messages += (Message("assistant", target), Message("user", follow_up_text(sample)))
        target = sample.target(seed, epoch)
    return messages, target
