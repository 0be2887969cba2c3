"""Stored answers of two systems to the same questions, without any model: of ours, and of other tools."""

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


@dataclass(frozen=True, slots=True)
class MetricComparison:
    """One metric: mean of each side, and a minus b with its verdict. `mcnemar` only for one file a side and 0/1 scores."""

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
    """Two sides, the choice that was taken from each, and what came of it. `means`: official accuracy of each file of a side."""

    a: tuple[str, ...]
    b: tuple[str, ...]
    questions: int
    images: int
    metrics: list[MetricComparison]
    means: tuple[tuple[float, ...], tuple[float, ...]]

    def table(self) -> str:
        """For a terminal; a and b are named above it."""
        tested = ("a - b (points)", "95 % interval", "p", "p (Holm)", "better", "could show")
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
        compared_questions = f"{self.questions:,} questions with short answers in {self.images:,} groups that share no picture"
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
    """Compare the files of side a with those of side b on the questions that want short answers.

    Several files of a side are seeds of one configuration: each question has their mean score. choices: none (reranked where
    a file of ours has it, else first), one for both sides, or one for each. fields: what other tools call things; where it
    names references they are taken from the files and the merged data is not opened. Raises UsageError when the files answer
    different questions, lack a choice, or answer questions that the data does not hold.
    """
    if len(choices) > 2 or "oracle" in choices:
        raise UsageError(f"--choice {' '.join(choices)}: expected one or two choices of the files; the oracle is none")
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
    """The questions that are compared: their ids, references and pictures, and what each file calls them."""

    ids: list[str]
    references: Mapping[str, Sequence[str]]
    images: list[tuple[int, ...]]
    file_ids: dict[str, dict[str, str]]


def _scores(file: AnswerFile, compared_questions: _ComparedQuestions) -> np.ndarray:
    """Scores [questions, COMPARED]; a failed question counts as wrong."""
    own = compared_questions.file_ids[file.name]
    texts = [(file.answers[own[name]], compared_questions.references[name]) for name in compared_questions.ids]
    return np.array(
        [[0.0 if text is None else METRICS[metric](text, references) for metric in COMPARED_METRICS] for text, references in texts]
    )


def _from_store(files: Sequence[AnswerFile], store: SampleStore) -> _ComparedQuestions:
    rows = {name: row for row, name in enumerate(store.column("sample_id"))}
    own = {file.name: _match_ids(file, rows, str(store.folder)) for file in files}
    ids = _common_ids(files, own)
    samples = [sample for sample in store.samples(np.array([rows[name] for name in ids])) if sample.task == "vqa"]
    if not samples:
        raise UsageError(f"{files[0].name}: none of its questions wants a short answer")
    known_questions = {sample.sample_id: sample.answers or sample.targets for sample in samples}
    return _ComparedQuestions(list(known_questions), known_questions, [sample.image_ids for sample in samples], own)


def _from_files(files: Sequence[AnswerFile]) -> _ComparedQuestions:
    """References and pictures as the files themselves name them; two that differ about a question are an error."""
    known_questions: dict[str, tuple[str, ...]] = {}
    for file in files:
        for name, references in file.references.items():
            if known_questions.setdefault(name, references) != references:
                raise UsageError(f"{file.name}: its references to {name} differ from those of another file")
    own = {file.name: _match_ids(file, known_questions, "the files that hold references") for file in files}
    ids = _common_ids(files, own)
    images = {name: image for file in files for name, image in file.images.items()}
    group_index = {image: i for i, image in enumerate(dict.fromkeys(images.values()))}
    return _ComparedQuestions(ids, known_questions, [(group_index[images[name]],) if name in images else () for name in ids], own)


def _match_ids(file: AnswerFile, known_questions: Mapping[str, object], where: str) -> dict[str, str]:
    """Known id -> the file's own: equal, or one that only lacks the source before the last slash (`vqa/42` and `42`)."""
    by_key: dict[str, list[str]] = {}
    for name in known_questions:
        by_key.setdefault(name.rpartition("/")[2], []).append(name)
    found: dict[str, str] = {}
    for own in file.answers:
        matches = [own] if own in known_questions else by_key.get(own.rpartition("/")[2], [])
        if not matches:
            raise UsageError(f"{file.name}: the question {own} is not in {where}; --data names the merged data that was asked about")
        if len(matches) > 1 or matches[0] in found:
            raise UsageError(f"{file.name}: the question {own} may be any of {', '.join(matches[:3])}; give it that id")
        found[matches[0]] = own
    return found


def _common_ids(files: Sequence[AnswerFile], own: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The ids of the questions, which must be the same in all files."""
    for file in files:
        for other in files:
            if missing := own[file.name].keys() - own[other.name].keys():
                raise UsageError(f"the question sets differ: {len(missing)} of {file.name} are not in {other.name}, such as {min(missing)}")
    return list(own[files[0].name])


def _side_summary(side: str, files: Sequence[str], means: Sequence[float]) -> str:
    """What a side is: one file, or several with mean and spread."""
    if len(files) == 1:
        return f"{side}: {files[0]}"
    mean_and_std = f"{percent(float(np.mean(means)))} on average, standard deviation {100 * float(np.std(means, ddof=1)):.2f}"
    return f"{side}: {len(files)} files, official accuracy {mean_and_std}: {', '.join(files)}"
