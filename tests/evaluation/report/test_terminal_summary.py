"""What `eval_rerank` prints at the end: at most 25 lines of 100 columns."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.report.terminal_summary import terminal_summary
from evaluation.schema.answer_figures import CaptionFigures
from evaluation.schema.summary_file import Summary, ThresholdFigures
from tests.evaluation.conftest import Written

REPORT = Path("results/toy/report.html")


@pytest.fixture
def summary(written: Written) -> Summary:
    return written.evaluation_result.summary


def fits(text: str) -> bool:
    return len(text.splitlines()) <= 25 and max(map(len, text.splitlines())) <= 100


def test_the_finding_one_table_and_the_places_of_the_rest_are_printed(summary: Summary) -> None:
    text = terminal_summary(summary, REPORT)
    assert fits(text)
    lines = text.splitlines()
    assert " answers " in lines[0] and lines[-1] == "report: results/toy/report.html"
    for name, results in summary.systems.items():
        assert any(line.startswith(name) and f"{100 * results.choices['first'].vqa_accuracy:.1f}" in line for line in lines)
    assert any(line.startswith("shuffled_images  ") for line in lines)
    assert "failed and count" in text


def test_many_systems_with_long_names_still_fit(summary: Summary) -> None:
    one = next(iter(summary.systems.values()))
    systems = summary.systems | {f"system-{number}-{'x' * 60}": one for number in range(30)}
    missed = ThresholdFigures("first", "ours, first candidate " * 20, 0.1, "at least", 0.2, False)
    summary = replace(summary, systems=systems, note="A note. " * 60, thresholds=[missed])
    text = terminal_summary(summary, REPORT)
    assert fits(text)
    assert "more rows: results/toy/report.md" in text and "thresholds missed: ours, first candidate" in text


def test_without_short_questions_captions_are_shown(summary: Summary) -> None:
    captions = {"first": {"caption en": CaptionFigures(3, 0.5, 0.5, 0.5, 0.5, 0.25, 1.5)}}
    systems = {name: replace(results, choices={}, captions=captions) for name, results in summary.systems.items()}
    text = terminal_summary(replace(summary, systems=systems, controls=None, comparisons=[]), REPORT)
    assert fits(text) and "CIDEr-D" in text and "1.50" in text
