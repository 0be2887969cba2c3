"""Converts messages and images to inputs of a Qwen vision-language model, without torchvision.

Prompts are built piece by piece from the model's own chat template, so that control tokens in a user's text are tokenised as text.
Shapes: N prompts, T tokens, P patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dataset.loading.encoded_sample import EncodedSample, EncodingError
from dataset.sample import IMAGE_PLACEHOLDER
from errors import UsageError
from model.processors.chat_processor import ChatProcessor, load_chat_tokenizer
from model.processors.sample_processor import ImageSize
from model.qwen_vl.modeling import QWEN_VL
from visual.pretrained_model import load_image_processor

IMAGE_TOKEN, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"


class QwenVlProcessor(ChatProcessor):
    """Tokenizer, the model's own image processor with its limits of pixels, and prompt layout; an image takes a token for each
    merge_size x merge_size patches."""

    sizes_matter: ClassVar[bool] = True

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: Any, **settings: Any):
        super().__init__(tokenizer, image_processor, image_token=IMAGE_TOKEN, **settings)
        self._start, self._end = (int(token) for token in tokenizer.convert_tokens_to_ids([VISION_START, VISION_END]))

    @classmethod
    def from_pretrained(
        cls, key: str, path: str, *, max_length: int | None = None, pixel_limits: Mapping[str, int | None] = {}, **settings: Any
    ) -> Self:
        """Load the tokenizer and the image processor of a model.

        Args:
            key: setting that names the model, for messages.
            path: folder or hub name.
            max_length: maximum length of a sample in tokens; None for the most that the model can take.
            pixel_limits: shortest_edge and longest_edge of the image processor, in pixels; None for its own.
            settings: system_prompt and prompts.

        Raises UsageError when one of them cannot be loaded, or the limits leave no room.
        """
        tokenizer = load_chat_tokenizer(key, path)
        image_processor = load_image_processor(key, path)
        size = dict(image_processor.size) | {name: pixels for name, pixels in pixel_limits.items() if pixels is not None}
        if size["shortest_edge"] > size["longest_edge"]:
            raise UsageError(
                f"{key}: images of {path} would have at least {size['shortest_edge']} and at most {size['longest_edge']} pixels; "
                "set both model.min_pixels and model.max_pixels"
            )
        image_processor.size = type(image_processor.size)(**size)
        max_length = max_length or int(QWEN_VL.read_config(key, path).get_text_config(decoder=True).max_position_embeddings)
        return cls(tokenizer, image_processor, max_length=max_length, **settings)

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        """Number of image tokens of each image. Raises EncodingError for an image that the model cannot take."""
        if len(sizes) != num_images:
            raise EncodingError(f"{len(sizes)} image sizes for {num_images} images")
        return [self._patches(size) // self.image_processor.merge_size**2 for size in sizes]

    def _patches(self, size: ImageSize) -> int:
        width, height = size
        try:
            return int(self.image_processor.get_number_of_image_patches(height, width, {}))
        except ValueError as error:
            raise EncodingError(f"the image processor cannot encode an image: {error}") from error

    def image_segment(self, count: int) -> list[int]:
        return [self._start, *super().image_segment(count), self._end]

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [P, values per patch] and image_grid_thw [images, 3]: patches of each image over time, height and width."""
        if not images:
            values = 3 * self.image_processor.temporal_patch_size * self.image_processor.patch_size**2
            return {"pixel_values": torch.empty(0, values), "image_grid_thw": torch.empty(0, 3, dtype=torch.long)}
        try:
            encoded = self.image_processor(images=list(images), return_tensors="pt")
        except ValueError as error:
            raise EncodingError(f"the image processor cannot encode an image: {error}") from error
        return {name: encoded[name] for name in ("pixel_values", "image_grid_thw")}

    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs as they are: `read` gives final values."""
        return inputs

    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens, each image with its control tokens collapsed to one `<image>`."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token == self._start:
                parts += [str(self.tokenizer.decode(run)), IMAGE_PLACEHOLDER]
                run = []
            elif token not in (self.image_token_id, self._end):
                run.append(token)
        return "".join([*parts, str(self.tokenizer.decode(run))])

    def pixel_rows(self, encoded: EncodedSample) -> int:
        """Patches of the images of an encoded sample."""
        return encoded.input_ids.count(self.image_token_id) * int(self.image_processor.merge_size) ** 2

    def end_ids(self, model: Any) -> list[int]:
        """The end of a turn, and what the model's generation config names."""
        ids = model.generation_config.eos_token_id
        return [self.end_of_turn_id, *(ids if isinstance(ids, list) else [ids or self.tokenizer.eos_token_id])]

    def positions(self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, images: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position ids [4, N, T]: in the text, then time, height and width (multimodal RoPE, arXiv:2409.12191)."""
        text = super().positions(model, input_ids, attention_mask, images)[None]
        if not images:
            return text.expand(4, -1, -1)
        multimodal, _ = model.model.get_rope_index(
            input_ids=input_ids,
            mm_token_type_ids=(input_ids == self.image_token_id).int(),
            image_grid_thw=images["image_grid_thw"],
            attention_mask=attention_mask,
        )
        return torch.cat([text, multimodal])
