"""The outputs of the tiny models' image processors, computed for a batch of rendered images on any device.

The images already have the models' input size, so nothing is resized.

Shapes: B batch, H height, W width, P patches per image.
"""

from typing import Any

import torch


def pixel_values(images: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Images [B, 3, H, W] uint8, scaled to 0..1 and normalised with the processor's mean and standard deviation; float32."""
    mean, std = (
        torch.tensor(values, device=images.device).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images.float() / 255 - mean) / std


def qwen_patches(images: torch.Tensor, image_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Flattened patches of images [B, 3, H, W] in the order of Qwen2-VL's image processor.

    The patches that are merged into one image token are consecutive; an image is repeated over all frames of the temporal patch.

    Returns: patches [B * P, 3 * frames * patch size ** 2]; their grids [B, 3] (frames, rows, columns) in patches.
    """
    size, merge, frames = image_processor.patch_size, image_processor.merge_size, image_processor.temporal_patch_size
    values = pixel_values(images, image_processor)
    batch, channels, height, width = values.shape
    rows, columns = height // size, width // size
    blocks = values.view(batch, channels, rows // merge, merge, size, columns // merge, merge, size)
    # batch, block row, block column, row in block, column in block, channel, y, x
    patches = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)
    flat = patches.unsqueeze(6).expand(*patches.shape[:6], frames, size, size).reshape(batch * rows * columns, -1)
    return flat, torch.tensor([[1, rows, columns]] * batch, device=images.device)
