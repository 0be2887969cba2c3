"""The questions of an evaluation. References are fetched apart, so that no question carries one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answering.model_fingerprint import digest as digest
from answering.protocol import Request
from dataset.config import Split
from dataset.loading.sample_store import ImageRow, SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, Sample
from errors import UsageError
from evaluation.scoring.question_categories import category


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the request, and what the evaluation knows of it. `pictures`: sha256 of each picture's file."""

    request: Request
    image_ids: tuple[int, ...]
    images: tuple[str, ...]
    source: str

    @property
    def sample_id(self) -> str:
        """Name of the sample that the question comes from."""
        return self.request.request_id

    @property
    def text(self) -> str:
        """The last user turn, without picture marks."""
        return " ".join(self.request.messages[-1].content.replace(IMAGE_PLACEHOLDER, " ").split())

    @property
    def short(self) -> bool:
        """Whether a short answer is wanted; captions and descriptions have metrics of their own."""
        return self.request.task == "vqa"

    @property
    def category(self) -> str:
        """What the question asks for."""
        return category(self.text, self.request.language)

    @property
    def fingerprint(self) -> str:
        """Changes with anything that an answerer sees: the messages, the pictures' bytes, task and language."""
        messages = [(message.role, message.content) for message in self.request.messages]
        return digest(messages, self.images, self.request.task, self.request.language)


def choose(store: SampleStore, split: Split, limit: int | None) -> list[Question]:
    """The questions of a split, short ones first, in the order of a hash of their names; `limit` takes the first by it.

    So the same limit asks every system the same questions, and a higher limit asks these and more. A sample that stands
    in the split several times is asked once. Raises UsageError when the split is empty.
    """
    rows = store.indices(split)
    if not len(rows):
        raise UsageError(f"{store.folder}: no samples in the split '{split}'; check data.split and eval.split")
    ids = store.column("sample_id")
    first_row = {ids[row]: row for row in reversed(rows.tolist())}
    ordered = sorted(first_row, key=digest)[:limit]
    images: dict[int, ImageRow] = {}
    questions = [_question(sample, store, images) for sample in store.samples(np.array([first_row[name] for name in ordered]))]
    return sorted(questions, key=lambda question: not question.short)


def _question(sample: Sample, store: SampleStore, images: dict[int, ImageRow]) -> Question:
    rows = [images.setdefault(i, images.get(i) or store.image(i)) for i in sample.image_ids]
    request = Request(sample.sample_id, tuple(row.path for row in rows), sample.messages, sample.task, sample.language)
    return Question(request, sample.image_ids, tuple(row.sha256 for row in rows), sample.source)


def references(store: SampleStore, split: Split) -> dict[str, tuple[str, ...]]:
    """Reference answers by sample: `answers`, or the targets where a source gives none."""
    rows = store.indices(split)
    return {sample.sample_id: sample.answers or sample.targets for sample in store.samples(rows)}


def with_shuffled_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """The same questions, every picture replaced by another one of theirs: a control that should score badly.

    A random round trip through the pictures, each replaced by the next, so that none stays in its place. Questions without pictures
    are left out. Raises UsageError when there are fewer than two pictures.
    """
    images_by_id: dict[int, tuple[Path, str]] = {}
    with_images = [question for question in questions if question.image_ids]
    for question in with_images:
        for image, path, sha256 in zip(question.image_ids, question.request.images, question.images, strict=True):
            assert isinstance(path, Path)
            images_by_id[image] = (path, sha256)
    if len(images_by_id) < 2:
        raise UsageError(f"eval.controls: shuffled_pictures needs at least two pictures, the questions have {len(images_by_id)}")
    replacement = _random_cycle(sorted(images_by_id), seed)
    return [_with_images(question, tuple(replacement[image] for image in question.image_ids), images_by_id) for question in with_images]


def _random_cycle(images: list[int], seed: int) -> dict[int, int]:
    """Each picture -> the next one on a random round trip through all of them."""
    cycle = np.random.default_rng([seed, 2]).permutation(images).tolist()
    return dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))


def _with_images(question: Question, image_ids: tuple[int, ...], images_by_id: dict[int, tuple[Path, str]]) -> Question:
    request = dataclasses.replace(question.request, images=tuple(images_by_id[image][0] for image in image_ids))
    return dataclasses.replace(question, request=request, image_ids=image_ids, images=tuple(images_by_id[image][1] for image in image_ids))
