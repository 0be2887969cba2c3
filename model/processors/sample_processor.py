"""Converts conversations and images to token ids, labels and tensors: what every family of models shares.

Training and generation build their prompts with the same function, `SampleProcessor.turns`, so that they cannot differ.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from atomic_io import write_json
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample, EncodingError, check_messages
from dataset.loading.image_transform import PixelReader
from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts, Task
from errors import UsageError, loading
from model.checkpoint_manifest import verify
from renamed_keys import with_new_keys
from visual.hub_name import pretrained
from visual.pretrained_model import load_image_processor

PROCESSOR_SETTINGS_FILE = "tessera_processor.json"
"""Processor settings that the files of the tokenizer and of the image processor do not contain."""

PROMPTS_FILE = "tessera_prompts.json"
"""The prompts of a model exported to the LLaVA layout, whose files have no place for them."""

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
        visual_tokens: number of positions of images that the language model attends to.
    """

    ids: list[int]
    text: str
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    visual_tokens: int = 0


class SampleProcessor(ABC):
    """Tokenizer, image processor and prompt layout. A subclass knows the layout and counts the tokens of images.

    Args:
        tokenizer: fast tokenizer.
        image_processor: transformers' image processor.
        image_token_id: id of the placeholder for a part of an image.
        end_of_turn_id: token that ends an answer.
        max_length: maximum length of a sample in tokens.
        system_prompt: system message of every conversation; None for none, or the chat template's default.
        prompts: the sentences that said in training how an answer is wanted; who asks adds them to the question.
    """

    saved_settings: ClassVar[tuple[str, ...]] = ()
    """Arguments of the constructor that a checkpoint records, besides those below."""
    sizes_matter: ClassVar[bool] = False
    """Whether the number of an image's tokens depends on its size."""
    max_positions: int | None = None
    """Most tokens of a prompt with its answer; None where the model has no such limit."""
    joins_questions: bool = True
    """Whether several questions about an image can be one conversation, in which every answer is supervised."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Any,
        *,
        image_token_id: int,
        end_of_turn_id: int,
        max_length: int,
        system_prompt: str | None = None,
        prompts: Prompts | None = None,
    ):
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.pixel_reader = PixelReader(image_processor)
        self.image_token_id, self.end_of_turn_id = image_token_id, end_of_turn_id
        self.max_length = max_length
        self.system_prompt, self.prompts = system_prompt, prompts or {}
        self._special_ids: dict[str, list[int]] = {}
        self._text = _without_special_tokens(tokenizer)

    @abstractmethod
    def turns(self, messages: Sequence[Message], image_tokens: Sequence[int], task: Task) -> Iterator[list[Segment]]:
        """Segments of each user and assistant turn, in order. A user turn begins with the control text (and the system message) before
        it and ends where its answer begins.

        Args:
            messages: of a prompt, or of a training sample, whose last message is the answer.
            image_tokens: number of image tokens of each image.
            task: kind of sample.
        """

    @abstractmethod
    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        """Number of image tokens of each image. sizes: of the images, read only where the number depends on them.

        Raises EncodingError for images that the model cannot take.
        """

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Model inputs of images, as a data loader's worker passes them on; they are concatenated along the first dimension."""
        return {"pixel_values": self.pixel_reader.read(images)}

    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch, made ready for the model where they are: what `read` leaves to the device."""
        return {**inputs, "pixel_values": self.pixel_reader.normalize(inputs["pixel_values"])} if "pixel_values" in inputs else inputs

    def blank_images(self, num_images: int, sizes: Sequence[ImageSize]) -> list[Image.Image]:
        """Black images that take as many tokens as those of these sizes."""
        return [Image.new("RGB", size) for size in (sizes if self.sizes_matter else [(64, 64)] * num_images)]

    @abstractmethod
    def follow_up_length(self, text: str) -> int:
        """Length in tokens of a follow-up user turn without images, with the control tokens before and after it."""

    @abstractmethod
    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens; each image is one `<image>`."""

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings to a checkpoint folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Write what the files of tokenizer and image processor do not contain."""
        names = (*self.saved_settings, "max_length", "system_prompt", *(("prompts",) if self.prompts else ()))
        write_json(folder / PROCESSOR_SETTINGS_FILE, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a processor written by `save`. Raises UsageError when the folder contains none, or is damaged."""
        settings = read_processor_settings(folder)
        tokenizer = load_fast_tokenizer("checkpoint", str(folder))
        image_processor = load_image_processor("checkpoint", str(folder))
        with loading("checkpoint", str(folder)):
            return cls(tokenizer, image_processor, **settings)

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

    def prompt_with_images(self, messages: Sequence[Message], images: Sequence[Image.Image], task: Task = "conversation") -> Prompt:
        """A prompt and its images as model input. Raises EncodingError as `prompt`, and for a prompt that is too long."""
        ids = self.prompt(messages, len(images), [image.size for image in images], task)
        if len(ids) > self.max_length:
            raise EncodingError(f"the prompt has {len(ids)} tokens, at most {self.max_length} (model.max_length) are allowed")
        inputs = self.normalize(self.read(images)) if images else {}
        return Prompt(ids, self.readable(ids), inputs, ids.count(self.image_token_id))

    def prompt(
        self, messages: Sequence[Message], num_images: int, sizes: Sequence[ImageSize] = (), task: Task = "conversation"
    ) -> list[int]:
        """Token ids of a generation prompt, up to the position where the answer begins.

        Args:
            messages: conversation that ends with a user turn; every image is marked by `<image>` in a user turn.
            num_images: number of `<image>` marks.
            sizes: of the images; read only where the number of image tokens depends on them.
            task: kind of sample; read only by families whose prompt depends on it.

        Raises EncodingError when roles do not alternate, the marks do not match num_images, or the model cannot take the images.
        """
        check_messages(messages, num_images)
        return [token for turn in self.turns(messages, self.image_tokens(num_images, sizes), task) for ids, _ in turn for token in ids]

    def encode(
        self,
        messages: Sequence[Message],
        target: str,
        num_images: int,
        max_length: int | None = None,
        sizes: Sequence[ImageSize] = (),
        task: Task = "conversation",
    ) -> EncodedSample | None:
        """Encode a training sample: the prompt, the target and the end-of-turn token. All assistant turns are supervised.

        A sample that is too long loses its last turns first, then the end of the answer (a truncated answer has no end-of-turn
        token). A turn with an image is never removed.

        Args:
            messages: conversation that ends with a user turn.
            target: answer to that turn.
            num_images: number of `<image>` marks in the messages.
            max_length: maximum length in tokens; None for the processor's own.
            sizes, task: as in `prompt`.

        Returns None when no supervised token is left or an image would be cut. Raises EncodingError as `prompt`.
        """
        check_messages(messages, num_images)
        limit = max_length or self.max_length
        image_tokens = self.image_tokens(num_images, sizes)
        turns = self.turns([*messages, Message("assistant", target)], image_tokens, task)
        ids, labels = _turns_that_fit(turns, _last_with_image(messages), limit)
        images_complete = ids.count(self.image_token_id) == sum(image_tokens)
        if not images_complete or all(label == IGNORE_INDEX for label in labels):
            return None
        return EncodedSample(ids, labels, num_images)

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer with its end-of-turn token."""
        return [*self.text_ids(text.strip()), self.end_of_turn_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def special_ids(self, text: str) -> list[int]:
        """Token ids of control text, in which special tokens are found."""
        if text not in self._special_ids:
            self._special_ids[text] = list(self.tokenizer.encode(text, add_special_tokens=False))
        return self._special_ids[text]

    def text_ids(self, text: str) -> list[int]:
        """Token ids of plain text; special tokens written out in it are encoded as ordinary text."""
        return list(self._text.encode(text, add_special_tokens=False).ids)


def _last_with_image(messages: Sequence[Message]) -> int:
    """Index of the last turn that has an image, without counting the system message; 0 when there is none."""
    turns = [message for message in messages if message.role != "system"]
    return max((i for i, turn in enumerate(turns) if IMAGE_PLACEHOLDER in turn.content), default=0)


def _turns_that_fit(turns: Iterator[list[Segment]], last_with_image: int, limit: int) -> tuple[list[int], list[int]]:
    """Token ids and labels up to the last answer that ends within `limit`; up to `limit` if the answer to the last image, or the
    only one, ends after it.

    Every turn is tokenised at most once, and none after the first that cannot be kept.
    """
    ids: list[int] = []
    labels: list[int] = []
    kept = 0
    for i, segments in enumerate(turns):
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


def _without_special_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same tokenizer without added tokens: `<|im_start|>` or `<think>` in a user's message is encoded as ordinary text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "post_processor": None}))


def load_fast_tokenizer(key: str, name: str) -> PreTrainedTokenizerFast:
    """A tokenizer. key: setting that names it, for messages. Raises UsageError when it cannot be loaded or is not a fast one."""
    with loading(key, name):
        tokenizer = AutoTokenizer.from_pretrained(**pretrained(name))
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(f"{key}: {name} has no fast tokenizer (tokenizer.json); Qwen 2, 2.5 and 3 have one")
    return tokenizer


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
