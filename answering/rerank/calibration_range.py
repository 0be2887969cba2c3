"""Which questions a confidence was learnt from, and whether a new question is unlike them (out of distribution).

A calibrated confidence holds for questions like those of the validation split. Two distances say how far a question is from these: the
Mahalanobis distance of the low-level statistics of its image (as Lee et al. 2018, arXiv:1807.03888, use it on features of a network),
and the share of its words that no question of the split has. A distance is too large where 1 % of the split's own questions, each measured
against others, are expected to be further away.

The statistics tell photographs, drawings, scans and screenshots apart, whatever they show. They need no model, so that they are the same
for every system, and look at a thumbnail, so that the resolution of an image is no difference; its shape is one, as models squeeze images
into squares.

Shapes: N images, S statistics of an image.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image

from answering.protocol import ImageInput
from answering.request_images import load_image
from dataset.loading.image_io import ImageError
from dataset.loading.packed_images import file_of_image
from dataset.remote_files import FilePath

QUANTILE = 0.99
"""Share of the calibration questions that lie within the limits."""
UNLIKE_CONFIDENCE = 0.5
"""Largest confidence of an answer to a question that is unlike those of the calibration; it falls further with the distance."""
IMAGE, WORDS = "image", "words"
"""What can be unlike the calibration."""
MIN_IMAGES = 20
"""Smallest number of calibration images from which the statistics of images are learnt."""
MIN_WORD_LIMIT = 0.25
"""One unknown word in four is never too much."""
_SHRINKAGE, _FOLDS = 0.01, 5
_WORD = re.compile(r"[a-z0-9]+|[^\W\x00-\x7f]")
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


@dataclass(frozen=True, slots=True)
class ImageRange:
    """Mean [S], inverse covariance [S, S] and largest distance of the image statistics."""

    mean: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    limit: float

    def distance(self, statistics: np.ndarray) -> float:
        """Mahalanobis distance of the statistics of an image, of which the first S count (see STATISTICS)."""
        return float(_distances(statistics[None, : len(self.mean)], np.array(self.mean), np.array(self.precision))[0])


@dataclass(frozen=True, slots=True)
class CalibrationRange:
    """The words and the images of the calibration questions, and the distances up to which a question is like them.

    word_limit: largest share of unknown words. images: None where the calibration had fewer than MIN_IMAGES.
    """

    words: tuple[str, ...]
    word_limit: float
    images: ImageRange | None = None

    def excess(self, question: str, images: Sequence[ImageInput]) -> dict[str, float]:
        """What is unlike the calibration, IMAGE or WORDS -> how many times as far as the limit it is; empty if nothing is.

        Of several images the farthest counts. An image that cannot be read is left out.
        """
        own, known = question_words(question), set(self.words)
        ratios = {WORDS: sum(word not in known for word in own) / max(1, len(own)) / self.word_limit}
        if self.images is not None:
            distances = [self.images.distance(statistics) for statistics in _readable_statistics(images)]
            ratios = {IMAGE: max(distances, default=0.0) / self.images.limit, **ratios}
        return {name: ratio for name, ratio in ratios.items() if ratio > 1}


def fit_calibration_range(questions: Sequence[str], images: Sequence[Sequence[ImageInput]]) -> CalibrationRange:
    """The range of calibration questions, of their texts and the images of each."""
    owners = Counter(word for question in questions for word in question_words(question))
    shares = [float(np.mean([owners[word] == 1 for word in words])) for question in questions if (words := question_words(question))]
    word_limit = float(np.quantile(shares, QUANTILE, method="higher")) if shares else 0.0
    distinct = np.array(sorted({tuple(row.tolist()) for group in images for row in _readable_statistics(group)}))
    image_range = _fit_images(distinct) if len(distinct) >= MIN_IMAGES else None
    return CalibrationRange(tuple(sorted(owners)), max(MIN_WORD_LIMIT, word_limit), image_range)


def question_words(question: str) -> list[str]:
    """The distinct words of a question in lower case without punctuation; beyond ASCII, as in Chinese, each letter is a word."""
    return list(dict.fromkeys(_WORD.findall(question.lower())))


def _fit_images(statistics: np.ndarray) -> ImageRange:
    """The range of images with these statistics [N, S]; the distances for the limit are those of held-out folds."""
    fold = np.random.default_rng(0).permutation(len(statistics)) % _FOLDS
    held_out = np.concatenate([_distances(statistics[fold == i], *_moments(statistics[fold != i])) for i in range(_FOLDS)])
    mean, precision = _moments(statistics)
    # The quantile of a log-normal distribution: that of the sample hangs on its one or two farthest images.
    logs = np.log(np.maximum(held_out, 1e-9))
    limit = float(np.exp(logs.mean() + NormalDist().inv_cdf(QUANTILE) * logs.std(ddof=1)))
    return ImageRange(tuple(mean.tolist()), tuple(map(tuple, precision.tolist())), limit)


def _moments(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [S] and inverse covariance [S, S] of statistics [N, S], shrunk towards uncorrelated ones."""
    mean, spread = statistics.mean(axis=0), np.maximum(statistics.std(axis=0), SMALLEST_SPREADS)
    scaled = (statistics - mean) / spread
    correlation = (1 - _SHRINKAGE) * scaled.T @ scaled / len(scaled) + _SHRINKAGE * np.eye(len(mean))
    return mean, np.linalg.inv(correlation) / np.outer(spread, spread)


def _distances(statistics: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    difference = statistics - mean
    return np.asarray(np.sqrt(np.einsum("ns,st,nt->n", difference, precision, difference)))


def _readable_statistics(images: Sequence[ImageInput]) -> Iterator[np.ndarray]:
    for image in images:
        try:
            yield image_statistics(image)
        except ImageError:
            continue


def image_statistics(image: ImageInput) -> np.ndarray:
    """The STATISTICS of an image. Raises ImageError if it cannot be read."""
    if isinstance(image, Path):
        file = file_of_image(image)
        status = file.stat() if file.exists() else None
        return _of_file(image, None if status is None else (status.st_size, status.st_mtime_ns))
    return _statistics(image) if isinstance(image, Image.Image) else _of_file(image, None)


@lru_cache(maxsize=100_000)
def _of_file(path: FilePath, _state: tuple[int, int] | None) -> np.ndarray:
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
