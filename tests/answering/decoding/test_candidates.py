"""Equal candidates are merged: the more probable text is kept and the probabilities are added."""

import math

import pytest

from answering.decoding.candidates import Generation, candidate_key, merge


def generation(text: str, probability: float, *token_ids: int) -> Generation:
    return Generation(text, f"raw {text}", token_ids, math.log(probability))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red", "red"),
        (" red. ", "red"),
        ("“red”", "red"),
        ("ＲＥＤ！", "red"),
        ("红色。", "红色"),
        ("《红》", "红"),
        ("New  York", "new york"),
    ],
)
def test_texts_that_differ_only_in_form_are_equal(one: str, other: str) -> None:
    assert candidate_key(one) == candidate_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"),
        ("$5", "5"),
        (".5", "5"),
        ("5%", "5"),
        ("C++", "C"),
        ("?", "!"),
        ("?", ""),
        ("red car", "redcar"),
        ("a red", "red"),
        ("不红", "红"),
    ],
)
def test_texts_that_differ_in_meaning_are_not_merged(one: str, other: str) -> None:
    assert candidate_key(one) != candidate_key(other)


def test_the_more_probable_text_is_kept_and_probabilities_are_added() -> None:
    candidates = merge([generation("blue", 0.3, 1, 9), generation("red.", 0.1, 2, 3, 9), generation("Red", 0.25, 4, 9)])
    assert [candidate.text for candidate in candidates] == ["Red", "blue"]
    red = candidates[0]
    assert red.raw == "raw Red"
    assert red.count == 2
    assert red.log_prob == pytest.approx(math.log(0.35))
    assert red.mean_log_prob == pytest.approx(math.log(0.35) / 2)


def test_the_probability_of_a_sequence_that_was_sampled_twice_counts_once() -> None:
    (candidate,) = merge([generation("red", 0.4, 1, 9), generation("red", 0.4, 1, 9), generation("Red", 0.2, 2, 9)])
    assert candidate.log_prob == pytest.approx(math.log(0.6))
    assert candidate.count == 3


def test_ties_keep_the_order_of_the_generations() -> None:
    candidates = merge([generation(text, 0.2, i, 9) for i, text in enumerate(["c", "a", "b"])])
    assert [candidate.text for candidate in candidates] == ["c", "a", "b"]
    assert merge([]) == ()


def test_without_a_log_probability_the_order_is_that_of_the_generations() -> None:
    scored = (("red", -3.0), ("blue", None), ("Blue.", -0.1), ("red", -3.0))
    merged = merge([Generation(text, text, (text,), log_prob) for text, log_prob in scored])
    assert [(c.text, c.log_prob, c.mean_log_prob, c.count) for c in merged] == [("red", None, None, 2), ("blue", None, None, 2)]


def test_the_order_is_that_of_the_search_and_the_log_probabilities_are_those_of_the_model() -> None:
    """A penalty pushed the first answer back; a length penalty prefers the long or the short one."""
    likely = Generation("red red", "red red", (1, 1, 9), -1.0, penalised_log_prob=-6.0)
    other = Generation("red blue", "red blue", (1, 2, 9), -3.0, penalised_log_prob=-3.0)
    assert [(c.text, c.log_prob, c.mean_log_prob) for c in merge([likely, other])] == [
        ("red blue", -3.0, -1.0), ("red red", -1.0, pytest.approx(-1 / 3)),
    ]  # fmt: skip
    short, long = Generation("a", "a", (1, 9), -2.0), Generation("a b", "a b", (1, 2, 3, 9), -3.0)
    assert [[c.text for c in merge([short, long], penalty)] for penalty in (1.0, 0.0)] == [["a b", "a"], ["a", "a b"]]


def test_the_text_of_merged_generations_is_that_which_the_search_prefers() -> None:
    one = Generation("Red", "Red", (1, 9), -1.0, penalised_log_prob=-5.0)
    two = Generation("red", "red", (2, 9), -2.0, penalised_log_prob=-2.0)
    (candidate,) = merge([one, two])
    assert (candidate.text, candidate.count) == ("red", 2)
    assert candidate.log_prob == pytest.approx(math.log(math.exp(-1.0) + math.exp(-2.0)))
