"""The questions of an evaluation. Reference answers are loaded separately; a Question holds none."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from answering.model_fingerprint import digest as digest
from answering.protocol import Request
from dataset.loading.sample_store import ImageRow, SampleStore
from dataset.remote_files import FilePath
from dataset.sample import Sample
from dataset.source_base import Split
from errors import UsageError
from evaluation.scoring.question_categories import category


@dataclass(frozen=True, slots=True)
class Question:
    """A request (what the answerer gets) with its metadata: ids of its images in the merged data, sha256 of each image file, data set."""

    request: Request
    image_ids: tuple[int, ...]
    images: tuple[str, ...]
    source: str

    @property
    def sample_id(self) -> str:
        """Id of the sample that the question comes from."""
        return self.request.request_id

    @property
    def text(self) -> str:
        """The last user turn, without image placeholders."""
        return self.request.question

    @property
    def short(self) -> bool:
        """Whether a short answer is expected; captions and descriptions have their own metrics."""
        return self.request.short

    @property
    def asks_for_box(self) -> bool:
        """Whether the answer is a box."""
        return self.request.task == "grounding"

    @property
    def category(self) -> str:
        """Category of the question (counting, attribute, ...)."""
        return category(self.text, self.request.language)

    @property
    def fingerprint(self) -> str:
        """Digest of everything an answerer sees: messages, image contents, task and language."""
        messages = [(message.role, message.content) for message in self.request.messages]
        return digest(messages, self.images, self.request.task, self.request.language)


def choose(store: SampleStore, split: Split, limit: int | None) -> list[Question]:
    """Select the questions of a split: the first `limit` by a hash of the sample id, then short questions before the others.

    The same limit selects the same questions for every system, and a higher limit selects a superset. A sample that occurs
    several times in the split is used once. Raises UsageError if the split is empty.
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
    """Reference answers by sample id: `answers`, or `targets` where the source has no answers."""
    rows = store.indices(split)
    return {sample.sample_id: sample.answers or sample.targets for sample in store.samples(rows)}


def with_shuffled_images(questions: Sequence[Question], seed: int) -> list[Question]:
    """The same questions with every image replaced by another image of the set: a control run that should score badly.

    The images are arranged in one random cycle and each is replaced by the next, so no question keeps its image. Questions without
    images are dropped. Raises UsageError if there are fewer than two images.
    """
    images_by_id: dict[int, tuple[FilePath, str]] = {}
    with_images = [question for question in questions if question.image_ids]
    for question in with_images:
        for image, path, sha256 in zip(question.image_ids, question.request.images, question.images, strict=True):
            assert not isinstance(path, Image.Image)
            images_by_id[image] = (path, sha256)
    if len(images_by_id) < 2:
        raise UsageError(f"eval.controls: shuffled_images needs at least two images, the questions have {len(images_by_id)}")
    cycle = np.random.default_rng([seed, 2]).permutation(sorted(images_by_id)).tolist()
    replacement = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [_with_images(question, tuple(replacement[image] for image in question.image_ids), images_by_id) for question in with_images]


def _with_images(question: Question, image_ids: tuple[int, ...], images_by_id: dict[int, tuple[FilePath, str]]) -> Question:
    request = dataclasses.replace(question.request, images=tuple(images_by_id[image][0] for image in image_ids))
    return dataclasses.replace(question, request=request, image_ids=image_ids, images=tuple(images_by_id[image][1] for image in image_ids))
