"""Answers that are boxes: figures, intervals, comparisons and control runs in the summary, the scores files and the reports."""

from pathlib import Path
from typing import Any

import pytest

from answering.config import RerankConfig
from answering.protocol import Request
from evaluation.report.terminal_summary import terminal_summary
from evaluation.report.write_report import write_report
from evaluation.run.evaluation_run import EvaluationResult
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from evaluation.schema.summary_file import read_summary
from tests.evaluation.fakes import COLORS, evaluate, experiment, lines, questions, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always

IMAGES = 8
REFERENCE = '{{"bbox_2d": [{}, 100, {}, 300], "label": "disc"}}'


def reference(i: int) -> str:
    return REFERENCE.format(100 * i, 100 * i + 200)


def grounding_rows() -> list[dict[str, Any]]:
    """A question for a box about each image, in English or Chinese."""
    asked = (("en", "Locate the disc."), ("zh", "请定位圆形。"))
    return [sample(f"test-{i}-box", i, asked[i % 2][1], [reference(i)], task="grounding", language=asked[i % 2][0]) for i in range(IMAGES)]


def exact(request: Request) -> list[tuple[str, float]]:
    """The reference box; half of it for image 1; another box first for image 2; none for image 3."""
    i = int(request.request_id.split("-")[1])
    if not request.request_id.endswith("-box"):
        return [("red", -0.1)]
    odd: dict[int, list[tuple[str, float]]] = {
        1: [("[100, 100, 200, 300]", -0.1)],
        2: [("[900, 900, 950, 950]", -0.1), (reference(2), -0.2)],
        3: [("on the left", -0.1)],
    }
    return odd.get(i, [(reference(i), -0.1)])


blind = always((reference(0), -0.1))


@pytest.fixture(scope="module")
def planned_and_result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, EvaluationResult]:
    """Two systems that answer short questions, captions and questions for boxes; one of the latter fails."""
    folder = tmp_path_factory.mktemp("boxes")
    store = write_store(folder / "data", [*questions(IMAGES), *grounding_rows()])
    planned = experiment(store, folder / "out", "exact", "blind", controls=("shuffled_images", "untuned"))
    answerers = {"exact": FakeAnswerer(exact, broken=frozenset({"test-7-box"})), "blind": FakeAnswerer(blind)}
    scorers: list[Any] = []
    return planned, evaluate(planned, lambda system: answerers[system.name], lambda _: FakeAnswerer(blind), scorers)


def test_figures_equal_those_worked_out_by_hand(planned_and_result: tuple[Experiment, EvaluationResult]) -> None:
    planned, result = planned_and_result
    figures = result.record()["systems"]["exact"]["grounding"]["first"]
    # Right: 0, 4, 5, 6 and, with half of its box, 1. Wrong: 2, 3 and the failed 7.
    assert (figures["questions"], figures["clusters"], figures["malformed"]) == (8, 8, 2)
    assert figures["acc_50"] == pytest.approx(5 / 8)
    assert figures["mean_iou"] == pytest.approx(4.5 / 8)
    assert figures["acc_50_ci95"][0] < 5 / 8 < figures["acc_50_ci95"][1]
    assert figures["mean_iou_ci95"][0] < 4.5 / 8 < figures["mean_iou_ci95"][1]
    assert figures["by_language"]["zh"] == {"questions": 4, "acc_50": 0.5, "mean_iou": pytest.approx(1.5 / 4)}
    assert figures["by_source"] == {"planted": {"questions": 8, "acc_50": pytest.approx(5 / 8), "mean_iou": pytest.approx(4.5 / 8)}}
    assert read_summary(planned.out / "summary.json") == result.summary


def test_boxes_are_scored_neither_as_short_answers_nor_as_captions(planned_and_result: tuple[Experiment, EvaluationResult]) -> None:
    planned, result = planned_and_result
    ours = result.record()["systems"]["exact"]
    assert ours["choices"]["first"]["questions"] == 3 * IMAGES
    assert {kind: figures["questions"] for kind, figures in ours["captions"]["first"].items()} == {"caption en": IMAGES}
    scores = {row["sample_id"]: row["scores"] for row in lines(planned.out / "scores" / "exact.jsonl")}
    assert scores["test-1-box"]["first"] == {"acc_50": 1.0, "iou": 0.5, "malformed": 0.0}
    assert scores["test-3-box"]["first"] == {"acc_50": 0.0, "iou": 0.0, "malformed": 1.0}


def test_systems_are_compared_in_acc_50_and_with_their_controls(planned_and_result: tuple[Experiment, EvaluationResult]) -> None:
    grounding = planned_and_result[1].record()["grounding"]
    rows = {(row["a"], row["b"]): row for row in grounding["comparisons"]}
    assert rows.keys() == {("exact/first", "blind/first"), ("exact/first", "controls/shuffled_images"), ("exact/first", "controls/untuned")}
    row = rows["exact/first", "blind/first"]
    # The blind one is right on image 0; on image 1 its box covers a third of the union.
    assert (row["metric"], row["difference"]) == ("acc_50", pytest.approx(4 / 8))
    assert row["differing_questions"] == 4
    assert row["mean_iou"]["difference"] == pytest.approx((4.5 - 1 - 1 / 3) / 8)
    assert row["verdict"] in ("a", "not shown")
    assert grounding["controlled_system"] == "exact"
    assert grounding["controls"]["untuned"]["acc_50"] == pytest.approx(1 / 8)


def test_the_reports_show_figures_and_draw_the_boxes(planned_and_result: tuple[Experiment, EvaluationResult]) -> None:
    planned, result = planned_and_result
    page = write_report(result, planned).read_text(encoding="utf-8")
    text = (planned.out / "report.md").read_text(encoding="utf-8")
    assert "| exact | first | all | 8 | 62.5 |" in text
    assert "| exact/first | blind/first | +50.0 |" in text
    assert "exact places 62.5 % of 8 boxes right" in text
    assert "with a mean IoU of 56.2 %" in terminal_summary(result.summary, planned.out / "report.html")
    assert page.count('class="box-card"') == IMAGES
    assert page.count('<rect class="reference"') == IMAGES
    # Two of the eight answers have no box.
    assert page.count('<rect class="box0"') == IMAGES - 2
    assert page.count('<rect class="box1"') == IMAGES
    assert '<rect class="reference" x="100.0" y="100.0" width="200.0" height="200.0"/>' in page


def test_without_short_questions_the_terminal_shows_the_boxes(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", grounding_rows())
    planned = experiment(store, tmp_path / "out", controls=("shuffled_images",))
    result = evaluate(planned, lambda _: FakeAnswerer(exact), lambda _: FakeAnswerer(exact))
    shown = terminal_summary(result.summary, tmp_path / "report.html")
    assert shown.startswith("ours places 75.0 % of 8 boxes right")
    assert "Acc@0.5" in shown
    assert "control of ours" in shown


def test_a_question_about_a_box_shows_it(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [sample("test-0-q", 0, "What is in the box [100, 200, 300, 400]?", ["red"])])
    planned = experiment(store, tmp_path / "out")
    page = write_report(evaluate(planned, lambda _: FakeAnswerer(exact), lambda _: FakeAnswerer(exact)), planned).read_text(
        encoding="utf-8"
    )
    assert page.count('<rect class="asked" x="100.0" y="200.0" width="200.0" height="200.0"/>') == 1


def test_image_text_scores_leave_boxes_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [*questions(2), *grounding_rows()[:3]])
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig())
    evaluate(planned, lambda _: FakeAnswerer(exact), lambda _: FakeAnswerer(exact), [NamedScorer("planted", FakeScorer(*COLORS))])
    row = next(row for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl") if row["sample_id"] == "test-2-box")
    assert row["choices"]["reranked"] == row["choices"]["first"] == "[900, 900, 950, 950]"
    assert all("clip" not in candidate for candidate in row["candidates"])
