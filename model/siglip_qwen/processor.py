"""Converts messages and images to model inputs: token ids with image tokens, labels on assistant turns, pixel values.

Training and generation build their prompts with the same function, so that they cannot differ.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipImageProcessorPil

from atomic_io import write_json
from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample, check_messages
from dataset.loading.image_transform import PixelReader
from dataset.sample import IMAGE_PLACEHOLDER, Message, Prompts
from errors import UsageError, loading
from model.checkpoint_manifest import verify
from model.siglip_qwen.chat_template import ChatTemplateParts, chat_template_parts, check_answers_follow
from renamed_keys import with_new_keys
from visual.hub_name import pretrained

PROCESSOR_SETTINGS_FILE = "tessera_processor.json"
"""Processor settings that the files of the tokenizer and of the image processor do not contain."""

PROMPTS_FILE = "tessera_prompts.json"
"""The prompts of a model exported to the LLaVA layout, whose files have no place for them."""

IMAGE_TOKEN_CANDIDATES = ("<|image_pad|>", "<|extra_0|>")
"""Candidates for the image token, in order of preference."""

Segment: TypeAlias = tuple[list[int], bool]
"""Token ids that belong together, and whether they are supervised."""


class Processor:
    """Tokenizer, image processor and prompt layout.

    Args:
        tokenizer: fast tokenizer with a chat template.
        image_processor: transformers image processor of the vision encoder.
        image_token: placeholder token for a patch.
        tokens_per_image: image tokens per image.
        max_length: maximum length of a sample in tokens.
        system_prompt: system message of every conversation; None for the chat template's default.
        prompts: the sentences that said in training how an answer is wanted; who asks adds them to the question.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Any,
        *,
        image_token: str,
        tokens_per_image: int,
        max_length: int,
        system_prompt: str | None = None,
        prompts: Prompts | None = None,
    ):
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.pixel_reader = PixelReader(image_processor)
        self.image_token = image_token
        self.image_token_id = int(tokenizer.convert_tokens_to_ids(image_token))
        self.tokens_per_image, self.max_length = tokens_per_image, max_length
        self.system_prompt, self.prompts = system_prompt, prompts or {}
        self.template_parts: ChatTemplateParts = chat_template_parts(tokenizer)
        self.end_of_turn_id = int(tokenizer.convert_tokens_to_ids(self.template_parts.end))
        self._special_ids: dict[str, list[int]] = {}
        self._text = _without_special_tokens(tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        *,
        language: str,
        vision: str,
        tokens_per_image: int,
        vocab_size: int,
        image_token: str = "auto",
        max_length: int = 2048,
        system_prompt: str | None = None,
        prompts: Prompts | None = None,
    ) -> Self:
        """Load the tokenizer and the image processor of two pre-trained models.

        Args:
            language: language model, folder or hub name.
            vision: vision encoder, folder or hub name.
            tokens_per_image: image tokens per image.
            vocab_size: rows of the language model's embedding; an added image token must be below it.
            image_token: placeholder token for a patch, or auto for the first of IMAGE_TOKEN_CANDIDATES in the vocabulary.
            max_length: maximum length of a sample in tokens.
            system_prompt: system message of every conversation; None for the chat template's default.
            prompts: the sentences that say in training how an answer is wanted.

        Raises:
            UsageError: a model cannot be loaded, is not supported, or its embedding has no row for the image token.
        """
        with loading("model.language", language):
            tokenizer = AutoTokenizer.from_pretrained(**pretrained(language))
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UsageError(f"model.language: {language} has no fast tokenizer (tokenizer.json); Qwen 2, 2.5 and 3 have one")
        if not tokenizer.chat_template:
            raise UsageError(f"model.language: the tokenizer of {language} has no chat template")
        check_answers_follow(tokenizer, f"model.language: {language}")
        with loading("model.vision", vision):
            # Explicitly the Pillow one: AutoImageProcessor resizes with torchvision where that is installed, which gives other pixels.
            image_processor = SiglipImageProcessorPil.from_pretrained(**pretrained(vision))
        if not {"height", "width"} <= set(dict(image_processor.size)):
            raise UsageError(
                f"model.vision: {vision} has no fixed resolution (found size {dict(image_processor.size)}); NaFlex models are not supported"
            )
        return cls(
            tokenizer,
            image_processor,
            image_token=_choose_image_token(tokenizer, image_token, vocab_size),
            tokens_per_image=tokens_per_image,
            max_length=max_length,
            system_prompt=system_prompt,
            prompts=prompts,
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings to a checkpoint folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        write_json(
            folder / PROCESSOR_SETTINGS_FILE,
            {
                "image_token": self.image_token,
                "tokens_per_image": self.tokens_per_image,
                "max_length": self.max_length,
                "system_prompt": self.system_prompt,
                **({"prompts": self.prompts} if self.prompts else {}),
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a processor written by `save`. Raises UsageError when the folder contains none, or is damaged."""
        verify(folder)
        if not (folder / PROCESSOR_SETTINGS_FILE).is_file():
            reason = f"it has no {PROCESSOR_SETTINGS_FILE}" if folder.is_dir() else "the folder does not exist"
            raise UsageError(f"{folder}: not a checkpoint ({reason})")
        with loading("checkpoint", str(folder)):
            settings = with_new_keys("model", json.loads((folder / PROCESSOR_SETTINGS_FILE).read_text(encoding="utf-8")))
            tokenizer = AutoTokenizer.from_pretrained(**pretrained(folder))
            image_processor = SiglipImageProcessorPil.from_pretrained(**pretrained(folder))
            return cls(tokenizer, image_processor, **settings)

    def prompt(self, messages: Sequence[Message], num_images: int) -> list[int]:
        """Token ids of a generation prompt, up to the position where the answer begins.

        Args:
            messages: conversation that ends with a user turn; every image is marked by `<image>` in a user turn.
            num_images: number of `<image>` marks.

        Raises:
            EncodingError: roles do not alternate, or the marks do not match num_images.
        """
        check_messages(messages, num_images)
        return [token for turn in self._turns(messages) for ids, _ in turn for token in ids]

    def encode(self, messages: Sequence[Message], target: str, num_images: int, max_length: int | None = None) -> EncodedSample | None:
        """Encode a training sample: the prompt, the target and the end-of-turn token. All assistant turns are supervised.

        A sample that is too long loses its last turns first, then the end of the answer (a truncated answer has no end-of-turn
        token). A turn with an image is never removed.

        Args:
            messages: conversation that ends with a user turn.
            target: answer to that turn.
            num_images: number of `<image>` marks in the messages.
            max_length: maximum length in tokens; None for the processor's own.

        Returns:
            Token ids and labels, or None when no supervised token is left or an image would be cut.

        Raises:
            EncodingError: as in `prompt`.
        """
        check_messages(messages, num_images)
        limit = max_length or self.max_length
        ids, labels = self._encode_turns_that_fit(messages, target, limit)
        images_complete = ids.count(self.image_token_id) == num_images * self.tokens_per_image
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

    def _encode_turns_that_fit(self, messages: Sequence[Message], target: str, limit: int) -> tuple[list[int], list[int]]:
        """Token ids and labels up to the last answer that ends within `limit`; up to `limit` if the answer to the last image, or the
        only one, ends after it.

        Every turn is tokenised at most once, and none after the first that cannot be kept.
        """
        turns = [message for message in messages if message.role != "system"]
        last_with_image = max((i for i, turn in enumerate(turns) if IMAGE_PLACEHOLDER in turn.content), default=0)
        ids: list[int] = []
        labels: list[int] = []
        kept = 0
        for i, segments in enumerate(self._turns([*messages, Message("assistant", target)])):
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

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Pixel values [N, 3, H, W] of RGB images, equal to those of the vision encoder's image processor.

        Data loaders run the two steps separately: `pixel_reader.read` in a worker, `pixel_reader.normalize` on the device.
        """
        return self.pixel_reader.normalize(self.pixel_reader.read(images))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens, each image's image tokens collapsed to one `<image>`."""
        parts: list[str] = []
        run: list[int] = []
        num_seen = 0
        for token in ids:
            if token != self.image_token_id:
                run.append(token)
                continue
            num_seen += 1
            if num_seen % self.tokens_per_image == 1 or self.tokens_per_image == 1:
                parts += [str(self.tokenizer.decode(run)), IMAGE_PLACEHOLDER]
                run = []
        return "".join([*parts, str(self.tokenizer.decode(run))])

    def _turns(self, messages: Sequence[Message]) -> Iterator[list[Segment]]:
        """Segments of each user and assistant turn, in order. A user turn begins with the control text (and the system message) before
        it and ends where its answer begins."""
        template_parts = self.template_parts
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
                    segments.append(([self.image_token_id] * self.tokens_per_image, False))
                segments.append((self._encode_text(text), False))
            yield [*segments, (self._encode_special(template_parts.header), False)]

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


def _choose_image_token(tokenizer: PreTrainedTokenizerFast, requested: str, vocab_size: int) -> str:
    vocab = tokenizer.get_vocab()
    if requested == "auto":
        requested = next((token for token in IMAGE_TOKEN_CANDIDATES if token in vocab), IMAGE_TOKEN_CANDIDATES[0])
    if requested not in vocab:
        tokenizer.add_tokens([requested], special_tokens=True)
    token_id = int(tokenizer.convert_tokens_to_ids(requested))
    if token_id >= vocab_size:
        raise UsageError(
            f"model.image_token: {requested} would get token id {token_id}, but the language model has only {vocab_size} embeddings"
        )
    return requested
