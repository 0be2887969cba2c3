"""A processor of a model with a chat template whose images take equally many tokens each, whatever their size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dataset.loading.image_transform import PixelReader
from dataset.sample import IMAGE_PLACEHOLDER
from model.processors.chat_processor import ChatProcessor
from model.processors.sample_processor import ImageSize


class FixedTokensProcessor(ChatProcessor):
    """Tokenizer, image processor and prompt layout.

    Args:
        tokenizer: of the language model.
        image_processor: transformers image processor of the vision encoder.
        tokens_per_image: image tokens per image.
        chat: image_token, max_length, system_prompt, prompts, plain_end, as in `ChatProcessor`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_processor: Any,
        *,
        tokens_per_image: int,
        **chat: Any,
    ):
        super().__init__(tokenizer, **chat)
        self.image_processor, self.tokens_per_image = image_processor, tokens_per_image
        self.pixel_reader = PixelReader(image_processor)

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        """Equally many for every image, whatever its size."""
        del sizes
        return [self.tokens_per_image] * num_images

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Raw pixels of images, for a data loader's worker; `normalize` makes pixel values of them."""
        return {"pixel_values": self.pixel_reader.read(images)}

    def normalize(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch with pixel values in place of raw pixels, on their device."""
        return {**inputs, "pixel_values": self.pixel_reader.normalize(inputs["pixel_values"])} if "pixel_values" in inputs else inputs

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

    def save(self, folder: Path) -> None:
        """Write tokenizer, image processor and settings to a checkpoint folder."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.save_settings(folder, image_token=self.image_token, tokens_per_image=self.tokens_per_image)
