"""The findings of an evaluation as sentences."""

from dataclasses import replace
from typing import TypeVar

from answering.rerank.choose_answer import displayed_choice
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.report.grounding_findings import box_headline, box_sentences
from evaluation.report.report_notes import tuning_sentence
from evaluation.report.table_format import format_interval, percent
from evaluation.schema.summary_file import Comparison, Summary
from evaluation.statistics import TestedDifference, Verdict

POOR_ACCURACY = 0.10
"""VQA accuracy below which the headline says that a system cannot do the task."""
_NOT_SHOWN = "not shown to be better than"
_OUTCOMES = ("shown to be better than", "equal on every question to", "shown to be worse than", _NOT_SHOWN)


def headline(summary: Summary) -> str:
    """Summary of the report in one to three sentences, of boxes if there are no short questions; empty without both."""
    scored = _displayed_accuracies(summary)
    if not scored:
        return box_headline(summary)
    if summary.curve is not None:
        return _curve_sentence(summary, summary.curve)
    top = max(scored, key=lambda name: scored[name])
    questions = f"{summary.dataset.by_task.get('vqa', summary.dataset.questions):,} questions"
    interval = _displayed_interval(summary, top)
    parts = [f"{_display_name(summary, top)} answers {percent(scored[top])} % of {questions} right{interval}"]
    if scored[top] < POOR_ACCURACY:
        parts.append("which is poor: most answers are wrong")
    rows = {name: _displayed_comparison(summary, top, name) for name in scored if name != top}
    if rows:
        parts.append(_comparison_clause(rows))
    form_sentences = "".join(_form_sentence(row) for row in rows.values())
    return ", ".join(parts) + "." + form_sentences + _rerank_sentence(summary, top) + _image_use_sentence(summary)


def _displayed_accuracies(summary: Summary) -> dict[str, float]:
    """VQA accuracy of each system's displayed choice; a group of seeds replaces its members."""
    groups = summary.groups or {}
    grouped = {member for group in groups.values() for member in group.systems}
    accuracies = {
        name: results.choices[displayed_choice(results.choices)].vqa_accuracy
        for name, results in summary.systems.items()
        if results.choices and name not in grouped
    }
    for name, group in groups.items():
        if group.choices:
            accuracies[name] = group.choices[displayed_choice(group.choices)][PRIMARY_METRIC].mean
    return accuracies


def _displayed_interval(summary: Summary, name: str) -> str:
    """The interval of a system's displayed choice, in parentheses after a space; empty for a group."""
    if name not in summary.systems:
        return ""
    choices = summary.systems[name].choices
    return f" ({format_interval(choices[displayed_choice(choices)].vqa_accuracy_ci95)})"


def _display_name(summary: Summary, name: str) -> str:
    """Name of a system, or of a group with its number of seeds."""
    group = (summary.groups or {}).get(name)
    return name if group is None else f"{name} (mean of {len(group.systems)} seeds)"


def _find_comparison(summary: Summary, a: str, b: str) -> Comparison | None:
    """The row that compares a with b, with sign and verdict swapped if it is stored as b with a; None if there is none."""
    for row in summary.comparisons:
        if (row.a, row.b) == (a, b):
            return row
        if (row.a, row.b) == (b, a):
            return replace(_swapped(row), a=a, b=b, vqa_accuracy_m4c=_swapped(row.vqa_accuracy_m4c))
    return None


D = TypeVar("D", bound=TestedDifference)


def _swapped(figures: D) -> D:
    """Difference and verdict with the sides exchanged."""
    verdicts: dict[Verdict, Verdict] = {"a": "b", "b": "a", "not shown": "not shown"}
    return replace(figures, difference=0.0 - figures.difference, verdict=verdicts[figures.verdict])


def _comparison_clause(rows: dict[str, Comparison | None]) -> str:
    """How the best system compares with each other one. rows: other system -> its comparison with the best."""
    outcomes: dict[str, list[str]] = {outcome: [] for outcome in _OUTCOMES}
    for other, row in rows.items():
        outcomes[_NOT_SHOWN if row is None else _outcome(row, _NOT_SHOWN)].append(other)
    return " but ".join(f"{outcome} {_join_names(names)}" for outcome, names in outcomes.items() if names)


def _outcome(row: Comparison, not_shown: str) -> str:
    """How side a compares with side b; `not_shown`: what to say where no difference is shown."""
    if row.differing_questions == 0:
        return "equal on every question to"
    return {"a": "shown to be better than", "b": "shown to be worse than"}.get(row.verdict, not_shown)


def _displayed_comparison(summary: Summary, a: str, b: str) -> Comparison | None:
    """The comparison of two systems in reranked answers if there is one, else in first ones."""
    rows = (_find_comparison(summary, f"{a}/{choice}", f"{b}/{choice}") for choice in ("reranked", "first"))
    return next((row for row in rows if row is not None), None)


def _form_sentence(row: Comparison | None) -> str:
    """Where M4C, which ignores the form of an answer, gives another verdict than the main metric: a sentence that says so; else empty."""
    if row is None or row.vqa_accuracy_m4c.verdict == row.verdict:
        return ""
    normalised = row.vqa_accuracy_m4c
    verdict = {"a": f"{row.a} is better", "b": f"{row.b} is better"}.get(normalised.verdict, "no difference is shown")
    return (
        f" M4C, which ignores capital letters and punctuation, disagrees about {row.a} and {row.b}: {verdict} "
        f"({100 * normalised.difference:+.1f} points instead of {100 * row.difference:+.1f}); look at the form of the answers."
    )


def _rerank_sentence(summary: Summary, top: str) -> str:
    """Effect of reranking on the best system, and what tuning its weights did; empty without reranking."""
    row = _find_comparison(summary, f"{top}/reranked", f"{top}/first")
    if row is None:
        return ""
    if row.differing_questions == 0:
        return f" Reranking changes the score of no question of {top}." + tuning_sentence(summary)
    points = f"{100 * row.difference:+.1f} points, p = {row.p_holm:.3f} after Holm"
    effect = {"a": "Reranking helps it", "b": "Reranking hurts it"}.get(row.verdict, "Reranking is not shown to help or hurt it")
    return f" {effect} ({points})." + _form_sentence(row) + tuning_sentence(summary)


def _image_use_sentence(summary: Summary) -> str:
    """Whether the system of the control runs uses the images, by the run with shuffled images; empty without that run."""
    row = next((row for row in summary.comparisons if row.b == "controls/shuffled_images"), None)
    if row is None:
        return ""
    name, shuffled_accuracy = summary.controlled_system, percent((summary.controls or {})["shuffled_images"].vqa_accuracy)
    if row.verdict == "a":
        return f" {name} uses the images: with shuffled images its accuracy drops to {shuffled_accuracy} %."
    return f" {name} is not shown to use the images: with shuffled images its accuracy is {shuffled_accuracy} %."


def _curve_sentence(summary: Summary, curve: dict[str, int]) -> str:
    """Accuracy of the first and the last checkpoint of a learning curve, and the verdict."""
    steps = sorted(curve.items(), key=lambda item: item[1])
    (first, early), (last, late) = steps[0], steps[-1]
    choices = [summary.systems[name].choices for name in (first, last)]
    choice = displayed_choice(choices[1])
    values = [percent(by_choice[choice].vqa_accuracy) for by_choice in choices]
    row = _find_comparison(summary, f"{last}/{choice}", f"{first}/{choice}")
    outcome = "not compared with" if row is None else _outcome(row, "not shown to differ from")
    return (
        f"From step {early:,} to step {late:,} accuracy goes from {values[0]} to {values[1]} %; the last checkpoint is {outcome} the first."
    ) + _form_sentence(row)


def sentences(summary: Summary) -> list[str]:
    """One sentence per difference that is shown, and per pair without any; then the number of differences that are not shown;
    the same of boxes."""
    lines = []
    equal = [row for row in summary.comparisons if row.differing_questions == 0]
    shown = [row for row in summary.comparisons if row.verdict != "not shown"]
    for row in shown:
        better, worse = (row.a, row.b) if row.verdict == "a" else (row.b, row.a)
        ends = sorted(100 * abs(end) for end in row.ci95)
        lines.append(
            f"{better} is better than {worse} by {100 * abs(row.difference):.1f} points (interval {ends[0]:.1f} to {ends[1]:.1f})."
            + _form_sentence(row)
        )
    lines += [f"{row.a} and {row.b} are equal: they have the same score on every question." for row in equal]
    inconclusive = len(summary.comparisons) - len(shown) - len(equal)
    if inconclusive:
        what = "No difference is" if not lines else f"{inconclusive} other difference{'s are' if inconclusive > 1 else ' is'} not"
        lines.append(f"{what} shown: with this many questions, chance alone could explain {'them' if inconclusive > 1 else 'it'}.")
    if summary.systems and _displayed_accuracies(summary) and (boxes := box_headline(summary)):
        lines.append(boxes)
    return lines + box_sentences(summary)


def _join_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
