"""The report: complete, safe against texts of users, self-contained."""

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import font_manager
from PIL import Image

from answering.drawing import chinese_font
from evaluation import charts
from evaluation.examples import RIGHT, examples, selection
from evaluation.report import sentences, write_report
from evaluation.run import evaluate
from evaluation.tables import OTHER_METRICS
from tests.evaluation.conftest import MARKUP, Written
from tests.evaluation.planted import PlantedAnswerer, always, experiment, questions, write_store


class Page(HTMLParser):
    """Collects tags with their attributes, the visible text, and the cells of each table row."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data.strip()

    def attributes(self, name: str) -> list[str]:
        """Values of an attribute over all tags."""
        return [value or "" for _, attributes in self.tags for key, value in attributes.items() if key == name]


@pytest.fixture(scope="module")
def page(written: Written) -> Page:
    return Page(written.page.read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_outside_itself(written: Written, page: Page) -> None:
    source = written.page.read_text(encoding="utf-8")
    for name in ("src", "href", "srcset", "action", "data", "poster"):
        assert all(value.startswith("data:image/") for value in page.attributes(name)), name
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", source)
    # The only address in the page is the escaped one of the question.
    assert source.count("http") == source.count("http-equiv") + source.count("http://example.com/x.js")
    policy = next(attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_texts_of_users_stay_text(page: Page) -> None:
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert MARKUP in page.text


def test_every_question_stands_with_picture_candidates_and_scores(page: Page) -> None:
    cards = [attributes for tag, attributes in page.tags if tag == "article"]
    assert len(cards) == 24
    assert {card["data-language"] for card in cards} == {"en", "zh"}
    assert len(page.attributes("src")) == 24
    blocks = [attributes for _, attributes in page.tags if "data-status" in attributes]
    assert len(blocks) == 24 * 2
    seen = {status for block in blocks for status in (block["data-status"] or "").split()}
    assert seen == {"right", "wrong", "changed", "fixed", "broken", "failed"}
    assert "圆形是什么颜色的？" in page.text
    assert "first said: gray" in page.text


def test_every_number_in_the_tables_is_the_one_of_the_summary(written: Written, page: Page) -> None:
    summary = json.loads((written.page.parent / "summary.json").read_text(encoding="utf-8"))
    rows = {tuple(row[:2]): row[2:] for row in reversed(page.rows)}  # captions stand in a later table
    for name, system in summary["systems"].items():
        for choice, measures in system["choices"].items():
            low, high = measures["vqa_accuracy_ci95"]
            figures = [measures[metric] for metric, _ in OTHER_METRICS]
            points = [f"{100 * figure:.1f}" for figure in (measures["vqa_accuracy"], low, high, *figures)]
            assert rows[name, choice] == [str(measures["questions"]), points[0], f"{points[1]} .. {points[2]}", *points[3:]]
    assert summary["comparisons"]
    for row in summary["comparisons"]:
        shown = rows[row["a"], row["b"]]
        assert shown[0] == f"{100 * row['difference']:+.1f}"
        assert shown[1] == f"{100 * row['ci95'][0]:+.1f} .. {100 * row['ci95'][1]:+.1f}"
        assert shown[2:4] == [f"{row['p_value']:.4f}", f"{row['p_holm']:.4f}"]
        assert shown[4] == {"a": row["a"], "b": row["b"]}.get(row["verdict"], "not shown")


def test_how_the_figures_came_about_is_said(page: Page) -> None:
    for said in (
        "bootstrap over pictures",
        "randomisation test",
        "Rerank weights (as configured)",
        "counts as wrong",
        "no question failed",
    ):
        assert said in page.text, said


def test_filters_name_what_there_is(page: Page) -> None:
    controls = {attributes.get("id") for tag, attributes in page.tags if tag in ("select", "input")}
    assert controls == {"search", "status", "system", "category", "language"}
    assert all(name in page.text for name in ("careful", "dull", "counting", "attribute"))


def test_the_markdown_report_holds_the_tables_and_names_the_charts(written: Written) -> None:
    text = (written.page.parent / "report.md").read_text(encoding="utf-8")
    assert "| careful | reranked |" in text
    assert "| careful/reranked | careful/first |" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (written.page.parent / name).is_file()
    assert "1 question failed and counts as wrong" in text


def test_the_charts_are_pictures_with_something_in_them(written: Written) -> None:
    for name in ("accuracy_by_category.png", "rerank.png", "cases.png"):
        with Image.open(written.page.parent / name) as picture:
            assert picture.width > 500
            colors = picture.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colors is not None
            assert len(colors) > 50, name


def test_examples_take_turns_between_changed_wrong_and_right(written: Written) -> None:
    every = examples(written.outcome)
    assert len(every) == 25
    shown = selection(every, 9)
    assert any("changed" in answer.statuses for answer in shown[0].answers)
    assert not all(answer.right for answer in shown[1].answers)
    assert len(selection(every, 1000)) == 25
    assert all(answer.right == (answer.accuracy >= RIGHT) for example in shown for answer in example.answers)


def test_what_is_shown_is_said_in_words() -> None:
    def row(verdict: str) -> dict[str, object]:
        return {"a": "new/first", "b": "old/first", "difference": -0.05, "ci95": [-0.08, -0.02], "verdict": verdict}

    assert sentences({"comparisons": [row("b")]}) == ["old/first is better than new/first by 5.0 points (2.0 to 8.0)."]
    assert sentences({"comparisons": [row("not shown")]})[0].startswith("No difference is shown")
    assert sentences({"comparisons": [row("b"), row("not shown")]})[1].startswith("1 other difference is not shown")
    assert sentences({"comparisons": []}) == []


def test_a_missing_chinese_font_is_said_once_and_stops_nothing(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(charts, "chinese_font", lambda: None)
    with caplog.at_level(logging.WARNING):
        paths = charts.write_charts(written.outcome.summary, examples(written.outcome), written.planned.store, tmp_path)
    assert len(paths) == 3
    assert [record.message for record in caplog.records if "Chinese" in record.message] == [caplog.records[0].message]


def test_charts_write_in_the_chinese_font_that_was_chosen() -> None:
    font = chinese_font()
    if font is None:
        pytest.skip("no font with Chinese characters is installed")
    found = font_manager.findfont(charts._family(font), fallback_to_default=False)
    assert font_manager.get_font(found).get_char_index(ord("图"))


def test_long_texts_are_broken_by_what_they_take_up() -> None:
    assert charts.wrapped("one two three", 8, 2) == "one two\nthree"
    assert charts.wrapped("红色的圆形", 6, 2) == "红色的\n圆形"
    assert charts.wrapped("a b c d e f", 2, 2) == "a\nb ..."


def test_a_report_without_short_answers_or_rerank_is_written_too(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [row for row in questions(2) if row["task"] == "caption"])
    planned = experiment(store, tmp_path / "out")
    outcome = evaluate(planned, lambda _: PlantedAnswerer(always(("a red disc on white", -0.1))), lambda _: pytest.fail("no control"), None)
    text = write_report(outcome, planned).read_text(encoding="utf-8")
    assert "Captions and descriptions" in text
    assert "<article" not in text


def test_a_picture_that_has_gone_leaves_the_report_whole(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    planned = experiment(store, tmp_path / "out")
    outcome = evaluate(planned, lambda _: PlantedAnswerer(always(("red", -0.1))), lambda _: pytest.fail("no control"), None)
    (tmp_path / "data" / "1.png").unlink()
    assert "can no longer be read" in write_report(outcome, planned).read_text(encoding="utf-8")
