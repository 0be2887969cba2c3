"""Drawn pictures as the parts' image processors would give them, a batch at a time and on any device.

The pictures have just the size that the parts want, so nothing is resized.
"""

from typing import Any

import torch


def pixel_values(images: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Pictures [n, 3, side, side] uint8 normalised with a processor's mean and standard deviation, float32."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images.float() / 255 - mean) / std


def qwen_patches(images: torch.Tensor, image_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [n * patches, values] and their grid [n, 3] (time, height, width) as Qwen2-VL's image processor orders them.

    Patches that are merged into one token stand together; a picture's single frame fills the temporal patch.
    """
    size, merge, frames = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    values = pixel_values(images, image_processor)
    n, channels, height, width = values.shape
    rows, columns = height // size, width // size
    blocks = values.view(n, channels, rows // merge, merge, size, columns // merge, merge, size)
    # n, block row, block column, row in block, column in block, channel, y, x
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = patches.unsqueeze(6).expand(*patches.shape[:6], frames, size, size).reshape(n * rows * columns, -1)
    return flat, torch.tensor([[1, rows, columns]] * n, device=images.device)
