"""The sentences of the report say what is shown, and no more."""

from dataclasses import replace
from typing import Any

import pytest

from evaluation.confidence_intervals import Interval
from evaluation.report.findings import headline, sentences
from evaluation.report.report_notes import few_images_remark, rerank_remarks, tuning_sentence
from evaluation.schema.summary_file import Comparison, DatasetFigures, RerankFigures, Summary, TunedGain, ValidationFigures
from evaluation.statistics import TestedDifference, Verdict
from tests.evaluation.fakes import choice_figures, system_figures


def compared(a: str, b: str, difference: float, verdict: Verdict, normalised: tuple[float, Verdict] | None = None) -> Comparison:
    """A comparison; `normalised`: difference and verdict under M4C, by default the same."""

    def tested(difference: float, verdict: Verdict) -> TestedDifference:
        return TestedDifference(difference, Interval(difference - 0.01, difference + 0.01), 0.01, 0.01, verdict)

    under_m4c = tested(*(normalised or (difference, verdict)))
    return Comparison(
        **vars(tested(difference, verdict)), a=a, b=b, metric="vqa_accuracy", differing_questions=30, vqa_accuracy_m4c=under_m4c
    )


def equal(a: str, b: str) -> Comparison:
    return replace(compared(a, b, 0.0, "not shown"), differing_questions=0)


def summary_of(accuracies: dict[str, float], *rows: Comparison, **entries: Any) -> Summary:
    choices = {name: choice_figures(accuracy) for name, accuracy in accuracies.items()}
    systems = {name: system_figures({"first": choice, "reranked": choice}) for name, choice in choices.items()}
    return Summary(DatasetFigures("planted", "test", 900, 300, {"vqa": 800}), systems, list(rows), **entries)


def test_the_headline_names_the_best_system_and_the_verdicts() -> None:
    summary = summary_of(
        {"old": 0.5, "new": 0.6, "other": 0.59},
        compared("old/reranked", "new/reranked", -0.1, "b"),
        compared("new/reranked", "other/reranked", 0.01, "not shown"),
        compared("new/reranked", "new/first", -0.03, "b"),
        compared("new/first", "controls/shuffled_images", 0.3, "a"),
        controls={"shuffled_images": choice_figures(0.3)},
        controlled_system="new",
    )
    assert headline(summary) == (
        "new answers 60.0 % of 800 questions right (58.0 .. 62.0), shown to be better than old but not shown to be better than other."
        " Reranking hurts it (-3.0 points, p = 0.010 after Holm). new uses the images: with shuffled images its accuracy drops to 30.0 %."
    )


def test_the_headline_says_that_a_poor_accuracy_is_poor() -> None:
    assert headline(summary_of({"tiny": 0.03})) == (
        "tiny answers 3.0 % of 800 questions right (1.0 .. 5.0), which is poor: most answers are wrong."
    )
    assert headline(replace(summary_of({}), systems={"tiny": system_figures({})})) == ""


def test_the_headline_says_when_m4c_disagrees() -> None:
    """The same answers with a capital letter."""
    row = compared("capital/reranked", "lower/reranked", -0.24, "b", (0.0, "not shown"))
    found = headline(summary_of({"capital": 0.6, "lower": 0.84}, row))
    assert "shown to be better than capital. M4C, which ignores capital letters and punctuation, disagrees" in found
    assert "no difference is shown (+0.0 points instead of +24.0)" in found
    assert "M4C" not in headline(summary_of({"capital": 0.6, "lower": 0.84}, compared("capital/reranked", "lower/reranked", -0.24, "b")))
    assert "M4C" in sentences(summary_of({}, row))[0]


def test_m4c_disagrees_with_a_verdict_in_either_direction() -> None:
    row = compared("new/reranked", "old/reranked", 0.01, "not shown", (-0.1, "b"))
    assert "disagrees about new/reranked and old/reranked: old/reranked is better (-10.0 points instead of +1.0)" in headline(
        summary_of({"new": 0.6, "old": 0.59}, row)
    )


def test_equal_systems_are_said_to_be_equal() -> None:
    summary = summary_of({"new": 0.6, "twin": 0.6}, equal("new/reranked", "twin/reranked"), equal("new/reranked", "new/first"))
    assert headline(summary).startswith("new answers 60.0 % of 800 questions right (58.0 .. 62.0), equal on every question to twin.")
    assert "Reranking changes the score of no question of new." in headline(summary)
    found = sentences(summary)
    assert found == [
        "new/reranked and twin/reranked are equal: they have the same score on every question.",
        "new/reranked and new/first are equal: they have the same score on every question.",
    ]
    assert not any("chance" in sentence for sentence in found)


def test_the_use_of_images_is_said_of_the_system_of_the_control_alone() -> None:
    control = compared("ours/first", "controls/shuffled_images", 0.3, "a")
    entries = {"controls": {"shuffled_images": choice_figures(0.3)}, "controlled_system": "ours"}
    found = headline(summary_of({"ours": 0.5, "qwen": 0.7}, compared("qwen/reranked", "ours/reranked", 0.2, "a"), control, **entries))
    assert found.startswith("qwen answers")
    assert "ours uses the images" in found
    assert "qwen uses" not in found and "It uses" not in found
    not_shown = headline(summary_of({"ours": 0.5}, replace(control, verdict="not shown"), **entries))
    assert "ours is not shown to use the images" in not_shown
    assert "uses the images" not in headline(summary_of({"ours": 0.5}))


@pytest.mark.parametrize(
    ("chosen_on", "verdict", "expected"),
    [
        ("default", "not shown", "tuned weights do not beat the configured ones (+0.4 points, p = 0.030), which are used."),
        ("validation", "a", "tuned weights beat the configured ones (+0.4 points, p = 0.030) and are used."),
        ("validation", "not shown", "but are not shown to beat them."),
    ],
)
def test_the_headline_says_whether_tuned_weights_beat_the_configured_ones_out_of_fold(
    chosen_on: str, verdict: Verdict, expected: str
) -> None:
    rerank = RerankFigures({}, chosen_on, [], validation=ValidationFigures(50, tuned_gain=TunedGain(0.004, 0.03, verdict)))
    row = compared("ours/reranked", "ours/first", 0.02, "a")
    assert headline(summary_of({"ours": 0.5}, row, rerank=rerank)).endswith(expected)
    assert tuning_sentence(summary_of({}, rerank=RerankFigures({}, "default", []))) == ""


def test_a_few_images_are_said_to_be_few() -> None:
    def summary(clusters: int) -> Summary:
        systems = {"ours": system_figures({"first": choice_figures(clusters=clusters)}), "failed": system_figures({})}
        return replace(summary_of({}), systems=systems)

    assert few_images_remark(summary(6)) == []
    assert few_images_remark(summary(5))[0].startswith("Only 5 images or groups of images: with fewer than 6, no difference can be shown")
    assert few_images_remark(summary(1))[0].startswith("Only 1 image or group")


def test_no_sentence_says_how_often_the_split_was_scored() -> None:
    rerank = RerankFigures({"likelihood": 0.8}, "default", [], learned={"ours": {}})
    text = " ".join(rerank_remarks(summary_of({"ours": 0.5}, rerank=rerank)))
    assert "fitted on the validation split" in text
    assert "once" not in text


def test_differences_that_are_shown_become_sentences() -> None:
    shown = compared("new/first", "old/first", -0.05, "b")
    assert sentences(summary_of({}, shown)) == ["old/first is better than new/first by 5.0 points (interval 4.0 to 6.0)."]
    inconclusive = compared("new/first", "old/first", -0.05, "not shown")
    assert sentences(summary_of({}, inconclusive))[0].startswith("No difference is shown")
    assert sentences(summary_of({}, shown, inconclusive))[1].startswith("1 other difference is not shown")
    assert sentences(summary_of({})) == []
