"""The figures of summary.json in words and aligned columns, for a terminal and for report.md."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from answering.rerank.candidate_scores import CORRECTED_SUFFIX
from answering.rerank.choose_answer import displayed_choice
from evaluation.report import rerank_tables

CHOICE_DESCRIPTIONS = {
    "first": "the likeliest candidate",
    "majority": "the candidate said most often",
    "likelihood": "the highest probability a token",
    "self": "the candidate that the system itself finds most right",
    "reranked": "likelihood and picture fit together",
    "learned": "what the validation split taught of all signals",
    "abstaining": '"not sure" where the reranked answer is not credible',
    "random": "a candidate drawn at random; a floor, no method",
    "oracle": "the best candidate by the references; a ceiling, no method",
}

OTHER_METRICS = (
    ("vqa_accuracy_m4c", "M4C"),
    ("exact", "exact"),
    ("fuzzy", "fuzzy"),
    ("contains", "contains"),
    ("bidirectional", "contains, both ways"),
    ("anls", "ANLS"),
)
"""Metrics beside the official accuracy, and their headings."""

Row = Sequence[str]


def render_tables(summary: dict[str, Any]) -> str:
    """Everything, for a terminal."""
    parts = [summary["note"]] if "note" in summary else []
    parts += [align_columns(*table) for table in all_tables(summary).values()]
    return "\n\n".join([*parts, "\n".join(remarks(summary))])


def all_tables(summary: dict[str, Any]) -> dict[str, tuple[Row, list[Row]]]:
    """Title -> header and rows of every table that has rows."""
    by_title = {"On how many questions a choice among candidates can change anything": rerank_tables.can_change_table(summary)}
    by_title["All figures"] = accuracy_table(summary)
    if "groups" in summary:
        by_title["Mean and spread over seeds"] = group_table(summary)
    if any(results["choices"] for results in summary["systems"].values()):
        by_title["By category, language and source"] = category_table(summary)
    if "thresholds" in summary:
        by_title["What must hold"] = threshold_table(summary)
    by_title["Comparisons"] = comparison_table(summary)
    by_title["Can an answer be trusted?"] = rerank_tables.confidence_table(summary)
    by_title["What the validation split said of the rerank"] = rerank_tables.validation_table(summary)
    by_title["Captions and descriptions"] = caption_table(summary)
    by_title["Unanswerable questions"] = unanswerable_table(summary)
    by_title["The same answers written otherwise"] = format_table(summary)
    by_title["Worse pictures"] = robustness_table(summary)
    return {title: table for title, table in by_title.items() if table[1]}


def choice_description(choice: str) -> str:
    """What a choice takes, in a few words; other names than the known ones are picture scorers."""
    if choice in CHOICE_DESCRIPTIONS:
        return CHOICE_DESCRIPTIONS[choice]
    scorer = choice.removesuffix(CORRECTED_SUFFIX)
    return f"the best fit to the picture by {scorer}" + ("" if scorer == choice else ", less its fit to any picture")


def align_columns(header: Row, rows: Iterable[Row]) -> str:
    """Columns aligned by what they show: a Chinese character takes two places."""
    lines = [header, *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(header))]
    rendered = ["  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rendered[0], "-" * max(map(_width, rendered)), *rendered[1:]])


def markdown(header: Row, rows: Iterable[Row]) -> str:
    """The same as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def accuracy_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """A row for each system and choice, then the controls."""
    header = ("system", "choice", "questions", "VQA accuracy", "95 % interval", *(label for _, label in OTHER_METRICS))
    rows: list[Row] = [
        _accuracy_row(name, choice, results["choices"][choice])
        for name, results in summary["systems"].items()
        for choice in results["choices"]
    ]
    return header, rows + [_accuracy_row(name, "control", measures) for name, measures in summary.get("controls", {}).items()]


def _accuracy_row(name: str, choice: str, measures: dict[str, Any]) -> Row:
    others = (percent(measures[metric]) for metric, _ in OTHER_METRICS)
    interval = format_interval(measures["vqa_accuracy_ci95"])
    return (name, choice, f"{measures['questions']:,}", percent(measures["vqa_accuracy"]), interval, *others)


def category_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Accuracy by category, language and source of each system's best-informed honest choice: reranked, else first."""
    shown = {name: displayed_choice(results["choices"]) for name, results in summary["systems"].items() if results["choices"]}
    header = ("VQA accuracy by", "questions", *(f"{name}/{choice}" for name, choice in shown.items()))
    measures = [summary["systems"][name]["choices"][choice] for name, choice in shown.items()]
    rows: list[Row] = []
    for group in ("by_category", "by_language", "by_source"):
        for label, part in measures[0][group].items():
            rows.append((label, f"{part['questions']:,}", *(percent(m[group][label]["vqa_accuracy"]) for m in measures)))
    return header, rows


def caption_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Captions and descriptions, which short-answer metrics say nothing about: before and after the rerank."""
    header = ("system", "choice", "captions", "texts", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CLIPScore")
    rows: list[Row] = [
        (
            name,
            choice,
            kind,
            f"{scores['questions']:,}",
            *(percent(scores[f"bleu_{n}"]) for n in range(1, 5)),
            percent(scores["rouge_l"]),
            f"{scores['cider_d']:.2f}",
            f"{scores['clip_score']:.3f}" if "clip_score" in scores else "",
        )
        for name, results in summary["systems"].items()
        for choice, kinds in results.get("captions", {}).items()
        if choice in ("first", "reranked")
        for kind, scores in kinds.items()
    ]
    return header, rows


def comparison_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Every comparison with its verdict."""
    tested = ("a - b (points)", "95 % interval", "p", "p (Holm)", "better")
    header = ("a", "b", *tested, "could show", "exact: only a / only b", "McNemar p (Holm)")
    rows: list[Row] = [
        (
            row["a"],
            row["b"],
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['ci95'][0]:+.1f} .. {100 * row['ci95'][1]:+.1f}",
            f"{row['p_value']:.4f}",
            f"{row['p_holm']:.4f}",
            {"a": row["a"], "b": row["b"]}.get(row["verdict"], "not shown"),
            f"{100 * row['smallest_shown']:.1f}" if "smallest_shown" in row else "nothing",
            *_mcnemar_cells(row),
        )
        for row in summary["comparisons"]
    ]
    return header, rows


def _mcnemar_cells(row: dict[str, Any]) -> Row:
    if "mcnemar" not in row:
        return "", ""
    test = row["mcnemar"]
    return f"{test['only_a']:,} / {test['only_b']:,}", f"{test['p_holm']:.4f}"


def group_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Several seeds of one configuration: mean and spread of official accuracy."""
    header = ("group", "choice", "systems", "VQA accuracy", "standard deviation", "lowest .. highest", "M4C")
    rows: list[Row] = [
        (
            name,
            choice,
            str(len(group["systems"])),
            percent(scores["vqa_accuracy"]["mean"]),
            f"{100 * scores['vqa_accuracy']['sd']:.2f}",
            format_interval([scores["vqa_accuracy"]["lowest"], scores["vqa_accuracy"]["highest"]]),
            percent(scores["vqa_accuracy_m4c"]["mean"]),
        )
        for name, group in summary["groups"].items()
        for choice, scores in group["choices"].items()
    ]
    return header, rows


def format_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """The same answers written otherwise: points that the form alone moves."""
    header = ("system", "choice", "written", "VQA accuracy", "change", "M4C", "change", "exact", "change")
    rows: list[Row] = []
    for name, results in summary["systems"].items():
        for choice, forms in results.get("format_sensitivity", {}).items():
            plain = results["choices"][choice]
            for form, label in (("capitalised", "capitalised"), ("full_stop", "with a full stop")):
                cells = [(percent(value), f"{100 * (value - plain[metric]):+.1f}") for metric, value in forms[form].items()]
                rows.append((name, choice, label, *(cell for pair in cells for cell in pair)))
    return header, rows


def unanswerable_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """How well each system tells the questions that nobody can answer."""
    rows: list[Row] = [
        (name, f"{values['questions']:,}", percent(values["average_precision"]), percent(values["f1"]))
        for name, results in summary["systems"].items()
        if (values := results.get("unanswerable")) is not None
    ]
    return ("system", "unanswerable questions", "average precision", "F1"), rows


def robustness_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Accuracy on worse and worse pictures, with the difference to the clean ones."""
    rows: list[Row] = [
        (
            name,
            kind,
            str(point["strength"]),
            f"{robust['questions']:,}",
            percent(point["vqa_accuracy"]),
            format_interval(point["vqa_accuracy_ci95"]),
            f"{100 * (point['vqa_accuracy'] - robust['clean']['vqa_accuracy']):+.1f}",
        )
        for name, robust in summary.get("robustness", {}).items()
        for kind, points in robust["corrupted"].items()
        for point in points
    ]
    return ("system", "pictures", "strength", "questions", "VQA accuracy", "95 % interval", "against clean"), rows


def threshold_table(summary: dict[str, Any]) -> tuple[Row, list[Row]]:
    """What had to hold, and whether it does."""
    rows: list[Row] = [
        (
            threshold["what"],
            percent(threshold["value"]),
            f"{threshold['kind']} {percent(threshold['limit'])}",
            "yes" if threshold["met"] else "NO",
        )
        for threshold in summary["thresholds"]
    ]
    return ("must hold", "VQA accuracy", "bar", "met"), rows


def remarks(summary: dict[str, Any]) -> list[str]:
    """What must be said besides the figures: failed questions, speed, what may be compared, where weights come from."""
    data = summary["dataset"]
    lines = [f"{data['questions']:,} questions about {data['images']:,} pictures ({data['name']}, split {data['split']})."]
    for name, results in summary["systems"].items():
        speed = f", {results['questions_per_second']:.1f} questions/s" if "questions_per_second" in results else ""
        lines.append(f"{name}: {describe_system(results)}.")
        if "without_cuda_graphs" in results:
            lines.append(f"{name}: decoding went on without CUDA graphs, slower: {results['without_cuda_graphs']}.")
        lines.append(
            f"{name}: {results['distinct_candidates']:.1f} distinct candidates a question{speed}; {_failure_count(results['errors'])}."
        )
    lines += rerank_tables.remarks(summary)
    lines.append("random is a floor and oracle a ceiling that looks at the references; neither is a method.")
    lines.append("Intervals: 95 % bootstrap over pictures. p: randomisation test, the sign of each picture's difference drawn anew.")
    lines.append("A difference is shown only when its interval leaves 0 out and p (Holm, over all comparisons) is at most .05.")
    lines.append(
        "could show: the difference in points that this many pictures would show in four cases of five; a smaller one may be "
        "there unseen. McNemar: exact test of exact matches, which takes every question for a draw of its own."
    )
    if summary.get("curve"):
        lines.append("The best point of a learning curve is picked after the fact: pick it on the validation split, report the test split.")
    if "groups" in summary:
        lines.append("A group is compared by each question's mean over its seeds; intervals cover questions, the spread covers seeds.")
    return lines


def describe_system(results: dict[str, Any]) -> str:
    """What a system is and how it was asked: kind, path, quantisation, decoding, what was put behind short questions."""
    model, decoding = results["model"], results["decoding"]
    parts = [" ".join(str(part) for part in (results["kind"], model.get("path")) if part is not None)]
    if "quantization" in model:
        parts.append(f"quantization {model['quantization']}")
    parts.append(f"{decoding['mode']} with k = {decoding['k']}, at most {decoding['max_new_tokens']} tokens")
    suffixes = [model[key] for key in ("short_answer_prompt", "short_answer_prompt_zh") if model.get(key)]
    parts.append("short questions end in " + " or ".join(f'"{suffix}"' for suffix in suffixes) if suffixes else "bare questions")
    return ", ".join(parts)


def _failure_count(errors: int) -> str:
    if errors == 0:
        return "no question failed"
    message = "1 question failed and counts as wrong" if errors == 1 else f"{errors:,} questions failed and count as wrong"
    return f"{message} (the predictions file says why)"


def percent(value: float) -> str:
    """A fraction as points of a hundred."""
    return f"{100 * value:.1f}"


def format_interval(interval: Sequence[float]) -> str:
    """An interval of fractions."""
    return f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
