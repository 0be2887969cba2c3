"""An image as a whole and cut into tiles of the vision encoder's size, in the layout of LLaVA-NeXT (LLaVA-1.6, Liu et al. 2024).

An image is scaled to fit into the grid of tiles that keeps most of its pixels and wastes least, and centred in it. Its tokens are those of
the whole image, then those of the grid row by row without the margins, with one newline token after each row.

Shapes: R tiles of all images, the whole images included, P tokens of a tile (side x side), D hidden size of the language model, N images,
Q tokens of an image. Sizes are height and width, as in LLaVA-NeXT.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import nn
from transformers.image_processing_utils import select_best_resolution

from dataset.loading.image_io import to_rgb
from errors import UsageError
from model.siglip_qwen.config import ConnectorConfig
from model.siglip_qwen.connectors.connector import Connector

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class TileGrid:
    """Which grids of tiles there are, and what becomes of an image in them.

    Args:
        max_tiles: Most tiles of an image, without the whole image.
        tile_pixels: Side of a tile in pixels.
        tile_tokens: Side of the grid of tokens of a tile.
    """

    max_tiles: int
    tile_pixels: int
    tile_tokens: int

    @property
    def resolutions(self) -> list[list[int]]:
        """Height and width in pixels of each grid of at least two tiles: LLaVA-NeXT's `image_grid_pinpoints`."""
        shapes = [(rows, columns) for rows in range(1, self.max_tiles + 1) for columns in range(1, self.max_tiles // rows + 1)]
        return [[rows * self.tile_pixels, columns * self.tile_pixels] for rows, columns in shapes if rows * columns > 1]

    def shape(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        height, width = select_best_resolution(size, self.resolutions)
        return height // self.tile_pixels, width // self.tile_pixels

    def num_rows(self, size: Size) -> int:
        """Rows of pixel_values of an image: its tiles and the whole image."""
        rows, columns = self.shape(size)
        return rows * columns + 1

    def margins(self, size: Size) -> tuple[int, int]:
        """Rows of tokens that are left out at the top and at the bottom, and columns at the left and at the right."""
        rows, columns = (count * self.tile_tokens for count in self.shape(size))
        height, width = size
        if width / height > columns / rows:
            return (rows - int(round(height * (columns / width), 7))) // 2, 0
        return 0, (columns - int(round(width * (rows / height), 7))) // 2

    def num_tokens(self, size: Size) -> int:
        """Q of an image."""
        rows, columns = (count * self.tile_tokens for count in self.shape(size))
        top, left = self.margins(size)
        return self.tile_tokens**2 + (rows - 2 * top) * (columns - 2 * left + 1)

    @property
    def most_tokens(self) -> int:
        """Tokens of an image that fills the grid with the most."""
        shapes = [(height // self.tile_pixels, width // self.tile_pixels) for height, width in self.resolutions]
        side = self.tile_tokens
        return side**2 + max(rows * side * (columns * side + 1) for rows, columns in shapes)

    def cut(self, image: Image.Image, resample: int) -> list[Image.Image]:
        """The whole image, which the image processor squeezes into a tile, and the tiles row by row, RGB."""
        image = to_rgb(image) if image.mode != "RGB" or image.has_transparency_data else image
        side, (rows, columns) = self.tile_pixels, self.shape((image.height, image.width))
        height, width = rows * side, columns * side
        if width / image.width < height / image.height:
            fitted = width, min(math.ceil(image.height * (width / image.width)), height)
        else:
            fitted = min(math.ceil(image.width * (height / image.height)), width), height
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(fitted, resample), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
        boxes = [(column * side, row * side, (column + 1) * side, (row + 1) * side) for row in range(rows) for column in range(columns)]
        return [image, *(canvas.crop(box) for box in boxes)]


class TileConnector(Connector):
    """A connector for tiles, and the newline token."""

    def __init__(self, connector: Connector, grid: TileGrid, language_width: int):
        super().__init__()
        self.connector, self.grid = connector, grid
        self.image_newline = nn.Parameter(torch.randn(language_width) / math.sqrt(language_width))

    def initialize(self, init: Literal["default", "normal"], std: float) -> None:
        self.connector.initialize(init, std)
        nn.init.normal_(self.image_newline, std=1 / math.sqrt(len(self.image_newline)))

    def forward(self, features: torch.Tensor, sizes: Sequence[Size] = ()) -> torch.Tensor:
        """Patch features [R, P, C] -> image embeddings of all images, [sum of Q, D]. sizes: of the images in pixels."""
        tiles = self.connector(features).split([self.grid.num_rows(size) for size in sizes])
        return torch.cat([self._pack(of_image, size) for of_image, size in zip(tiles, sizes, strict=True)])

    def _pack(self, tiles: torch.Tensor, size: Size) -> torch.Tensor:
        """Embeddings of the tiles of one image, [tiles, P, D] -> [Q, D]."""
        (rows, columns), (top, left), side = self.grid.shape(size), self.grid.margins(size), self.grid.tile_tokens
        grid = tiles[1:].unflatten(1, (side, side)).unflatten(0, (rows, columns))
        lines = grid.transpose(1, 2).reshape(rows * side, columns * side, -1)
        lines = lines[top : rows * side - top, left : columns * side - left]
        newlines = self.image_newline.to(lines.dtype).expand(len(lines), 1, -1)
        return torch.cat([tiles[0], torch.cat([lines, newlines], dim=1).flatten(0, 1)])

    def rows_per_image(self, layer: str, patches: int, tokens: int) -> float:
        return self.connector.rows_per_image(layer, patches, tokens)


def tile_grid(connector: ConnectorConfig, max_tiles: int, tile_pixels: int, tile_tokens: int) -> TileGrid:
    """The grids of tiles for a connector whose tokens are a square grid, `tile_tokens` in all. Raises UsageError for another one."""
    side = math.isqrt(tile_tokens)
    if connector.has_queries or connector.keep_ratio < 1.0 or side**2 != tile_tokens:
        raise UsageError(
            f"model.tiles: needs a connector whose tokens are a grid (mlp, linear, mlp_pool, avg_pool, with keep_ratio 1.0 and "
            f"model.drop_first_patch false), found kind {connector.kind} with {tile_tokens} tokens a tile"
        )
    return TileGrid(max_tiles, tile_pixels, side)
