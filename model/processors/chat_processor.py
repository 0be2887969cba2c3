"""Prompts of language models with a chat template: control tokens around every turn, extracted from the model's own template."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from dataset.sample import IMAGE_PLACEHOLDER, Message, Task
from errors import UsageError
from model.processors.chat_template import ChatTemplateParts, chat_template_parts, check_answers_follow
from model.processors.sample_processor import ImageSize, SampleProcessor, Segment, load_fast_tokenizer


class ChatProcessor(SampleProcessor):
    """A processor whose prompts follow a chat template.

    Args:
        tokenizer: fast tokenizer with a chat template.
        image_processor: transformers' image processor.
        image_token: placeholder token for a part of an image.
        plain_end: the token that ends an answer where the chat template has none; None if it must have one.
        settings: max_length, system_prompt, prompts, as in `SampleProcessor`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Any,
        *,
        image_token: str,
        plain_end: str | None = None,
        **settings: Any,
    ):
        self.image_token = image_token
        self.template_parts: ChatTemplateParts = chat_template_parts(tokenizer, plain_end)
        super().__init__(
            tokenizer,
            image_processor,
            image_token_id=int(tokenizer.convert_tokens_to_ids(image_token)),
            end_of_turn_id=int(tokenizer.convert_tokens_to_ids(self.template_parts.end)),
            **settings,
        )

    def image_segment(self, count: int) -> list[int]:
        """The token ids of an image with `count` image tokens."""
        return [self.image_token_id] * count

    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a follow-up user turn without images, with the control tokens before and after it."""
        parts = self.template_parts
        return len(self.special_ids(parts.next_user)) + len(self.text_ids(text)) + len(self.special_ids(parts.header))

    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """As `SampleProcessor.turns`; the task changes nothing."""
        del task
        parts, images = self.template_parts, iter(image_tokens)
        system = messages[0].content if messages[0].role == "system" else self.system_prompt
        segments: list[Segment] = [(self.special_ids(parts.opening), False)]
        if system is not None:
            segments = [
                (self.special_ids(parts.system_open), False),
                (self.text_ids(system), False),
                (self.special_ids(parts.system_close), False),
            ]
        for turn in (message for message in messages if message.role != "system"):
            if turn.role == "assistant":
                yield [(self.answer_ids(turn.content), True)]
                segments = [(self.special_ids(parts.next_user), False)]
                continue
            for j, text in enumerate(turn.content.split(IMAGE_PLACEHOLDER)):
                if j:
                    segments.append((self.image_segment(next(images)), False))
                segments.append((self.text_ids(text), False))
            yield [*segments, (self.special_ids(parts.header), False)]


class FixedTokensProcessor(ChatProcessor):
    """A processor whose images take equally many tokens each, `tokens_per_image`, whatever their size."""

    saved_settings: ClassVar[tuple[str, ...]] = ("image_token", "tokens_per_image")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: Any, *, tokens_per_image: int, **settings: Any):
        super().__init__(tokenizer, image_processor, **settings)
        self.tokens_per_image = tokens_per_image

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        del sizes
        return [self.tokens_per_image] * num_images

    def readable(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        run: list[int] = []
        num_seen = 0
        for token in ids:
            if token != self.image_token_id:
                run.append(token)
                continue
            if num_seen % self.tokens_per_image == 0:
                parts += [str(self.tokenizer.decode(run)), IMAGE_PLACEHOLDER]
                run = []
            num_seen += 1
        return "".join([*parts, str(self.tokenizer.decode(run))])


def load_chat_tokenizer(key: str, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a language model. key: setting that names it, for messages.

    Raises UsageError when it cannot be loaded, is not a fast one, or its chat template cannot be trained with.
    """
    tokenizer = load_fast_tokenizer(key, name)
    if not tokenizer.chat_template:
        raise UsageError(f"{key}: the tokenizer of {name} has no chat template")
    check_answers_follow(tokenizer, f"{key}: {name}")
    return tokenizer
