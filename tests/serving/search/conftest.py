"""Folders of synthetic images, indexed with small untrained CLIP models."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.search.config import SearchConfig
from serving.search.image_index import ImageIndex, open_index

Opener = Callable[..., ImageIndex]
"""Opens the index of a test."""


def noise_image(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    """An image of smooth noise, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    """The noise image of a seed as a PNG file."""
    file = io.BytesIO()
    noise_image(seed).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, seeds: range) -> Path:
    """Write an image <folder>/<seed>.png for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(png(seed))
    return folder


@pytest.fixture
def opener(parts: Path, tmp_path: Path) -> Opener:
    """Opens the index of this test. clip: folder of the model; the others are settings or arguments of `open_index`."""

    def open_test_index(
        clip: Path = parts / "clip", reindex: bool = False, create: bool = True, max_pixels: int = 10**6, **settings: object
    ) -> ImageIndex:
        config = SearchConfig(**{"batch_size": 4, **settings})  # type: ignore[arg-type]
        return open_index(config, str(tmp_path / "index"), str(clip), create=create, reindex=reindex, max_pixels=max_pixels)

    return open_test_index


@pytest.fixture
def index(opener: Opener) -> ImageIndex:
    """An empty index."""
    return opener()
