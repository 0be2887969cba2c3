"""Converts messages and images to inputs of our own model where images are cut into tiles (see `tiles`)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from dataset.loading.encoded_sample import EncodedSample, EncodingError
from dataset.sample import IMAGE_PLACEHOLDER
from errors import UsageError
from model.processors.sample_processor import ImageSize
from model.siglip_qwen.processor import Processor
from model.siglip_qwen.tiles import TileGrid


class TilesProcessor(Processor):
    """As Processor; an image takes more tokens the more tiles it is cut into.

    Args:
        tokenizer, image_processor, tokens_per_image, settings: as in `Processor`; the tokens are those of a tile.
        max_tiles: most tiles of an image.
    """

    sizes_matter: ClassVar[bool] = True
    saved_settings: ClassVar[tuple[str, ...]] = (*Processor.saved_settings, "max_tiles")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_processor: Any, *, tokens_per_image: int, max_tiles: int, **settings: Any):
        super().__init__(tokenizer, image_processor, tokens_per_image=tokens_per_image, **settings)
        self.max_tiles = max_tiles
        self.grid = TileGrid(max_tiles, self.pixel_reader.size[0], round(tokens_per_image**0.5))
        if self.grid.most_tokens >= self.max_length:
            raise UsageError(
                f"model.tiles.max: an image of {max_tiles} tiles takes {self.grid.most_tokens:,} tokens, model.max_length is "
                f"{self.max_length:,}; set one lower or the other higher"
            )

    def image_tokens(self, num_images: int, sizes: Sequence[ImageSize]) -> list[int]:
        if len(sizes) != num_images:
            raise EncodingError(f"{len(sizes)} image sizes for {num_images} images")
        return [self.grid.num_tokens((height, width)) for width, height in sizes]

    def read(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """pixel_values [R, 3, H, W] of the whole images and their tiles, and image_sizes [N, 2], height and width."""
        resample = int(self.image_processor.resample)
        tiles = [tile for image in images for tile in self.grid.cut(image, resample)]
        sizes = torch.tensor([(image.height, image.width) for image in images], dtype=torch.long).view(-1, 2)
        return {"pixel_values": self.pixel_reader.read(tiles), "image_sizes": sizes}

    def readable(self, ids: Sequence[int]) -> str:
        """Text of token ids with special tokens; a run of image tokens is one `<image>`."""
        parts: list[str] = []
        run: list[int] = []
        for before, token in zip((None, *ids), ids, strict=False):
            if token != self.image_token_id:
                run.append(token)
            elif before != self.image_token_id:
                parts += [str(self.tokenizer.decode(run)), IMAGE_PLACEHOLDER]
                run = []
        return "".join([*parts, str(self.tokenizer.decode(run))])

    def pixel_rows(self, encoded: EncodedSample) -> int:
        """About as many as the tokens of the images need: their sizes are not known here."""
        return max(encoded.num_images, round(encoded.input_ids.count(self.image_token_id) / self.tokens_per_image))
