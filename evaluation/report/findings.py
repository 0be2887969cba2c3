"""The findings of an evaluation as sentences."""

from typing import Any

from answering.rerank.choose_answer import displayed_choice
from evaluation.metrics.short_answers import PRIMARY_METRIC
from evaluation.report.result_tables import format_interval, percent

POOR_ACCURACY = 0.10
"""VQA accuracy below which the headline says that a system cannot do the task."""


def headline(summary: dict[str, Any]) -> str:
    """Summary of the report in one to three sentences; empty if there are no short questions."""
    scored = _displayed_results(summary)
    if not scored:
        return ""
    if "curve" in summary:
        return _curve_sentence(summary)
    top = max(scored, key=lambda name: scored[name][PRIMARY_METRIC])
    questions = f"{summary['dataset']['by_task'].get('vqa', summary['dataset']['questions']):,} questions"
    interval = f" ({format_interval(scored[top][f'{PRIMARY_METRIC}_ci95'])})" if f"{PRIMARY_METRIC}_ci95" in scored[top] else ""
    parts = [f"{_display_name(summary, top)} answers {percent(scored[top][PRIMARY_METRIC])} % of {questions} right{interval}"]
    if scored[top][PRIMARY_METRIC] < POOR_ACCURACY:
        parts.append("which is poor: nothing here can do this task yet")
    if others := [name for name in scored if name != top]:
        parts.append(_comparison_clause(summary, top, others))
    return ", ".join(parts) + "." + _rerank_sentence(summary, top) + _image_use_sentence(summary, top)


def _displayed_results(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of each system's displayed choice; a group of seeds replaces its members."""
    groups = summary.get("groups", {})
    grouped = {member for group in groups.values() for member in group["systems"]}
    displayed = {
        name: results["choices"][displayed_choice(results["choices"])]
        for name, results in summary["systems"].items()
        if results["choices"] and name not in grouped
    }
    for name, group in groups.items():
        if group["choices"]:
            displayed[name] = {PRIMARY_METRIC: group["choices"][displayed_choice(group["choices"])][PRIMARY_METRIC]["mean"]}
    return displayed


def _display_name(summary: dict[str, Any], name: str) -> str:
    """Name of a system, or of a group with its number of seeds."""
    group = summary.get("groups", {}).get(name)
    return name if group is None else f"{name} (mean of {len(group['systems'])} seeds)"


def _find_comparison(summary: dict[str, Any], a: str, b: str) -> dict[str, Any] | None:
    """The row that compares a with b, with sign and verdict swapped if it is stored as b with a; None if there is none."""
    for row in summary["comparisons"]:
        if (row["a"], row["b"]) == (a, b):
            return dict(row)
        if (row["a"], row["b"]) == (b, a):
            swapped = {"a": "b", "b": "a"}.get(row["verdict"], row["verdict"])
            return {**row, "a": a, "b": b, "difference": -row["difference"], "verdict": swapped}
    return None


def _comparison_clause(summary: dict[str, Any], top: str, others: list[str]) -> str:
    """Whether the best system is shown to be better than each other one, compared in reranked if possible, else in first."""
    shown: list[str] = []
    inconclusive: list[str] = []
    for other in others:
        rows = [_find_comparison(summary, f"{top}/{choice}", f"{other}/{choice}") for choice in ("reranked", "first")]
        row = next((row for row in rows if row is not None), None)
        (shown if row is not None and row["verdict"] == "a" else inconclusive).append(other)
    clauses = [f"shown to be better than {_join_names(shown)}"] if shown else []
    clauses += [f"not shown to be better than {_join_names(inconclusive)}"] if inconclusive else []
    return " but ".join(clauses)


def _rerank_sentence(summary: dict[str, Any], top: str) -> str:
    """Effect of reranking on the best system; empty without reranking."""
    row = _find_comparison(summary, f"{top}/reranked", f"{top}/first")
    if row is None:
        return ""
    points = f"{100 * row['difference']:+.1f} points, p = {row['p_holm']:.3f} after Holm"
    effect = {"a": "Reranking helps it", "b": "Reranking hurts it"}.get(row["verdict"], "Reranking is not shown to help or hurt it")
    return f" {effect} ({points})."


def _image_use_sentence(summary: dict[str, Any], top: str) -> str:
    """Whether the best system uses the images, by the control run with shuffled images; empty without that run."""
    row = _find_comparison(summary, f"{top}/first", "controls/shuffled_images")
    if row is None:
        return ""
    shuffled_accuracy = percent(summary["controls"]["shuffled_images"][PRIMARY_METRIC])
    if row["verdict"] == "a":
        return f" It uses the images: with shuffled images its accuracy drops to {shuffled_accuracy} %."
    return f" It is not shown to use the images: with shuffled images its accuracy is {shuffled_accuracy} %."


def _curve_sentence(summary: dict[str, Any]) -> str:
    """Accuracy of the first and the last checkpoint of a learning curve, and the verdict."""
    steps = sorted(summary["curve"].items(), key=lambda item: item[1])
    (first, early), (last, late) = steps[0], steps[-1]
    choices = [summary["systems"][name]["choices"] for name in (first, last)]
    choice = displayed_choice(choices[1])
    values = [percent(by_choice[choice][PRIMARY_METRIC]) for by_choice in choices]
    row = _find_comparison(summary, f"{last}/{choice}", f"{first}/{choice}")
    outcome = {"a": "shown to be better than", "b": "shown to be worse than"}.get(
        "" if row is None else row["verdict"], "not shown to differ from"
    )
    return (
        f"From step {early:,} to step {late:,} accuracy goes from {values[0]} to {values[1]} %; the last checkpoint is {outcome} the first."
    )


def sentences(summary: dict[str, Any]) -> list[str]:
    """One sentence per difference that is shown, then the number of differences that are not."""
    lines = []
    for row in summary["comparisons"]:
        if row["verdict"] == "not shown":
            continue
        better, worse = (row["a"], row["b"]) if row["verdict"] == "a" else (row["b"], row["a"])
        ends = sorted(100 * abs(end) for end in row["ci95"])
        lines.append(
            f"{better} is better than {worse} by {100 * abs(row['difference']):.1f} points (interval {ends[0]:.1f} to {ends[1]:.1f})."
        )
    inconclusive = len(summary["comparisons"]) - len(lines)
    if inconclusive:
        what = "No difference is" if not lines else f"{inconclusive} other difference{'s are' if inconclusive > 1 else ' is'} not"
        lines.append(f"{what} shown: with this many questions, chance alone could explain {'them' if inconclusive > 1 else 'it'}.")
    return lines


def _join_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
