"""Converts conversations to token ids and labels, for language models with a chat template of the ChatML kind.

Training and generation build their prompts with the same function, so that they cannot differ.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from atomic_io import write_json
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample, EncodingError, check_messages
from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts
from errors import UsageError, loading
from model.chat_template import ChatTemplateParts, chat_template_parts, check_answers_follow
from model.checkpoint_manifest import verify
from renamed_keys import with_new_keys
from visual.hub_name import pretrained

PROCESSOR_SETTINGS_FILE = "tessera_processor.json"
"""Processor settings that the files of the tokenizer and of the image processor do not contain."""

Segment: TypeAlias = tuple[list[int], bool]
"""Token ids that belong together, and whether they are supervised."""

ImageSize: TypeAlias = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that asks for an answer, as model input.

    Args:
        ids: token ids.
        text: the prompt as text, for people.
        images: arguments of the forward pass, such as pixel_values; they are concatenated over prompts along the first dimension.
        visual_tokens: number of positions that the images take in the language model's input.
    """

    ids: list[int]
    text: str
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    visual_tokens: int = 0


class ChatProcessor(ABC):
    """Tokenizer and prompt layout. A subclass knows how many tokens an image takes, and reads images.

    Args:
        tokenizer: fast tokenizer with a chat template.
        image_token: placeholder token for a part of an image.
        max_length: maximum length of a sample in tokens.
        system_prompt: system message of every conversation; None for the chat template's default.
        prompts: the sentences that said in training how an answer is wanted; who asks adds them to the question.
    """

    image_processor: Any
    """transformers' image processor."""
    sizes_matter: ClassVar[bool] = False
    """Whether the number of an image's tokens depends on its size."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        image_token: str,
        max_length: int,
        system_prompt: str | None = None,
        prompts: Prompts | None = None,
    ):
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(image_token))
        self.max_length = max_length
        self.system_prompt, self.prompts = system_prompt, prompts or {}
        self.template_parts: ChatTemplateParts = chat_template_parts(tokenizer)
        self.end_of_turn_id = int(tokenizer.convert_tokens_to_ids(self.template_parts.end))
        self._special_ids: dict[str, list[int]] = {}
        self._text = _without_special_tokens(tokenizer)

    @abstractmethod
    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        """Number of image tokens of each image. sizes: of the images, read only where the number depends on them."""

    @abstractmethod
    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Model inputs of images, as a data loader's worker passes them on; they are concatenated along the first dimension."""

    @abstractmethod
    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch, made ready for the model where they are: what `read` leaves to the device."""

    @abstractmethod
    def blank_images(self, num_images: int, sizes: Sequence[ImageSize]) -> list[Image.Image]:
        """Black images that take as many tokens as those of these sizes."""

    @abstractmethod
    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens; each image is one `<image>`."""

    def pixel_rows(self, encoded: EncodedSample) -> int:
        """Rows of pixel_values that an encoded sample has."""
        return encoded.num_images

    def end_ids(self, model: Any) -> list[int]:
        """Token ids that end an answer of `model`."""
        del model
        return [self.end_of_turn_id, int(self.tokenizer.eos_token_id)]

    def positions(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids [n, t] of left-padded prompts, counted from the first real token."""
        del model, input_ids, images
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def prompt_with_images(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> Prompt:
        """A prompt and its images as model input. Raises EncodingError as `prompt`, and for a prompt that is too long."""
        ids = self.prompt(messages, len(images), [image.size for image in images])
        if len(ids) > self.max_length:
            raise EncodingError(f"the prompt has {len(ids)} tokens, at most {self.max_length} (model.max_length) are allowed")
        inputs = self.normalize(self.read(images)) if images else {}
        return Prompt(ids, self.readable(ids), inputs, ids.count(self.image_token_id))

    def _image_segment(self, count: int) -> list[int]:
        """The token ids of an image with `count` image tokens."""
        return [self.image_token_id] * count

    def prompt(self, messages: Sequence[Message], num_images: int, sizes: Sequence[ImageSize] = ()) -> list[int]:
        """Token ids of a generation prompt, up to the position where the answer begins.

        Args:
            messages: conversation that ends with a user turn; every image is marked by `<image>` in a user turn.
            num_images: number of `<image>` marks.
            sizes: of the images; read only where the number of image tokens depends on them.

        Raises:
            EncodingError: roles do not alternate, or the marks do not match num_images.
        """
        check_messages(messages, num_images)
        return [token for turn in self._turns(messages, self.image_tokens(num_images, sizes)) for ids, _ in turn for token in ids]

    def encode(
        self,
        messages: Sequence[Message],
        target: str,
        num_images: int,
        max_length: int | None = None,
        sizes: Sequence[ImageSize] = (),
    ) -> EncodedSample | None:
        """Encode a training sample: the prompt, the target and the end-of-turn token. All assistant turns are supervised.

        A sample that is too long loses its last turns first, then the end of the answer (a truncated answer has no end-of-turn
        token). A turn with an image is never removed.

        Args:
            messages: conversation that ends with a user turn.
            target: answer to that turn.
            num_images: number of `<image>` marks in the messages.
            max_length: maximum length in tokens; None for the processor's own.
            sizes: as in `prompt`.

        Returns:
            Token ids and labels, or None when no supervised token is left or an image would be cut.

        Raises:
            EncodingError: as in `prompt`.
        """
        check_messages(messages, num_images)
        limit = max_length or self.max_length
        image_tokens = self.image_tokens(num_images, sizes)
        ids, labels = self._encode_turns_that_fit(messages, target, image_tokens, limit)
        images_complete = ids.count(self.image_token_id) == sum(image_tokens)
        if not images_complete or all(label == IGNORE_INDEX for label in labels):
            return None
        return EncodedSample(ids, labels, num_images)

    def answer_length(self, target: str) -> int:
        """Length of a target with its end-of-turn token, in tokens."""
        return len(self._encode_text(target.strip())) + 1

    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a follow-up user turn without images, with the control tokens before and after it."""
        template_parts = self.template_parts
        return (
            len(self._encode_special(template_parts.next_user))
            + len(self._encode_text(text))
            + len(self._encode_special(template_parts.header))
        )

    def _encode_turns_that_fit(
        self, messages: Sequence[Message], target: str, image_tokens: Sequence[int], limit: int
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels up to the last answer that ends within `limit`; up to `limit` if the answer to the last image, or the
        only one, ends after it.

        Every turn is tokenised at most once, and none after the first that cannot be kept.
        """
        turns = [message for message in messages if message.role != "system"]
        last_with_image = max((i for i, turn in enumerate(turns) if IMAGE_PLACEHOLDER in turn.content), default=0)
        ids: list[int] = []
        labels: list[int] = []
        kept = 0
        for i, segments in enumerate(self._turns([*messages, Message("assistant", target)], image_tokens)):
            for tokens, supervised in segments:
                ids += tokens
                labels += tokens if supervised else [IGNORE_INDEX] * len(tokens)
            is_answer, may_be_dropped = i % 2 == 1, i > last_with_image + 1
            if is_answer and (len(ids) <= limit or not may_be_dropped):
                kept = len(ids)
            if len(ids) > limit and i > last_with_image:
                break
        kept = min(kept, limit)
        return ids[:kept], labels[:kept]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _turns(self, messages: Sequence[Message], image_tokens: Sequence[int]) -> Iterator[list[Segment]]:
        """Segments of each user and assistant turn, in order. A user turn begins with the control text (and the system message) before
        it and ends where its answer begins."""
        template_parts, images = self.template_parts, iter(image_tokens)
        system = messages[0].content if messages[0].role == "system" else self.system_prompt
        segments: list[Segment] = [(self._encode_special(template_parts.opening), False)]
        if system is not None:
            segments = [
                (self._encode_special(template_parts.system_open), False),
                (self._encode_text(system), False),
                (self._encode_special(template_parts.system_close), False),
            ]
        for turn in (message for message in messages if message.role != "system"):
            if turn.role == "assistant":
                yield [([*self._encode_text(turn.content.strip()), self.end_of_turn_id], True)]
                segments = [(self._encode_special(template_parts.next_user), False)]
                continue
            for j, text in enumerate(turn.content.split(IMAGE_PLACEHOLDER)):
                if j:
                    segments.append((self._image_segment(next(images)), False))
                segments.append((self._encode_text(text), False))
            yield [*segments, (self._encode_special(template_parts.header), False)]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings to a checkpoint folder."""

    def save_settings(self, folder: Path, **more: Any) -> None:
        """Write the settings that a checkpoint needs besides the files of tokenizer and image processor."""
        prompts = {"prompts": self.prompts} if self.prompts else {}
        settings = {**more, "max_length": self.max_length, "system_prompt": self.system_prompt, **prompts}
        write_json(folder / PROCESSOR_SETTINGS_FILE, settings)

    def _encode_special(self, text: str) -> list[int]:
        if text not in self._special_ids:
            self._special_ids[text] = list(self.tokenizer.encode(text, add_special_tokens=False))
        return self._special_ids[text]

    def _encode_text(self, text: str) -> list[int]:
        """Token ids of plain text; special tokens written out in it are encoded as ordinary text."""
        return list(self._text.encode(text, add_special_tokens=False).ids)


def _without_special_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same tokenizer without added tokens: `<|im_start|>` or `<think>` in a user's message is encoded as ordinary text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "post_processor": None}))


def read_processor_settings(folder: Path) -> dict[str, Any]:
    """What `save_settings` wrote to a checkpoint. Raises UsageError when the folder contains none, or is damaged."""
    verify(folder)
    path = folder / PROCESSOR_SETTINGS_FILE
    if not path.is_file():
        reason = f"it has no {PROCESSOR_SETTINGS_FILE}" if folder.is_dir() else "the folder does not exist"
        raise UsageError(f"{folder}: not a checkpoint ({reason})")
    with loading("checkpoint", str(folder)):
        settings: dict[str, Any] = with_new_keys("model", json.loads(path.read_text(encoding="utf-8")))
    return settings


def load_chat_tokenizer(key: str, name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a language model. key: setting that names it, for messages.

    Raises UsageError when it cannot be loaded, is not a fast one, or its chat template cannot be trained with.
    """
    with loading(key, name):
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(name))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(f"{key}: {name} has no fast tokenizer (tokenizer.json); Qwen 2, 2.5 and 3 have one")
    if not tokenizer.chat_template:
        raise UsageError(f"{key}: the tokenizer of {name} has no chat template")
    check_answers_follow(tokenizer, f"{key}: {name}")
    return tokenizer
