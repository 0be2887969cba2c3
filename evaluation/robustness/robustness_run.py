"""The same questions on worse and worse pictures."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from dataset.loading.image_io import ImageError, open_image
from evaluation.config import Corruption, EvalConfig
from evaluation.questions import Question
from evaluation.robustness.corruptions import corrupt
from evaluation.statistics import clusters, intervals

CorruptionCondition = tuple[Corruption, int]
"""A corruption and its strength."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracy [questions] of a system's first candidates on the clean pictures, and under each condition."""

    questions: list[Question]
    clean: np.ndarray
    corrupted: dict[CorruptionCondition, np.ndarray]


def corruption_conditions(settings: EvalConfig) -> list[CorruptionCondition]:
    """What is tried, the strengths of a corruption in rising order."""
    return [(kind, strength) for kind in dict.fromkeys(settings.corruptions) for strength in sorted(set(settings.corruption_strengths))]


def corruption_questions(questions: Sequence[Question], settings: EvalConfig) -> list[Question]:
    """The questions that are asked again: the first short ones with pictures."""
    return [question for question in questions if question.short and question.image_ids][: settings.corruption_limit]


@contextmanager
def with_corrupted_images(questions: Sequence[Question], condition: CorruptionCondition) -> Iterator[list[Question]]:
    """The same questions about corrupted copies of their pictures, which stand in a temporary folder, as PNG, meanwhile.

    A picture that cannot be read stays as it is, so that its question fails here as it did before.
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
    assert isinstance(image, Path)
    try:
        decoded = open_image(image)
    except ImageError:
        return image
    corrupt(decoded, *condition, key).save(path, compress_level=1)
    return path


def summarise_robustness(by_system: Mapping[str, Robustness], settings: EvalConfig) -> dict[str, Any]:
    """By system: questions, clean accuracy, and accuracy by corruption in the order of the strengths, each with its interval."""
    result: dict[str, Any] = {}
    for name, robustness in by_system.items():
        columns = [robustness.clean, *robustness.corrupted.values()]
        groups = clusters([question.image_ids for question in robustness.questions])
        ranges = intervals(np.stack(columns, axis=1), groups, settings.bootstrap, settings.seed)
        points = [
            {"vqa_accuracy": float(column.mean()), "vqa_accuracy_ci95": [interval.low, interval.high]}
            for column, interval in zip(columns, ranges, strict=True)
        ]
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for (kind, strength), point in zip(robustness.corrupted, points[1:], strict=True):
            by_kind.setdefault(kind, []).append({"strength": strength, **point})
        result[name] = {"questions": len(robustness.questions), "clean": points[0], "corrupted": by_kind}
    return result
