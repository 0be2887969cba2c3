"""Low-level statistics of an image: what tells photographs, drawings, scans and screenshots apart, whatever they show.

They need no model, so that they are the same for every system, and look at a thumbnail, so that the resolution of an image is no
difference; its shape is one, as models squeeze images into squares.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from answering.protocol import ImageInput
from answering.request_images import load_image

THUMBNAIL_SIDE, _COLOR_LEVELS = 64, 8
_FLAT = (0.005, 0.01, 0.02, 0.05)
"""Gradients of the brightness 0..1, below which a pixel counts as flat."""
_NEAR = (0.05, 0.1, 0.2)
"""Distances of the three color values 0..1 from their medians, below which a pixel counts as background."""
_CURVED = (0.02, 0.05, 0.1, 0.3)
"""Absolute values of the Laplacian of the brightness, above which a pixel counts as curved: on an edge, a line or a spot."""
STATISTICS = (
    "log aspect ratio",
    *("mean brightness", "contrast", "mean saturation", "spread of the saturation"),
    *("entropy of the colors", "log number of colors", "share of the commonest color"),
    *(f"share of pixels within {distance} of the median color" for distance in _NEAR),
    *("log mean gradient", *(f"share of gradients below {threshold}" for threshold in _FLAT)),
    *(f"share of the Laplacian above {threshold}" for threshold in _CURVED),
    *(f"median {channel}" for channel in ("red", "green", "blue")),
    "brightness of the middle quarter less the mean brightness",
)
"""Names of the statistics. New ones come last: a range that was saved before has the first ones."""
SMALLEST_SPREADS = (0.05, *(1e-3 for _ in STATISTICS[1:]))
"""A standard deviation below this counts as this much, so that images of one kind, or of one shape, do not exclude all others."""


def image_statistics(image: ImageInput) -> np.ndarray:
    """The STATISTICS of an image. Raises ImageError if it cannot be read."""
    if isinstance(image, Path):
        status = image.stat() if image.exists() else None
        return _of_file(image, None if status is None else (status.st_size, status.st_mtime_ns))
    return _statistics(load_image(image))


@lru_cache(maxsize=100_000)
def _of_file(path: Path, _state: tuple[int, int] | None) -> np.ndarray:
    """As `image_statistics`; a file that several systems are asked about is read once."""
    return _statistics(load_image(path))


def _statistics(image: Image.Image) -> np.ndarray:
    side = THUMBNAIL_SIDE
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255
    brightness, saturation = pixels.mean(axis=2), pixels.max(axis=2) - pixels.min(axis=2)
    levels = (pixels * (_COLOR_LEVELS - 0.01)).astype(int)
    colors = np.bincount((levels @ np.array([_COLOR_LEVELS**2, _COLOR_LEVELS, 1])).ravel()) / side**2
    colors = colors[colors > 0]
    median = np.median(pixels.reshape(-1, 3), axis=0)
    from_median = np.abs(pixels - median).max(axis=2)
    across, down = np.diff(brightness, axis=1)[:-1], np.diff(brightness, axis=0)[:, :-1]
    gradients = np.hypot(across, down)
    neighbours = brightness[:-2, 1:-1] + brightness[2:, 1:-1] + brightness[1:-1, :-2] + brightness[1:-1, 2:]
    laplacian = np.abs(4 * brightness[1:-1, 1:-1] - neighbours)
    return np.array(
        [
            np.log(image.width / image.height),
            *(brightness.mean(), brightness.std(), saturation.mean(), saturation.std()),
            *(-(colors * np.log(colors)).sum(), np.log(len(colors)), colors.max()),
            *((from_median < distance).mean() for distance in _NEAR),
            *(np.log(gradients.mean() + 1e-3), *((gradients < threshold).mean() for threshold in _FLAT)),
            *((laplacian > threshold).mean() for threshold in _CURVED),
            *median,
            brightness[side // 4 : -side // 4, side // 4 : -side // 4].mean() - brightness.mean(),
        ],
        dtype=float,
    )
