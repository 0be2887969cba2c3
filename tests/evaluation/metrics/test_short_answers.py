"""Metrics of short answers on cases computed by hand."""

import pytest

from evaluation.metrics.short_answers import (
    GAMEABLE_METRICS,
    METRICS,
    Metric,
    anls,
    bidirectional,
    bidirectional_legacy,
    contains,
    contains_legacy,
    edit_distance,
    exact,
    fuzzy,
    leave_one_out,
    vqa_accuracy,
    vqa_accuracy_m4c,
)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_matches_of_ten_give_the_ten_choose_nine_average(matches: int, expected: float) -> None:
    references = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", references) == pytest.approx(expected)
    assert vqa_accuracy_m4c("red", references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("matches", "n", "expected"),
    [
        (1, 1, 1.0),
        (0, 1, 0.0),
        (1, 2, 0.5),
        (2, 2, 1.0),
        (1, 3, 1 / 3),
        (2, 3, 2 / 3),
        (3, 3, 1.0),
        (3, 4, 0.75),
        (1, 5, 4 / 15),
        (0, 0, 0.0),
    ],
)
def test_the_average_also_works_with_fewer_than_ten_references(matches: int, n: int, expected: float) -> None:
    assert leave_one_out(matches, n) == pytest.approx(expected)


def test_the_official_accuracy_normalises_only_when_annotators_differ() -> None:
    agreeing = ["red"] * 10
    assert vqa_accuracy("red", agreeing) == 1.0
    assert vqa_accuracy("Red", agreeing) == 0.0
    assert vqa_accuracy("red.", agreeing) == 0.0
    assert vqa_accuracy("Red.", ["red"] * 9 + ["Red"]) == 1.0
    assert vqa_accuracy_m4c("Red.", agreeing) == 1.0


def test_whitespace_is_stripped_even_when_annotators_agree() -> None:
    assert vqa_accuracy(" red\n", ["red\t"] * 10) == 1.0
    # "red" and "red\n" agree once whitespace is stripped: no normalisation.
    assert vqa_accuracy("Red", ["red"] * 5 + ["red\n"] * 5) == 0.0


def test_references_that_are_equal_after_normalisation_count_together() -> None:
    assert vqa_accuracy("2", ["two", "2", "2."] + ["3"] * 7) == pytest.approx(0.9)


def test_chinese_answers_match_in_m4c_but_not_officially() -> None:
    references = ["红色"] * 6 + ["红"] * 4
    assert vqa_accuracy("红色。", references) == 0.0
    assert vqa_accuracy_m4c("红色。", references) == 1.0
    assert exact("３个！", ["3个"]) == 1.0


def test_exact_accepts_any_reference() -> None:
    assert exact("The dog", ["cat", "dog."]) == 1.0
    assert exact("dogs", ["cat", "dog"]) == 0.0


def test_contains_matches_whole_words_only() -> None:
    assert contains("it is snow", ["no"]) == 0.0
    assert contains_legacy("it is snow", ["no"]) == 1.0
    assert contains("a stop sign there", ["stop sign"]) == 1.0
    assert contains("stop the sign", ["stop sign"]) == 1.0  # the article is dropped
    assert contains("sign stop", ["stop sign"]) == 0.0
    assert contains("no sign", ["stop sign"]) == 0.0


def test_contains_treats_chinese_characters_as_words() -> None:
    assert contains("一只红色的猫。", ["红色"]) == 1.0
    assert contains("红的色", ["红色"]) == 0.0
    assert contains("有３只", ["3"]) == 1.0


def test_fuzzy_requires_more_than_seventy_percent_of_a_reference() -> None:
    ten = "b c d e f g h i j k"
    assert fuzzy("b c d e f g h", [ten]) == 0.0  # 7 of 10 is not more
    assert fuzzy("h g f e d c b i", [ten]) == 1.0  # in any order
    assert fuzzy("红色的圆", ["红色圆形"]) == 1.0  # 3 of 4 characters


@pytest.mark.parametrize("metric", [contains, fuzzy, contains_legacy, bidirectional_legacy])
def test_references_without_content_are_ignored(metric) -> None:  # type: ignore[no-untyped-def]
    assert metric("unknown", ["unanswerable", "None", " unknown ", None, 3, ""]) == 0.0
    assert metric("3", ["unknown", "3"]) == 1.0


def test_bidirectional_matches_in_both_directions() -> None:
    assert bidirectional_legacy("red", ["dark red"]) == 1.0
    assert contains_legacy("red", ["dark red"]) == 0.0
    assert bidirectional_legacy("", ["dark red"]) == 0.0


def test_bidirectional_matches_whole_words_in_both_directions() -> None:
    assert bidirectional("red", ["dark red"]) == 1.0
    assert bidirectional("a dark red car", ["dark red"]) == 1.0
    assert bidirectional("ed", ["dark red"]) == 0.0
    assert bidirectional("", ["dark red"]) == 0.0
    assert bidirectional("红色", ["一只红色的猫"]) == 1.0
    assert bidirectional("unknown", ["unknown", "unanswerable"]) == 0.0


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("红色", "红", 1)]
)
def test_edit_distances(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_anls_decreases_with_the_distance_and_is_zero_from_one_half() -> None:
    assert anls("Coca  Cola", ["coca cola", "pepsi"]) == 1.0
    assert anls("coca cole", ["coca cola"]) == pytest.approx(1 - 1 / 9)
    assert anls("abcd", ["abxy"]) == 0.0  # half of it differs
    assert anls("abcde", ["abcxy"]) == pytest.approx(0.6)
    assert anls("a", ["abcdef"]) == 0.0
    assert anls("", [""]) == 1.0
    assert anls("x", []) == 0.0


def test_at_exactly_one_half_anls_is_zero() -> None:
    assert anls("abcd", ["abxy"]) == 0.0
    assert anls("abcd", ["abcy"]) == 0.75


@pytest.mark.parametrize("metric", [vqa_accuracy_m4c, exact, fuzzy, contains, bidirectional])
@pytest.mark.parametrize("reference", ["A", "the", "a.", "?", "..."])
def test_a_reference_that_normalises_to_nothing_is_kept(metric: Metric, reference: str) -> None:
    assert metric("", [reference]) == 0.0
    assert metric("an", [reference]) == 0.0
    assert metric(reference, [reference]) == 1.0


def test_an_option_letter_is_matched_in_any_form() -> None:
    for form in ("a", "A.", "(A)", " A\n"):
        assert exact(form, ["A"]) == vqa_accuracy_m4c(form, ["A"]) == contains(form, ["A"]) == 1.0
    assert exact("B", ["A"]) == 0.0
    assert exact("a dog", ["dog"]) == 1.0


def test_the_official_accuracy_removes_articles_even_where_nothing_is_left() -> None:
    references = ["a"] * 6 + ["letter a"] * 4
    assert vqa_accuracy("", references) == vqa_accuracy("an", references) == 1.0
    assert vqa_accuracy_m4c("", references) == vqa_accuracy_m4c("an", references) == 0.0
    assert vqa_accuracy_m4c("a", references) == 1.0


def test_a_list_of_frequent_answers_games_the_metrics_that_stand_apart_and_no_other() -> None:
    everything = "yes no one two red blue white black dog cat"
    for name, metric in METRICS.items():
        scores = [metric(everything, [reference] * 10) for reference in ("yes", "2", "white", "horse")]
        gamed = name in GAMEABLE_METRICS or name.endswith("_legacy")
        assert (sum(scores) >= 2) == gamed, name


def test_chinese_numerals_count_as_digits_in_m4c_metrics() -> None:
    assert vqa_accuracy_m4c("三个", ["3个"] * 10) == 1.0
    assert exact("十二", ["12"]) == 1.0
    assert exact("三角形", ["3角形"]) == 0.0
    assert vqa_accuracy_m4c("３个。", ["三个"] * 10) == 1.0
