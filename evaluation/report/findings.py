"""What was found, in sentences."""

from typing import Any

from answering.rerank.choose_answer import shown_choice
from evaluation.metrics.short_answers import METRIC
from evaluation.report.result_tables import between, percent

POOR = 0.10
"""An official accuracy below which a system is said not to be able to do the task."""


def headline(summary: dict[str, Any]) -> str:
    """One or two sentences for somebody who reads nothing else; empty where no short question was asked."""
    scored = _scored(summary)
    if not scored:
        return ""
    if "curve" in summary:
        return _curve(summary)
    top = max(scored, key=lambda name: scored[name][METRIC])
    questions = f"{summary['dataset']['by_task'].get('vqa', summary['dataset']['questions']):,} questions"
    interval = f" ({between(scored[top][f'{METRIC}_ci95'])})" if f"{METRIC}_ci95" in scored[top] else ""
    parts = [f"{_named(summary, top)} answers {percent(scored[top][METRIC])} % of {questions} right{interval}"]
    if scored[top][METRIC] < POOR:
        parts.append("which is poor: nothing here can do this task yet")
    if others := [name for name in scored if name != top]:
        parts.append(_against(summary, top, others))
    return ", ".join(parts) + "." + _reranking(summary, top) + _looking(summary, top)


def _scored(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of the choice that stands for each system; a group of seeds in the place of its members."""
    groups = summary.get("groups", {})
    grouped = {member for group in groups.values() for member in group["systems"]}
    found = {
        name: figures["choices"][shown_choice(figures["choices"])]
        for name, figures in summary["systems"].items()
        if figures["choices"] and name not in grouped
    }
    for name, group in groups.items():
        if group["choices"]:
            found[name] = {METRIC: group["choices"][shown_choice(group["choices"])][METRIC]["mean"]}
    return found


def _named(summary: dict[str, Any], name: str) -> str:
    group = summary.get("groups", {}).get(name)
    return name if group is None else f"{name} (mean of {len(group['systems'])} seeds)"


def _row(summary: dict[str, Any], a: str, b: str) -> dict[str, Any] | None:
    """The comparison of a with b, its signs turned where it stands the other way round."""
    for row in summary["comparisons"]:
        if (row["a"], row["b"]) == (a, b):
            return dict(row)
        if (row["a"], row["b"]) == (b, a):
            turned = {"a": "b", "b": "a"}.get(row["verdict"], row["verdict"])
            return {**row, "a": a, "b": b, "difference": -row["difference"], "verdict": turned}
    return None


def _against(summary: dict[str, Any], top: str, others: list[str]) -> str:
    """What is shown of the best against each other system, in the choice that stands for both."""
    shown: list[str] = []
    open_: list[str] = []
    for other in others:
        rows = [_row(summary, f"{top}/{choice}", f"{other}/{choice}") for choice in ("reranked", "first")]
        row = next((row for row in rows if row is not None), None)
        (shown if row is not None and row["verdict"] == "a" else open_).append(other)
    said = [f"shown to be better than {_list(shown)}"] if shown else []
    said += [f"not shown to be better than {_list(open_)}"] if open_ else []
    return " but ".join(said)


def _reranking(summary: dict[str, Any], top: str) -> str:
    row = _row(summary, f"{top}/reranked", f"{top}/first")
    if row is None:
        return ""
    points = f"{100 * row['difference']:+.1f} points, p = {row['p_holm']:.3f} after Holm"
    effect = {"a": "Reranking helps it", "b": "Reranking hurts it"}.get(row["verdict"], "Reranking is shown neither to help nor to hurt it")
    return f" {effect} ({points})."


def _looking(summary: dict[str, Any], top: str) -> str:
    row = _row(summary, f"{top}/first", "controls/shuffled_pictures")
    if row is None:
        return ""
    with_others = percent(summary["controls"]["shuffled_pictures"][METRIC])
    if row["verdict"] == "a":
        return f" It looks at the pictures: with other pictures it falls to {with_others} %."
    return f" It is not shown to look at the pictures: with other pictures it has {with_others} %."


def _curve(summary: dict[str, Any]) -> str:
    steps = sorted(summary["curve"].items(), key=lambda item: item[1])
    (first, early), (last, late) = steps[0], steps[-1]
    choices = [summary["systems"][name]["choices"] for name in (first, last)]
    choice = shown_choice(choices[1])
    values = [percent(own[choice][METRIC]) for own in choices]
    row = _row(summary, f"{last}/{choice}", f"{first}/{choice}")
    known = {"a": "shown to be better than", "b": "shown to be worse than"}.get(
        "" if row is None else row["verdict"], "not shown to differ from"
    )
    return (
        f"From step {early:,} to step {late:,} accuracy goes from {values[0]} to {values[1]} %; the last checkpoint is {known} the first."
    )


def sentences(summary: dict[str, Any]) -> list[str]:
    """Every difference that is shown, then how many are not."""
    found = []
    for row in summary["comparisons"]:
        if row["verdict"] == "not shown":
            continue
        better, worse = (row["a"], row["b"]) if row["verdict"] == "a" else (row["b"], row["a"])
        ends = sorted(100 * abs(end) for end in row["ci95"])
        found.append(f"{better} is better than {worse} by {100 * abs(row['difference']):.1f} points ({ends[0]:.1f} to {ends[1]:.1f}).")
    open_ = len(summary["comparisons"]) - len(found)
    if open_:
        what = "No difference is" if not found else f"{open_} other difference{'s are' if open_ > 1 else ' is'} not"
        found.append(f"{what} shown: with this many questions, chance alone could have made {'them' if open_ > 1 else 'it'}.")
    return found


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
