"""Accuracy of the same questions on corrupted images: blur, noise, darkness, occlusion and JPEG compression in five strengths."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageFilter

from answering.protocol import ImageInput
from atomic_io import naming_full_disk
from dataset.loading.image_io import ImageError, open_image
from dataset.remote_files import FilePath
from evaluation.confidence_intervals import mean_intervals
from evaluation.config import Corruption, EvalConfig
from evaluation.questions import Question
from evaluation.schema.summary_file import CorruptionPoint, RobustnessFigures
from evaluation.statistics import clusters

_BLUR_SIGMA = (0.004, 0.008, 0.014, 0.022, 0.032)  # as a fraction of the shorter side
_NOISE_STD = (0.04, 0.08, 0.14, 0.22, 0.32)  # for pixel values in 0..1
_BRIGHTNESS = (0.7, 0.5, 0.35, 0.22, 0.12)  # factor of each pixel value
_OCCLUDED_AREA = (0.05, 0.10, 0.20, 0.30, 0.45)  # as a fraction of the image area
_JPEG_QUALITY = (30, 18, 12, 8, 4)
_GREY = (128, 128, 128)

CorruptionCondition = tuple[Corruption, int]
"""Kind of corruption, and strength 1..5."""


def corruption_conditions(settings: EvalConfig) -> list[CorruptionCondition]:
    """All corruptions of the settings, each with its strengths in increasing order."""
    return [(kind, strength) for kind in dict.fromkeys(settings.corruptions) for strength in sorted(set(settings.corruption_strengths))]


def corruption_questions(questions: Sequence[Question], settings: EvalConfig) -> list[Question]:
    """The questions repeated on corrupted images: the first `corruption_limit` short questions with images."""
    return [question for question in questions if question.short and question.image_ids][: settings.corruption_limit]


@contextmanager
def with_corrupted_images(questions: Sequence[Question], condition: CorruptionCondition) -> Iterator[list[Question]]:
    """Context with the same questions about corrupted copies of their images, stored as PNG in a temporary folder.

    An unreadable image is passed on unchanged, so that its question fails as it does on the clean image.
    """
    kind, strength = condition
    with TemporaryDirectory(prefix="tessera-") as folder:
        copies: dict[str, FilePath] = {}
        for question in questions:
            for image, key in zip(question.request.images, question.images, strict=True):
                if key not in copies:
                    copies[key] = _write_corrupted(image, condition, key, Path(folder) / f"{len(copies)}.png")
        yield [
            dataclasses.replace(
                question,
                request=dataclasses.replace(question.request, images=tuple(copies[key] for key in question.images)),
                images=tuple(f"{key} {kind} {strength}" for key in question.images),
            )
            for question in questions
        ]


def _write_corrupted(image: ImageInput, condition: CorruptionCondition, key: str, path: Path) -> FilePath:
    """Write the corrupted image to `path`. Returns the path to use: the original one if the image is unreadable."""
    assert not isinstance(image, Image.Image)
    try:
        decoded = open_image(image)
    except ImageError:
        return image
    with naming_full_disk(path):
        corrupt(decoded, *condition, key).save(path, compress_level=1)
    return path


def corrupt(image: Image.Image, kind: Corruption, strength: int, key: str) -> Image.Image:
    """Return a corrupted RGB image of the same size.

    Args:
        image: the image
        kind: kind of corruption
        strength: 1 (weak) to 5 (strong)
        key: identifies the image; seeds the random numbers together with kind and strength
    """
    digest = hashlib.blake2b(f"{key}/{kind}/{strength}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    image, level = image.convert("RGB"), strength - 1
    match kind:
        case "blur":
            return image.filter(ImageFilter.GaussianBlur(_BLUR_SIGMA[level] * min(image.size)))
        case "noise":
            pixels = np.asarray(image, dtype=np.float32)
            noisy = pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * (255 * _NOISE_STD[level])
            return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))
        case "dark":
            return image.point(lambda value: round(value * _BRIGHTNESS[level]))
        case "occlusion":
            # A randomly placed rectangle of the image's aspect ratio.
            width, height = (max(1, round(side * _OCCLUDED_AREA[level] ** 0.5)) for side in image.size)
            left, top = (int(rng.integers(0, side - occluded + 1)) for side, occluded in zip(image.size, (width, height), strict=True))
            image.paste(_GREY, (left, top, left + width, top + height))
            return image
        case "jpeg":
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=_JPEG_QUALITY[level])
            with Image.open(buffer) as decoded:
                return decoded.convert("RGB")


def robustness_figures(
    questions: Sequence[Question], clean: np.ndarray, corrupted: Mapping[CorruptionCondition, np.ndarray]
) -> RobustnessFigures:
    """Figures of one system from the VQA accuracy [questions] of its first candidates on clean images and under each corruption."""
    groups = clusters([question.image_ids for question in questions])
    ranges = mean_intervals(np.stack([clean, *corrupted.values()], axis=1), groups)
    by_kind: dict[str, list[CorruptionPoint]] = {}
    for ((kind, strength), accuracy), interval in zip(corrupted.items(), ranges[1:], strict=True):
        by_kind.setdefault(kind, []).append(CorruptionPoint(float(accuracy.mean()), interval, strength))
    return RobustnessFigures(len(questions), CorruptionPoint(float(clean.mean()), ranges[0]), by_kind)
