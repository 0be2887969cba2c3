"""The report: complete, self-contained, and safe against markup in questions and answers."""

import json
import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib import font_manager
from PIL import Image

from answering import rendering
from answering.rendering import chinese_font
from evaluation.report import chart_style, report_notes
from evaluation.report.charts import CAPTIONS, write_charts
from evaluation.report.examples import RIGHT, examples, select_examples
from evaluation.report.image_grids import wrap_text
from evaluation.report.result_tables import OTHER_METRICS
from evaluation.report.terminal_summary import terminal_summary
from evaluation.report.write_report import HTML_CHARTS, write_report
from tests.evaluation.conftest import MARKUP, Written
from tests.evaluation.fakes import evaluate, experiment, questions, sample, write_store
from tests.fakes import FakeAnswerer, always

CHARTS = [
    "overview.png",
    "rerank.png",
    "rerank_by_category.png",
    "accuracy_by_category.png",
    "fused_calibration.png",
    "right_cases.png",
    "wrong_cases.png",
]


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


def test_the_page_loads_nothing_from_elsewhere(written: Written, page: Page) -> None:
    source = written.page.read_text(encoding="utf-8")
    for name in ("src", "href", "srcset", "action", "data", "poster"):
        assert all(value.startswith(("data:image/jpeg", "#")) for value in page.attributes(name)), name
    targets = page.attributes("id")
    assert len(targets) == len(set(targets)), "two charts share an id"
    assert {value.removeprefix("#") for value in page.attributes("href")} <= set(targets)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|WebSocket", source)
    # The only address in the page is the escaped one in the question.
    assert source.count("http") == source.count("http-equiv") + source.count("http://example.com/x.js")
    policy = next(attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_markup_in_questions_and_answers_is_escaped(page: Page) -> None:
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert MARKUP in page.text


def test_every_question_has_its_image_candidates_and_scores(page: Page) -> None:
    cards = [attributes for tag, attributes in page.tags if tag == "article"]
    assert len(cards) == 24
    assert {card["data-language"] for card in cards} == {"en", "zh"}
    sources = page.attributes("src")
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 24
    blocks = [attributes for tag, attributes in page.tags if tag == "div" and "data-status" in attributes]
    assert len(blocks) == 24 * 2
    statuses = {status for block in blocks for status in (block["data-status"] or "").split()}
    assert statuses == {"right", "wrong", "changed", "fixed", "broken", "failed"}
    assert "圆形是什么颜色的？" in page.text
    assert re.search(r"✗ gray\s*first\s*→\s*✓ red\s*", page.text)


def test_every_number_in_the_tables_comes_from_the_summary(written: Written, page: Page) -> None:
    summary = json.loads((written.page.parent / "summary.json").read_text(encoding="utf-8"))
    rows = {tuple(row[:2]): row[2:] for row in reversed(page.rows)}  # the captions table comes later
    for name, system in summary["systems"].items():
        for choice, measures in system["choices"].items():
            low, high = measures["vqa_accuracy_ci95"]
            figures = [measures[metric] for metric, _ in OTHER_METRICS]
            points = [f"{100 * figure:.1f}" for figure in (measures["vqa_accuracy"], low, high, *figures)]
            assert rows[name, choice] == [str(measures["questions"]), points[0], f"{points[1]} .. {points[2]}", *points[3:]]
    assert summary["comparisons"]
    for row in summary["comparisons"]:
        cells = rows[row["a"], row["b"]]
        assert cells[0] == f"{100 * row['difference']:+.1f}"
        assert cells[1] == f"{100 * row['ci95'][0]:+.1f} .. {100 * row['ci95'][1]:+.1f}"
        assert cells[2:4] == [f"{row['p_value']:.4f}", f"{row['p_holm']:.4f}"]
        assert cells[4] == {"a": row["a"], "b": row["b"]}.get(row["verdict"], "not shown")


def test_the_notes_explain_statistics_weights_and_failures(page: Page) -> None:
    for phrase in (
        "by a jackknife over images",
        "randomisation test",
        "Rerank weights (as configured)",
        "counts as wrong",
        "no question failed",
    ):
        assert phrase in page.text, phrase


def test_the_card_of_the_controls_names_the_system_that_they_belong_to(written: Written, page: Page) -> None:
    assert re.search(r"controls\s+of careful", page.text)
    assert "| shuffled_images | control of careful |" in (written.page.parent / "report.md").read_text(encoding="utf-8")


def test_the_accuracy_is_called_official_only_with_ten_references_a_question(page: Page, tmp_path: Path) -> None:
    assert "Official VQA accuracy" in page.text
    store = write_store(tmp_path / "data", [sample(f"{i}", i, "What color is it?", ["red"] * (9 + i % 2)) for i in range(4)])
    planned = experiment(store, tmp_path / "out")
    evaluation_result = evaluate(planned, lambda _: FakeAnswerer(always(("red", -0.1))), lambda _: pytest.fail("no control"))
    text = Page(write_report(evaluation_result, planned).read_text(encoding="utf-8")).text
    assert evaluation_result.record()["dataset"]["fewest_references"] == 9
    assert "Official" not in text
    assert "It is not the official score, which needs 10 references a question: some question here has only 9 references" in text
    assert "It is not the official score" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_filters_offer_systems_and_categories(page: Page) -> None:
    controls = {attributes.get("id") for tag, attributes in page.tags if tag in ("select", "input")}
    assert controls == {"search", "status", "system", "category", "language"}
    assert all(name in page.text for name in ("careful", "dull", "counting", "attribute"))


def test_the_markdown_report_has_the_tables_and_links_the_charts(written: Written) -> None:
    text = (written.page.parent / "report.md").read_text(encoding="utf-8")
    assert "| careful | reranked |" in text
    assert "| careful/reranked | careful/first |" in text
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (written.page.parent / name).is_file()
    assert "1 question failed and counts as wrong" in text


def test_the_charts_are_not_empty(written: Written) -> None:
    for name in CHARTS:
        with Image.open(written.page.parent / name) as image:
            assert image.width > 500
            colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colors is not None
            assert len(colors) > 50, name


def test_examples_alternate_between_changed_wrong_and_right(written: Written) -> None:
    all_examples = examples(written.evaluation_result)
    assert len(all_examples) == 25
    selected = select_examples(all_examples, 9)
    assert any("changed" in answer.statuses for answer in selected[0].answers)
    assert not all(answer.right for answer in selected[1].answers)
    assert len(select_examples(all_examples, 1000)) == 25
    assert all(answer.right == (answer.accuracy >= RIGHT) for example in selected for answer in example.answers)


def test_charts_in_the_page_are_drawings_in_its_colors(page: Page) -> None:
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    on_page = [Path(name).stem for name in CHARTS if Path(name).stem not in (*HTML_CHARTS, "right_cases", "wrong_cases")]
    assert [drawing["aria-label"] for drawing in drawings] == [CAPTIONS[name] for name in on_page]
    styles = " ".join(page.attributes("style"))
    assert "currentColor" in styles
    assert "var(--line)" in styles
    for fixed in ("#000000", chart_style.INK, chart_style.GRID_LINE, "DejaVu"):
        assert fixed not in styles, f"{fixed} would not follow the page"
    assert "Can the fused score be read as a probability?" in page.text, "text is drawn as outlines"


def test_each_image_with_changed_answers_has_a_file_with_before_and_after(written: Written) -> None:
    changed = {example.question.image_ids[0] for example in examples(written.evaluation_result) if "changed" in example.answers[0].statuses}
    folder = written.page.parent / "changed"
    assert {path.name for path in folder.iterdir()} == {"careful"}
    assert {int(path.stem) for path in (folder / "careful").iterdir()} == changed
    with Image.open(next((folder / "careful").iterdir())) as image:
        assert image.width > 800


def test_the_count_of_changed_answers_is_that_of_the_examples(written: Written) -> None:
    statuses = [example.answers[0].statuses for example in examples(written.evaluation_result)]
    better, worse = (sum(name in labels for labels in statuses) for name in ("fixed", "broken"))
    changed = written.evaluation_result.record()["systems"]["careful"]["changed"]
    assert better > 1
    assert worse == 1
    assert changed == {
        "answers": sum("changed" in labels for labels in statuses),
        "better": better,
        "worse": worse,
        "equal": changed["equal"],
    }
    assert changed["equal"] == changed["answers"] - better - worse


def test_a_missing_chinese_font_is_logged_once_and_is_no_error(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(chart_style, "chinese_font", lambda: None)
    monkeypatch.setattr(rendering, "chinese_font", lambda: None)
    rendering.warn_of_missing_font.cache_clear()
    with caplog.at_level(logging.WARNING):
        paths = write_charts(written.evaluation_result.summary, examples(written.evaluation_result), written.planned.store, tmp_path, 0)
    assert [chart.path.name for chart in paths] == CHARTS
    assert [record.message for record in caplog.records if "Chinese" in record.message] == [rendering.MISSING_FONT]


def test_a_report_with_chinese_questions_says_that_a_font_is_missing(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = written.evaluation_result.summary
    monkeypatch.setattr(report_notes, "chinese_font", lambda: None)
    assert report_notes.missing_font(summary) == rendering.MISSING_FONT
    assert any("fonts-noto-cjk" in remark for remark in report_notes.remarks(summary))
    assert "no font with Chinese characters" in terminal_summary(summary, Path("report.html"))
    monkeypatch.setattr(report_notes, "chinese_font", lambda: Path("noto.ttc"))
    assert report_notes.missing_font(summary) is None


def test_charts_use_the_chinese_font() -> None:
    font = chinese_font()
    if font is None:
        pytest.skip("no font with Chinese characters is installed")
    path = font_manager.findfont(chart_style.register_font(font), fallback_to_default=False)
    assert font_manager.get_font(path).get_char_index(ord("图"))


def test_texts_are_wrapped_by_display_width() -> None:
    assert wrap_text("one two three", 8, 2) == "one two\nthree"
    assert wrap_text("红色的圆形", 6, 2) == "红色的\n圆形"
    assert wrap_text("a b c d e f", 2, 2) == "a\nb ..."


def test_a_report_without_short_answers_and_reranking_is_written(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [row for row in questions(2) if row["task"] == "caption"])
    planned = experiment(store, tmp_path / "out")
    evaluation_result = evaluate(
        planned, lambda _: FakeAnswerer(always(("a red disc on white", -0.1))), lambda _: pytest.fail("no control")
    )
    text = write_report(evaluation_result, planned).read_text(encoding="utf-8")
    assert "Captions and descriptions" in text
    assert "<article" not in text


def test_a_report_with_a_missing_image_is_written(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    planned = experiment(store, tmp_path / "out")
    evaluation_result = evaluate(planned, lambda _: FakeAnswerer(always(("red", -0.1))), lambda _: pytest.fail("no control"))
    (tmp_path / "data" / "1.png").unlink()
    assert "can no longer be read" in write_report(evaluation_result, planned).read_text(encoding="utf-8")
