"""The synthetic data of an ablation: made once, kept in a folder, and which question is of which kind.

In: `AblationData`. Out: a merged data set with training and test samples, and the test questions in a fixed order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from answering.model_fingerprint import digest
from benchmarks.ablation.config import AblationData
from dataset.build.merge import merge
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.source_base import Split
from dataset.source_config import VqaV2Source
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from evaluation.questions import Question, choose, references

KINDS = {
    "s": "seen",
    "n": "seen, counting",
    "u": "unseen",
    "r": "larger scenes, reading",
    "o": "larger scenes, small objects",
    "c": "larger scenes, counting",
}
"""Letter of a kind of question -> what it is; every question is of one kind."""
CATEGORIES = {"accuracy": "snuroc", "seen": "sn", "unseen": "u", "reading": "r", "small objects": "o", "counting": "nc"}
"""Judged category -> the letters of the kinds of its questions."""
CATEGORY_DESCRIPTIONS = {
    "accuracy": "all questions",
    "seen": "scenes of the demo's kind, new to the model, with combinations of color and shape that it was trained on",
    "unseen": "questions about combinations of color and shape that no training has",
    "reading": "the digit or the word on a sign of a larger scene",
    "small objects": "color, shape or existence of an object of a larger scene",
    "counting": "how many, in seen scenes and in larger ones",
}

_TRAINING_SOURCES = ("vqa_train", "vqa_zh_train", "vqa_large_train")
_TEST_SOURCES = ("vqa_test", "vqa_zh_test", "vqa_unseen", "vqa_large_test")


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The data of an ablation.

    Args:
        config: the sources.
        folder: of the merged data.
        digest: of all samples and images; two machines that render the same data have the same.
    """

    config: DataConfig
    folder: Path
    digest: str


@dataclass(frozen=True, slots=True)
class JudgedQuestions:
    """The test questions in the order of their images, with the letter of each one's kind, and their reference answers."""

    questions: list[Question]
    kinds: str
    references: Mapping[str, Sequence[str]]

    @property
    def per_image(self) -> list[int]:
        """Number of questions about each image, in order."""
        return [len(list(group)) for _, group in groupby(self.questions, key=lambda question: question.image_ids)]


def prepare_data(settings: AblationData, work: Path) -> PreparedData:
    """Render and merge the scenes below `work`, in a folder of these settings, unless that was done before."""
    folder = work / f"data-{digest(asdict(settings))}"
    raw, merged = folder / "scenes", folder / "merged"
    counts = SceneCounts(
        settings.seed, settings.train, 0, settings.test, settings.unseen, large_train=settings.large_train, large_test=settings.large_test
    )
    write_scenes(raw, counts)
    config = DataConfig(sources=tuple(_source(raw, name) for name in (*_TRAINING_SOURCES, *_TEST_SOURCES)), folder=merged)
    merge(config, merged)
    return PreparedData(config, merged, _content_digest(SampleStore(merged)))


def _source(raw: Path, name: str) -> VqaV2Source:
    """One pair of the files that `write_scenes` writes."""
    split: Split = "train" if name.endswith("train") else "test"
    part = "unseen" if name == "vqa_unseen" else split
    images = raw / ("large" if "large" in name else "coco") / part
    annotations = raw / "annotations"
    return VqaV2Source(
        format="vqav2",
        name=name,
        split=split,
        prompt=None,
        questions=annotations / f"{name}_questions.json",
        annotations=annotations / f"{name}_annotations.json",
        images=images,
    )


def _content_digest(store: SampleStore) -> str:
    """A hash of what is asked and answered about which images, wherever their files stand."""
    images = {row.image_id: row.sha256 for row in store.images()}
    samples = [
        (sample.sample_id, [images[i] for i in sample.image_ids], [m.content for m in sample.messages], sample.targets, sample.answers)
        for sample in store.samples()
    ]
    return digest(sorted(samples))


def judged_questions(folder: Path) -> JudgedQuestions:
    """The test questions of merged data."""
    store = SampleStore(folder)
    questions = sorted(choose(store, "test", None), key=lambda question: (question.image_ids, question.sample_id))
    return JudgedQuestions(questions, "".join(map(kind_of, questions)), references(store, "test"))


def kind_of(question: Question) -> str:
    """The letter of a question's kind."""
    counting = question.category == "counting"
    if question.source == "vqa_unseen":
        return "u"
    if question.source == "vqa_large_test":
        return "c" if counting else "r" if question.category == "reading" else "o"
    return "n" if counting else "s"
