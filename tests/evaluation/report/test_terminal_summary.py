"""What `eval_rerank` prints at the end: at most 25 lines of 100 columns."""

import copy
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.terminal_summary import terminal_summary
from tests.evaluation.conftest import Written

REPORT = Path("results/toy/report.html")


@pytest.fixture
def summary(written: Written) -> dict[str, Any]:
    return copy.deepcopy(written.evaluation_result.summary)


def fits(text: str) -> bool:
    return len(text.splitlines()) <= 25 and max(map(len, text.splitlines())) <= 100


def test_the_finding_one_table_and_the_places_of_the_rest_are_printed(summary: dict[str, Any]) -> None:
    text = terminal_summary(summary, REPORT)
    assert fits(text)
    lines = text.splitlines()
    assert " answers " in lines[0] and lines[-1] == "report: results/toy/report.html"
    for name, results in summary["systems"].items():
        assert any(line.startswith(name) and f"{100 * results['choices']['first']['vqa_accuracy']:.1f}" in line for line in lines)
    assert any(line.startswith("shuffled_images  ") for line in lines)
    assert "failed and count" in text


def test_many_systems_with_long_names_still_fit(summary: dict[str, Any]) -> None:
    one = next(iter(summary["systems"].values()))
    summary["systems"] |= {f"system-{number}-{'x' * 60}": one for number in range(30)}
    summary["note"] = "A note. " * 60
    summary["thresholds"] = [{"what": "ours, first candidate " * 20, "met": False}]
    text = terminal_summary(summary, REPORT)
    assert fits(text)
    assert "more rows: results/toy/report.md" in text and "thresholds missed: ours, first candidate" in text


def test_without_short_questions_captions_are_shown(summary: dict[str, Any]) -> None:
    metrics = {"questions": 3, **{f"bleu_{n}": 0.5 for n in range(1, 5)}, "rouge_l": 0.25, "cider_d": 1.5}
    for results in summary["systems"].values():
        results["choices"], results["captions"] = {}, {"first": {"caption en": metrics}}
    summary["controls"], summary["comparisons"] = {}, []
    text = terminal_summary(summary, REPORT)
    assert fits(text) and "CIDEr-D" in text and "1.50" in text
