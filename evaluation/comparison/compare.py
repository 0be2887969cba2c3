"""Compare stored answers of two systems to the same questions, without loading a model: own predictions files or those of other tools."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.loading.sample_store import SampleStore
from errors import UsageError
from evaluation.comparison.compared_questions import ComparedQuestions, match_questions
from evaluation.comparison.external_predictions import AnswerFile, Side, read_answer_file
from evaluation.metrics.short_answers import BINARY_METRICS, METRICS, OFFICIAL_REFERENCES
from evaluation.power_analysis import minimum_detectable_effect
from evaluation.report.table_format import DIFFERENCE_HEADINGS, align_columns, difference_cells, percent
from evaluation.statistics import McNemar, TestedDifference, clusters, compare, mcnemar, min_resamples, with_verdicts

COMPARED_METRICS = ("vqa_accuracy", "vqa_accuracy_m4c", "exact")
"""Metrics of the comparison; Holm corrects over them."""


@dataclass(frozen=True)
class MetricComparison(TestedDifference):
    """Comparison in one metric; Holm corrects over COMPARED_METRICS.

    a, b: mean of each side. minimum_detectable_effect: smallest true difference that would be detected; None: none. mcnemar: only for 0/1
    metrics and one file per side.
    """

    metric: str
    a: float
    b: float
    minimum_detectable_effect: float | None
    mcnemar: McNemar | None


@dataclass(frozen=True, slots=True)
class FileComparison:
    """Comparison of two sides.

    a, b: names of the files of each side, with the compared choice. images: number of clusters of questions that share no image with each
    other. means: VQA accuracy of each file, for side a and side b. notes: about references, missing answers and the limits of the figures.
    """

    a: tuple[str, ...]
    b: tuple[str, ...]
    questions: int
    images: int
    metrics: list[MetricComparison]
    means: tuple[tuple[float, ...], tuple[float, ...]]
    notes: list[str]

    def table(self) -> str:
        """The comparison as text for a terminal."""
        header = ("metric", "a", "b", *DIFFERENCE_HEADINGS, "better", "detectable", "only a / only b", "McNemar p")
        rows = [
            (
                m.metric,
                percent(m.a),
                percent(m.b),
                *difference_cells(m),
                m.verdict,
                "nothing" if m.minimum_detectable_effect is None else percent(m.minimum_detectable_effect),
                *(("", "") if m.mcnemar is None else (f"{m.mcnemar.only_a:,} / {m.mcnemar.only_b:,}", f"{m.mcnemar.p_value:.4f}")),
            )
            for m in self.metrics
        ]
        sides = [_side_summary(name, files, means) for name, files, means in zip("ab", (self.a, self.b), self.means, strict=True)]
        compared_questions = f"{self.questions:,} questions with short answers in {self.images:,} clusters that share no image"
        notes = ["", *(f"{note}." for note in self.notes)] if self.notes else []
        return "\n".join([*sides, compared_questions, "", align_columns(header, rows), *notes])


def compare_files(a: Side, b: Side, open_store: Callable[[], SampleStore], resamples: int, seed: int) -> FileComparison:
    """Compare the files of side a with those of side b on the questions with short answers.

    Several files of a side are seeds of one configuration; each question then counts with its mean score over them.

    Args:
        a: files of side a, with their choice and field names
        b: files of side b
        open_store: opens the merged data with the references; not called if the files hold references
        resamples: random sign assignments of the randomisation test
        seed: seed of the signs

    Raises:
        UsageError: the files answer different questions, lack a choice, or answer questions that are not in the data
    """
    if "oracle" in (a.choice, b.choice):
        raise UsageError("--choice oracle: it uses the references and is not compared")
    sides = [[read_answer_file(path, side) for path in side.paths] for side in (a, b)]
    files = [file for side in sides for file in side]
    _check_choices(a, b, sides)
    compared = match_questions(files, open_store)
    scores = [_scores(file, own_ids, compared) for file, own_ids in zip(files, compared.file_ids, strict=True)]
    tables = scores[: len(sides[0])], scores[len(sides[0]) :]
    mine, theirs = (np.mean(side, axis=0) for side in tables)
    groups = clusters(compared.images)
    differences = compare(mine, theirs, groups, min_resamples(resamples, len(COMPARED_METRICS)), seed)
    one_file_per_side = len(a.paths) == len(b.paths) == 1
    metrics = [
        MetricComparison(
            **vars(difference),
            metric=metric,
            a=float(mine[:, i].mean()),
            b=float(theirs[:, i].mean()),
            minimum_detectable_effect=minimum_detectable_effect(mine[:, i] - theirs[:, i], groups, len(COMPARED_METRICS)),
            mcnemar=mcnemar(mine[:, i], theirs[:, i]) if one_file_per_side and metric in BINARY_METRICS else None,
        )
        for i, (metric, difference) in enumerate(zip(COMPARED_METRICS, with_verdicts(differences), strict=True))
    ]
    means = tuple(tuple(float(table[:, 0].mean()) for table in side) for side in tables)
    names = [tuple(file.name for file in side) for side in sides]
    notes = _notes(files, compared, metrics)
    return FileComparison(names[0], names[1], len(compared.ids), int(groups.max()) + 1, metrics, (means[0], means[1]), notes)


def _check_choices(a: Side, b: Side, sides: Sequence[Sequence[AnswerFile]]) -> None:
    """Raise UsageError for a choice without effect. One that is named for both sides needs a predictions file on either."""
    for side, files in [(a, [*sides[0], *sides[1]])] if a.choice == b.choice else [(a, sides[0]), (b, sides[1])]:
        if side.choice is not None and not any(file.has_choices for file in files):
            raise UsageError(f"--choice {side.choice}: {files[0].name} is no predictions file and has no choices; name the answer's field")


def _scores(file: AnswerFile, own_ids: Mapping[str, str], compared: ComparedQuestions) -> np.ndarray:
    """Scores [questions, COMPARED_METRICS]; a failed question counts as wrong."""
    texts = [(file.answers[own_ids[name]], compared.references[name]) for name in compared.ids]
    return np.array(
        [[0.0 if text is None else METRICS[metric](text, references) for metric in COMPARED_METRICS] for text, references in texts]
    )


def _notes(files: Sequence[AnswerFile], compared: ComparedQuestions, metrics: Sequence[MetricComparison]) -> list[str]:
    """Sentences about what counts as wrong without an answer, and about how far the figures can be trusted."""
    notes = list(compared.notes)
    for file, own_ids in zip(files, compared.file_ids, strict=True):
        if missing := sum(not (file.answers[own_ids[name]] or "").strip() for name in compared.ids):
            notes.append(f"{file.name}: {missing:,} of {len(compared.ids):,} questions have no answer and count as wrong")
    notes = list(dict.fromkeys(notes))
    if fewer := sum(len(compared.references[name]) < OFFICIAL_REFERENCES for name in compared.ids):
        notes.append(
            f"{fewer:,} of {len(compared.ids):,} questions have fewer than {OFFICIAL_REFERENCES} references, so that vqa_accuracy is not "
            "the official score"
        )
    official, m4c = (next(m for m in metrics if m.metric == name) for name in ("vqa_accuracy", "vqa_accuracy_m4c"))
    if official.verdict != m4c.verdict:
        notes.append(
            f"vqa_accuracy says {official.verdict!r} and vqa_accuracy_m4c {m4c.verdict!r}: the difference is at least partly one of form, "
            "such as capital letters or full stops, which M4C does not count"
        )
    return notes


def _side_summary(side: str, files: Sequence[str], means: Sequence[float]) -> str:
    """One line about a side: its file, or mean and standard deviation of its files."""
    if len(files) == 1:
        return f"{side}: {files[0]}"
    mean_and_std = f"{percent(float(np.mean(means)))} on average, standard deviation {100 * float(np.std(means, ddof=1)):.2f}"
    return f"{side}: {len(files)} files, VQA accuracy {mean_and_std}: {', '.join(files)}"
