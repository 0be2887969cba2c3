"""The pixel values of the vision model's image processor, computed faster and bit for bit equal.

The image processor resizes with Pillow, then rescales and normalises every pixel in float64 and float32 copies of the
image. Each byte of a channel maps to one of 256 values, so these are taken from the processor once, as a lookup table.
Data loader workers pass on uint8 pixels (a quarter of the memory), and the lookup runs on the device of the model.

Shapes: N images, H height and W width in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, SiglipImageProcessorPil

from dataset.loading.image_io import to_rgb
from errors import UsageError

_VALUES = 256
_RAMP_SIDE = 16
_PROBE = (61, 47)


class PixelReader:
    """Applies one image processor in two steps: `read` in the data loader workers, `normalize` on the device.

    For the image processors of SigLIP and BLIP, when resizing and looking up reproduces its output on a test image bit for bit,
    `lookup_table` [3, 256] maps each byte of each channel to its pixel value, and `read` returns uint8. Otherwise (crop,
    size by the shortest edge, another or derived class) `lookup_table` is None and `read` runs the processor itself.
    Raises UsageError when the processor cannot process an image at all.
    """

    def __init__(self, image_processor: Any):
        self._processor = image_processor
        self._tables: dict[torch.device, torch.Tensor] = {}
        self.lookup_table: torch.Tensor | None = None
        if type(image_processor) in (SiglipImageProcessorPil, BlipImageProcessorPil):
            self.lookup_table = self._build_table()

    def __getstate__(self) -> dict[str, Any]:
        # Tables on a device cannot be sent to another process.
        return {**self.__dict__, "_tables": {}}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        cropped = getattr(self._processor, "do_center_crop", False) and getattr(self._processor, "crop_size", None)
        size = self._processor.crop_size if cropped else self._processor.size
        return int(size["height"]), int(size["width"])

    def read(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Raw pixels [N, 3, H, W] of images: uint8 when there is a lookup table, else the final values."""
        if not images:
            return torch.empty(0, 3, *self.size, dtype=torch.float32 if self.lookup_table is None else torch.uint8)
        if self.lookup_table is None:
            return self._run_image_processor(images)
        rows = np.stack([_resize(image, self.size, self._processor.resample) for image in images])
        # Channels last in memory: the device converts to channels first faster than this process.
        return torch.from_numpy(rows).permute(0, 3, 1, 2)

    def normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """Pixel values [N, 3, H, W] of raw pixels, on the same device; bit for bit those of the image processor."""
        if self.lookup_table is None:
            return raw
        if raw.device not in self._tables:
            self._tables[raw.device] = self.lookup_table.flatten().to(raw.device)
        lookup_table = self._tables[raw.device]
        channels = torch.arange(3, dtype=torch.int32, device=raw.device).view(1, 3, 1, 1) * _VALUES
        indices = raw.contiguous().int() + channels
        return lookup_table.index_select(0, indices.flatten()).view(raw.shape)

    def _build_table(self) -> torch.Tensor | None:
        """Pixel values [3, 256] of all bytes; None when resize and lookup do not reproduce the processor."""
        size = dict(self._processor.size)
        if not self._processor.do_resize or set(size) != {"height", "width"}:
            return None
        ramp = np.arange(_VALUES, dtype=np.uint8).reshape(_RAMP_SIDE, _RAMP_SIDE, 1).repeat(3, axis=2)
        noise = np.random.default_rng(0).integers(0, _VALUES, (_PROBE[1], _PROBE[0], 3), dtype=np.uint8)
        try:
            values = self._run_image_processor([Image.fromarray(ramp)], do_resize=False)
            expected = self._run_image_processor([Image.fromarray(noise)])
        except (ValueError, TypeError) as error:
            raise UsageError(f"model.vision: its image processor cannot process an image: {' '.join(str(error).split())}") from error
        if values.shape != (1, 3, _RAMP_SIDE, _RAMP_SIDE):
            return None
        self.lookup_table = values.reshape(3, _VALUES).contiguous()
        actual = self.normalize(self.read([Image.fromarray(noise)]))
        is_equal = actual.shape == expected.shape and actual.dtype == expected.dtype and torch.equal(actual, expected)
        return self.lookup_table if is_equal else None

    def _run_image_processor(self, images: Sequence[Image.Image], **settings: Any) -> torch.Tensor:
        values: torch.Tensor = self._processor(images=list(images), return_tensors="pt", **settings)["pixel_values"]
        return values


def _resize(image: Image.Image, size: tuple[int, int], resample: int) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3]."""
    if image.mode != "RGB" or image.has_transparency_data:
        image = to_rgb(image)
    return np.asarray(image.resize((size[1], size[0]), resample))
