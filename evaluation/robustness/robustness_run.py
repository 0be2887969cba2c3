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

from dataset.loading.image_io import PictureError, open_picture
from evaluation.config import Corruption, EvalConfig
from evaluation.questions import Question
from evaluation.robustness.corruptions import corrupt
from evaluation.statistics import clusters, intervals

Condition = tuple[Corruption, int]
"""A corruption and its strength."""


@dataclass(frozen=True, slots=True)
class Robustness:
    """Accuracy [questions] of a system's first candidates on the clean pictures, and under each condition."""

    questions: list[Question]
    clean: np.ndarray
    corrupted: dict[Condition, np.ndarray]


def conditions(settings: EvalConfig) -> list[Condition]:
    """What is tried, the strengths of a corruption in rising order."""
    return [(kind, strength) for kind in dict.fromkeys(settings.corruptions) for strength in sorted(set(settings.corruption_strengths))]


def asked_again(questions: Sequence[Question], settings: EvalConfig) -> list[Question]:
    """The questions that are asked again: the first short ones with pictures."""
    return [question for question in questions if question.short and question.image_ids][: settings.corruption_limit]


@contextmanager
def on_corrupted_pictures(questions: Sequence[Question], condition: Condition) -> Iterator[list[Question]]:
    """The same questions about corrupted copies of their pictures, which stand in a temporary folder, as PNG, meanwhile.

    A picture that cannot be read stays as it is, so that its question fails here as it did before.
    """
    kind, strength = condition
    with TemporaryDirectory(prefix="tessera-") as folder:
        copies: dict[str, Path] = {}
        for question in questions:
            for picture, key in zip(question.request.pictures, question.pictures, strict=True):
                if key not in copies:
                    copies[key] = _copy(picture, condition, key, Path(folder) / f"{len(copies)}.png")
        yield [
            dataclasses.replace(
                question,
                request=dataclasses.replace(question.request, pictures=tuple(copies[key] for key in question.pictures)),
                pictures=tuple(f"{key} {kind} {strength}" for key in question.pictures),
            )
            for question in questions
        ]


def _copy(picture: Path | Image.Image, condition: Condition, key: str, path: Path) -> Path:
    assert isinstance(picture, Path)
    try:
        opened = open_picture(picture)
    except PictureError:
        return picture
    corrupt(opened, *condition, key).save(path, compress_level=1)
    return path


def summarised(found: Mapping[str, Robustness], settings: EvalConfig) -> dict[str, Any]:
    """By system: questions, clean accuracy, and accuracy by corruption in the order of the strengths, each with its interval."""
    result: dict[str, Any] = {}
    for name, robustness in found.items():
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
