"""Accuracy of the same questions on corrupted images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from atomic_io import naming_full_disk
from dataset.loading.image_io import ImageError, open_image
from evaluation.confidence_intervals import mean_intervals
from evaluation.config import Corruption, EvalConfig
from evaluation.questions import Question
from evaluation.robustness.corruptions import corrupt
from evaluation.schema.summary_file import CorruptionPoint, RobustnessFigures
from evaluation.statistics import clusters

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
        copies: dict[str, Path] = {}
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


def _write_corrupted(image: Path | Image.Image, condition: CorruptionCondition, key: str, path: Path) -> Path:
    """Write the corrupted image to `path`. Returns the path to use: the original one if the image is unreadable."""
    assert isinstance(image, Path)
    try:
        decoded = open_image(image)
    except ImageError:
        return image
    with naming_full_disk(path):
        corrupt(decoded, *condition, key).save(path, compress_level=1)
    return path


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
