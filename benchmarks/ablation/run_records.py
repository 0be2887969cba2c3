"""The result of a run: one small JSON file, from which tables and comparisons are made without repeating the run.

A result holds for the settings and the data that it names by their hashes. Settings are those written in the base configuration and in the
overrides: keys that a later version of the program adds, with a default that changes nothing, leave results valid.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import config as configuration
from answering.model_fingerprint import digest
from atomic_io import write_json
from benchmarks.ablation.ablation_data import CATEGORIES, KINDS
from benchmarks.ablation.config import AblationData, NamedVariant
from errors import TesseraError
from model.checkpoint_manifest import model_digest
from training.checkpointing.resume import CHANGEABLE_KEYS

SCHEMA_VERSION = 1
_TENTHS = "0123456789a"
"""A score in tenths as one character: with ten reference answers, VQA accuracy is 0, .3, .6, .9 or 1."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The score of every test question, in the order of their images.

    Args:
        kinds: a letter for each question; see `ablation_data.KINDS`.
        per_image: number of questions about each image, in order.
        tenths: VQA accuracy of each answer in tenths, as a character of `0123456789a`.
    """

    kinds: str
    per_image: tuple[int, ...]
    tenths: str

    @classmethod
    def of(cls, kinds: str, per_image: list[int], scores: list[float]) -> "Answers":
        """From scores 0..1 that are tenths."""
        return cls(kinds, tuple(per_image), "".join(_TENTHS[round(10 * score)] for score in scores))

    @property
    def scores(self) -> np.ndarray:
        """VQA accuracy [questions], 0..1."""
        return np.array([_TENTHS.index(character) for character in self.tenths]) / 10

    @property
    def cluster_ids(self) -> np.ndarray:
        """Index of each question's image [questions]."""
        return np.repeat(np.arange(len(self.per_image)), self.per_image)

    def mask(self, category: str) -> np.ndarray:
        """Which questions belong to a judged category [questions]."""
        return np.array([kind in CATEGORIES[category] for kind in self.kinds])

    def record(self) -> dict[str, Any]:
        """As JSON; the numbers of questions about an image as a string of digits."""
        return {"legend": KINDS, "kinds": self.kinds, "per_image": "".join(map(str, self.per_image)), "tenths": self.tenths}


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What a finished run measured.

    Args:
        answers: scores of the test questions.
        shuffled: mean VQA accuracy of the seen questions when each is asked about another image.
        tokens_per_image: mean positions of an image in the language model's input, over the test images.
        samples_per_second: of the last stage of training; its first logged interval, which has the start-up in it, is left out.
        peak_memory_gib: of the process while it trained (on a GPU: allocated there).
        training_seconds: preparation and training.
        answering_seconds: loading the checkpoint and asking.
        device: name of the GPU, or the kind of processor.
        cores: that the run used: not more than torch has threads.
    """

    answers: Answers
    shuffled: float
    tokens_per_image: float
    samples_per_second: float
    peak_memory_gib: float
    training_seconds: float
    answering_seconds: float
    device: str
    cores: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A finished or failed run.

    Args:
        variant: its name.
        seed: train.seed.
        settings: hash of the settings; see `settings_digest`.
        data: hash of the data.
        overrides: what the variant changes, for people.
        seconds: of the whole run, with the start of its process.
        figures: None for a run that failed.
        error: why it failed; None for one that finished.
    """

    variant: str
    seed: int
    settings: str
    data: str
    overrides: Mapping[str, Any]
    seconds: float
    figures: RunFigures | None
    error: str | None = None

    def write(self, folder: Path) -> Path:
        """Write the file of this run into a folder of results, atomically; returns it."""
        path = record_path(folder, self.variant, self.seed)
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        if self.figures is not None:
            answers = self.figures.answers
            means = {name: {"questions": int(answers.mask(name).sum()), "vqa_accuracy": mean_score(answers, name)} for name in CATEGORIES}
            measured = {name: _rounded(value) for name, value in asdict(self.figures).items() if name != "answers"}
            record["figures"] = {"categories": means, **measured, "answers": answers.record()}
        record["seconds"] = _rounded(self.seconds)
        write_json(path, record)
        return path


def mean_score(answers: Answers, category: str) -> float | None:
    """Mean VQA accuracy of a category; None without questions of it."""
    mask = answers.mask(category)
    return round(float(answers.scores[mask].mean()), 4) if mask.any() else None


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def record_path(folder: Path, variant: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{variant}-seed{seed}.json"


def read_record(path: Path) -> RunRecord:
    """Read the file of a run. Raises TesseraError when it is not one, or of a later version."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema_version"] != SCHEMA_VERSION:
            raise TesseraError(f"{path}: schema_version {raw['schema_version']}, expected {SCHEMA_VERSION}")
        figures = raw["figures"] and _figures(raw["figures"])
        return RunRecord(**{f.name: raw[f.name] for f in fields(RunRecord) if f.name != "figures"}, figures=figures)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TesseraError(f"{path}: not the result of a run ({type(error).__name__}: {error}); move it away") from error


def _figures(raw: Mapping[str, Any]) -> RunFigures:
    packed = raw["answers"]
    answers = Answers(packed["kinds"], tuple(map(int, packed["per_image"])), packed["tenths"])
    if not len(answers.kinds) == sum(answers.per_image) == len(answers.tenths):
        raise ValueError("its answers have different lengths")
    return RunFigures(answers, **{f.name: raw[f.name] for f in fields(RunFigures) if f.name != "answers"})


def settings_digest(variant: NamedVariant, data: AblationData) -> str:
    """A hash of what decides the result of a variant apart from the seed and the content of the data: the keys of data, model, training and
    decoding as they are written, the content of the pre-trained models in folders, and the numbers of scenes."""
    raw = configuration.read(variant.base, list(variant.overrides))
    written = {name: raw.get(name) or {} for name in ("data", "model", "train", "decoding")}
    written["data"] = {key: value for key, value in written["data"].items() if key not in ("sources", "folder")}
    written["train"] = {key: value for key, value in written["train"].items() if f"train.{key}" not in CHANGEABLE_KEYS}
    training = variant.training(0)
    names = [str(getattr(training.model, key)) for key in training.model.base_models]
    models = [model_digest(Path(name)) if Path(name).is_dir() else name for name in names]
    return digest(written, models, asdict(data))
