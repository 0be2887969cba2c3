"""Converts messages and images to inputs of a LLaVA, with the chat template of its folder.

Templates of control tokens (Qwen) and of plain words (`USER: ... ASSISTANT:`, LLaVA-1.5) are both read. Plain words are tokenised
together with the text next to them, and an answer ends with the end-of-text token, as these models are trained.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts, Task
from errors import UsageError, loading
from model.llava.modeling import LLAVA, tokens_per_image
from model.processors.chat_processor import FixedTokensProcessor
from model.processors.sample_processor import PROMPTS_FILE, Segment, load_fast_tokenizer
from visual.pretrained_model import load_image_processor


class LlavaProcessor(FixedTokensProcessor):
    """Tokenizer with the folder's chat template, image processor and prompt layout; every image takes equally many tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: Any, **settings: Any):
        super().__init__(tokenizer, image_processor, plain_end=tokenizer.eos_token, **settings)
        # Stock processors let the tokenizer add its first token, unless the template has it.
        first = list(tokenizer("").input_ids)[:1]
        self._first = [] if self.special_ids(self.template_parts.opening)[:1] == first else first
        self._plain = self.template_parts.end not in tokenizer.chat_template

    @classmethod
    def from_pretrained(
        cls, key: str, path: str, *, max_length: int | None = None, system_prompt: str | None = None, prompts: Prompts | None = None
    ) -> Self:
        """Load the tokenizer and the image processor of a model.

        Args:
            key: setting that names the model, for messages.
            path: folder or hub name.
            max_length: maximum length of a sample in tokens; None for the most that the model can take.
            system_prompt: system message of every conversation; None for the chat template's default.
            prompts: the sentences that said in training how an answer is wanted; None for those of an export of ours.

        Raises UsageError when one of them cannot be loaded, or there is no chat template.
        """
        config = LLAVA.read_config(key, path)
        tokenizer = load_fast_tokenizer(key, path)
        with loading(key, path):
            if prompts is None and (file := Path(path) / PROMPTS_FILE).is_file():
                prompts = json.loads(file.read_text(encoding="utf-8"))
            if not tokenizer.chat_template and (file := Path(path) / "chat_template.json").is_file():
                tokenizer.chat_template = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        if not tokenizer.chat_template:
            raise UsageError(f"{key}: {path} has no chat template, which says how this LLaVA was asked in training")
        return cls(
            tokenizer,
            load_image_processor(key, path),
            image_token=str(tokenizer.convert_ids_to_tokens(config.image_token_id)),
            tokens_per_image=tokens_per_image(config),
            max_length=max_length or int(config.text_config.max_position_embeddings),
            system_prompt=system_prompt,
            prompts=prompts,
        )

    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """As `ChatProcessor.turns`."""
        before = [(self._first, False)] if self._first else []
        for segments in self._plain_turns(messages, image_tokens) if self._plain else super().turns(messages, image_tokens, task):
            yield [*before, *segments]
            before = []

    def _plain_turns(self, messages: Sequence[Message], image_tokens: Sequence[int]) -> Iterator[list[Segment]]:
        parts, images = self.template_parts, iter(image_tokens)
        system = messages[0].content if messages[0].role == "system" else self.system_prompt
        text = parts.opening if system is None else f"{parts.system_open}{system}{parts.system_close}"
        for turn in (message for message in messages if message.role != "system"):
            if turn.role == "assistant":
                yield [(self.answer_ids(turn.content), True)]
                text = parts.next_user
                continue
            segments: list[Segment] = []
            for j, piece in enumerate(turn.content.split(IMAGE_PLACEHOLDER)):
                if j:
                    segments += [(self.text_ids(text), False)] if text else []
                    segments.append((self.image_segment(next(images)), False))
                    text = ""
                text += piece
            yield [*segments, (self.text_ids(text + parts.header), False)]

    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a follow-up user turn without images, with what the template puts before and after it."""
        parts = self.template_parts
        return len(self.text_ids(parts.next_user + text + parts.header)) if self._plain else super().follow_up_length(text)

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """As `SampleProcessor.read`; without images, no rows of the size that an image gets."""
        return super().read(images) if images else {"pixel_values": self.pixel_reader.read(self.blank_images(1, ()))[:0]}
