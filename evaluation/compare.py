"""Two predictions files against the references of merged data, without any model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.store import Store
from errors import UsageError
from evaluation import predictions
from evaluation.predictions import Prediction
from evaluation.scoring import score
from evaluation.significance import Difference, Verdict, clusters, compare, holm, verdict
from evaluation.tables import aligned, percent, shown_choice

COMPARED = ("vqa_accuracy", "vqa_accuracy_m4c")


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric: mean of each file, and a minus b with its verdict."""

    metric: str
    a: float
    b: float
    difference: Difference
    p_holm: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class FileComparison:
    """Two files, the choice that was taken from each, and what came of it."""

    a: str
    b: str
    questions: int
    metrics: list[MetricComparison]

    def table(self) -> str:
        """For a terminal; a and b are named above it."""
        header = ("metric", "a", "b", "a - b (points)", "95 % interval", "p", "p (Holm)", "better")
        rows = [
            (
                m.metric,
                percent(m.a),
                percent(m.b),
                f"{100 * m.difference.difference:+.1f}",
                f"{100 * m.difference.ci95.low:+.1f} .. {100 * m.difference.ci95.high:+.1f}",
                f"{m.difference.p_value:.4f}",
                f"{m.p_holm:.4f}",
                m.verdict,
            )
            for m in self.metrics
        ]
        return f"a: {self.a}\nb: {self.b}\n{self.questions:,} questions with short answers\n\n{aligned(header, rows)}"


def compare_files(a: Path, b: Path, store: Store, choices: Sequence[str], resamples: int, seed: int) -> FileComparison:
    """Compare a choice of file a with one of file b on the questions that want short answers.

    choices: none (reranked where a file has it, else first), one for both files, or one for each. Raises UsageError when
    the files answer different questions, lack a choice, or answer questions that the data does not hold.
    """
    if len(choices) > 2 or "oracle" in choices:
        raise UsageError(f"--choice {' '.join(choices)}: expected one or two choices of the files; the oracle is none")
    files = [_Answers(path, _by_sample(path)) for path in (a, b)]
    ids = _common(*files)
    rows = _rows(store, ids, a)
    samples = [sample for sample in store.samples(np.array([rows[name] for name in ids])) if sample.task == "vqa"]
    if not samples:
        raise UsageError(f"{a}: none of its questions wants a short answer")
    known = {sample.sample_id: sample.answers or sample.targets for sample in samples}
    wanted = [*choices, *choices][:2] if choices else [None, None]
    taken = [file.choice(name) for file, name in zip(files, wanted, strict=True)]
    scores = [
        score([file.answers[sample.sample_id] for sample in samples], known).scores[choice]
        for file, choice in zip(files, taken, strict=True)
    ]
    mine, theirs = (np.stack([table[metric] for metric in COMPARED], axis=1) for table in scores)
    differences = compare(mine, theirs, clusters([sample.image_ids for sample in samples]), resamples, seed)
    adjusted = holm([difference.p_value for difference in differences])
    metrics = [
        MetricComparison(
            metric, float(mine[:, i].mean()), float(theirs[:, i].mean()), differences[i], adjusted[i], verdict(differences[i], adjusted[i])
        )
        for i, metric in enumerate(COMPARED)
    ]
    return FileComparison(f"{a} ({taken[0]})", f"{b} ({taken[1]})", len(samples), metrics)


@dataclass(frozen=True, slots=True)
class _Answers:
    """A predictions file by sample."""

    path: Path
    answers: dict[str, Prediction]

    def choice(self, name: str | None) -> str:
        """The choice to take: `name`, or the one that stands for a system. Every line must have it."""
        present = set.intersection(*(set(prediction.choices or ()) for prediction in self.answers.values()))
        if not present:
            raise UsageError(f"{self.path}: some lines have no choices yet; the run that wrote it has not finished, start it again")
        name = name or shown_choice(present)
        if name not in present:
            raise UsageError(f"{self.path}: there is no choice '{name}'; there are {', '.join(sorted(present))}")
        return name


def _by_sample(path: Path) -> dict[str, Prediction]:
    found = {prediction.sample_id: prediction for prediction in predictions.read(path)}
    if not found:
        raise UsageError(f"{path}: holds no prediction")
    return found


def _common(a: _Answers, b: _Answers) -> list[str]:
    """The sample ids of both files, which must be the same."""
    for one, other in ((a, b), (b, a)):
        if missing := one.answers.keys() - other.answers.keys():
            raise UsageError(f"the question sets differ: {len(missing)} of {one.path} are not in {other.path}, such as {min(missing)}")
    return list(a.answers)


def _rows(store: Store, ids: Sequence[str], path: Path) -> dict[str, int]:
    rows = {name: row for row, name in enumerate(store.column("sample_id"))}
    for name in ids:
        if name not in rows:
            raise UsageError(f"{path}: the sample {name} is not in {store.folder}; --data names the merged data that was asked about")
    return rows
