"""Compare stored answers of two systems to the same questions, without loading a model: own predictions files or those of other tools."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.loading.sample_store import SampleStore
from errors import UsageError
from evaluation.comparison.external_predictions import AnswerFile, FieldNames, read_answer_file
from evaluation.metrics.short_answers import BINARY_METRICS, METRICS
from evaluation.report.result_tables import align_columns, percent
from evaluation.statistics import (
    Difference,
    McNemar,
    Verdict,
    clusters,
    compare,
    holm,
    mcnemar,
    min_resamples,
    minimum_detectable_effect,
    verdict,
)

COMPARED_METRICS = ("vqa_accuracy", "vqa_accuracy_m4c", "exact")
"""Metrics of the comparison; Holm corrects over them."""


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """Comparison in one metric.

    Args:
        metric: name of the metric
        a: mean of side a
        b: mean of side b
        difference: a minus b, with interval and p-value
        p_holm: p-value adjusted over COMPARED_METRICS
        verdict: the better side, or "not shown"
        minimum_detectable_effect: smallest true difference that would be detected; None: none
        mcnemar: McNemar's test; only for 0/1 metrics and one file per side
    """

    metric: str
    a: float
    b: float
    difference: Difference
    p_holm: float
    verdict: Verdict
    minimum_detectable_effect: float | None
    mcnemar: McNemar | None


@dataclass(frozen=True, slots=True)
class FileComparison:
    """Comparison of two sides.

    Args:
        a: names of the files of side a, with the compared choice
        b: the same of side b
        questions: number of questions
        images: number of clusters of questions that share no image with each other
        metrics: one comparison per metric
        means: VQA accuracy of each file, for side a and side b
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    questions: int
    images: int
    metrics: list[MetricComparison]
    means: tuple[tuple[float, ...], tuple[float, ...]]

    def table(self) -> str:
        """The comparison as text for a terminal."""
        tested = ("a - b (points)", "95 % interval", "p", "p (Holm)", "better", "detectable")
        header = ("metric", "a", "b", *tested, "only a / only b", "McNemar p")
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
                "nothing" if m.minimum_detectable_effect is None else f"{100 * m.minimum_detectable_effect:.1f}",
                *(("", "") if m.mcnemar is None else (f"{m.mcnemar.only_a:,} / {m.mcnemar.only_b:,}", f"{m.mcnemar.p_value:.4f}")),
            )
            for m in self.metrics
        ]
        sides = [_side_summary(name, files, means) for name, files, means in zip("ab", (self.a, self.b), self.means, strict=True)]
        compared_questions = f"{self.questions:,} questions with short answers in {self.images:,} clusters that share no image"
        return "\n".join([*sides, compared_questions, "", align_columns(header, rows)])


def compare_files(
    a: Sequence[Path],
    b: Sequence[Path],
    open_store: Callable[[], SampleStore],
    choices: Sequence[str],
    fields: FieldNames | None,
    resamples: int,
    seed: int,
) -> FileComparison:
    """Compare the files of side a with those of side b on the questions with short answers.

    Several files of a side are seeds of one configuration; each question then counts with its mean score over them.

    Args:
        a: files of side a
        b: files of side b
        open_store: opens the merged data with the references; not called if the files hold references
        choices: empty (reranked if a predictions file has it, else first), one choice for both sides, or one per side
        fields: field names of other tools' files; None if all are predictions files
        resamples: resamples of bootstrap and randomisation test
        seed: seed of both

    Raises:
        UsageError: the files answer different questions, lack a choice, or answer questions that are not in the data
    """
    if len(choices) > 2 or "oracle" in choices:
        raise UsageError(
            f"--choice {' '.join(choices)}: expected one or two choices of the files; oracle uses the references and is not compared"
        )
    choice_of_side = [*choices, *choices][:2] if choices else [None, None]
    sides = [[read_answer_file(path, choice, fields) for path in paths] for paths, choice in zip((a, b), choice_of_side, strict=True)]
    files = [file for side in sides for file in side]
    compared_questions = _from_files(files) if any(file.references for file in files) else _from_store(files, open_store())
    tables = [[_scores(file, compared_questions) for file in side] for side in sides]
    mine, theirs = (np.mean(side, axis=0) for side in tables)
    groups = clusters(compared_questions.images)
    differences = compare(mine, theirs, groups, min_resamples(resamples, len(COMPARED_METRICS)), seed)
    adjusted = holm([difference.p_value for difference in differences])
    one_file_per_side = len(a) == len(b) == 1
    metrics = [
        MetricComparison(
            metric=metric,
            a=float(mine[:, i].mean()),
            b=float(theirs[:, i].mean()),
            difference=differences[i],
            p_holm=adjusted[i],
            verdict=verdict(differences[i], adjusted[i]),
            minimum_detectable_effect=minimum_detectable_effect(mine[:, i] - theirs[:, i], groups, len(COMPARED_METRICS)),
            mcnemar=mcnemar(mine[:, i], theirs[:, i]) if one_file_per_side and metric in BINARY_METRICS else None,
        )
        for i, metric in enumerate(COMPARED_METRICS)
    ]
    means = tuple(tuple(float(table[:, 0].mean()) for table in side) for side in tables)
    names = [tuple(file.name for file in side) for side in sides]
    return FileComparison(names[0], names[1], len(compared_questions.ids), int(groups.max()) + 1, metrics, (means[0], means[1]))


@dataclass(frozen=True, slots=True)
class _ComparedQuestions:
    """The compared questions: ids, references by id, image ids, and by file the map from id to the file's own id."""

    ids: list[str]
    references: Mapping[str, Sequence[str]]
    images: list[tuple[int, ...]]
    file_ids: dict[str, dict[str, str]]


def _scores(file: AnswerFile, compared_questions: _ComparedQuestions) -> np.ndarray:
    """Scores [questions, COMPARED_METRICS]; a failed question counts as wrong."""
    file_ids = compared_questions.file_ids[file.name]
    texts = [(file.answers[file_ids[name]], compared_questions.references[name]) for name in compared_questions.ids]
    return np.array(
        [[0.0 if text is None else METRICS[metric](text, references) for metric in COMPARED_METRICS] for text, references in texts]
    )


def _from_store(files: Sequence[AnswerFile], store: SampleStore) -> _ComparedQuestions:
    """The questions with short answers, with references and images of the merged data."""
    rows = {name: row for row, name in enumerate(store.column("sample_id"))}
    file_ids = {file.name: _match_ids(file, rows, str(store.folder)) for file in files}
    ids = _common_ids(files, file_ids)
    samples = [sample for sample in store.samples(np.array([rows[name] for name in ids])) if sample.task == "vqa"]
    if not samples:
        raise UsageError(f"{files[0].name}: none of its questions has a short answer")
    known_questions = {sample.sample_id: sample.answers or sample.targets for sample in samples}
    return _ComparedQuestions(list(known_questions), known_questions, [sample.image_ids for sample in samples], file_ids)


def _from_files(files: Sequence[AnswerFile]) -> _ComparedQuestions:
    """Questions with the references and images given in the files. Raises UsageError if two files give different references."""
    known_questions: dict[str, tuple[str, ...]] = {}
    for file in files:
        for name, references in file.references.items():
            if known_questions.setdefault(name, references) != references:
                raise UsageError(f"{file.name}: its references to {name} differ from those of another file")
    file_ids = {file.name: _match_ids(file, known_questions, "the files that hold references") for file in files}
    ids = _common_ids(files, file_ids)
    images = {name: image for file in files for name, image in file.images.items()}
    group_index = {image: i for i, image in enumerate(dict.fromkeys(images.values()))}
    return _ComparedQuestions(ids, known_questions, [(group_index[images[name]],) if name in images else () for name in ids], file_ids)


def _match_ids(file: AnswerFile, known_questions: Mapping[str, object], where: str) -> dict[str, str]:
    """Known id -> the file's id: equal, or equal after the last slash (`vqa/42` and `42`). Raises UsageError if none or several match."""
    by_key: dict[str, list[str]] = {}
    for name in known_questions:
        by_key.setdefault(name.rpartition("/")[2], []).append(name)
    matched: dict[str, str] = {}
    for file_id in file.answers:
        matches = [file_id] if file_id in known_questions else by_key.get(file_id.rpartition("/")[2], [])
        if not matches:
            raise UsageError(f"{file.name}: the question {file_id} is not in {where}; name the merged data of these questions with --data")
        if len(matches) > 1 or matches[0] in matched:
            raise UsageError(f"{file.name}: the question {file_id} may be any of {', '.join(matches[:3])}; use the full id in the file")
        matched[matches[0]] = file_id
    return matched


def _common_ids(files: Sequence[AnswerFile], file_ids: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Ids of the questions. Raises UsageError unless all files answer the same ones."""
    for file in files:
        for other in files:
            if missing := file_ids[file.name].keys() - file_ids[other.name].keys():
                raise UsageError(f"the question sets differ: {len(missing)} of {file.name} are not in {other.name}, such as {min(missing)}")
    return list(file_ids[files[0].name])


def _side_summary(side: str, files: Sequence[str], means: Sequence[float]) -> str:
    """One line about a side: its file, or mean and standard deviation of its files."""
    if len(files) == 1:
        return f"{side}: {files[0]}"
    mean_and_std = f"{percent(float(np.mean(means)))} on average, standard deviation {100 * float(np.std(means, ddof=1)):.2f}"
    return f"{side}: {len(files)} files, official accuracy {mean_and_std}: {', '.join(files)}"
