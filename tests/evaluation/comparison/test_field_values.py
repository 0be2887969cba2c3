"""Ids, answers and references as other tools write them: read, or refused with their place, never scored as wrong."""

from typing import Any

import pytest

from errors import TesseraError
from evaluation.comparison.field_values import answer_text, id_text, lookup, reference_texts

PLACE = "a.json, record 7, gold"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", ("red",)),
        (3, ("3",)),
        (3.0, ("3",)),
        (2.5, ("2.5",)),
        (["red", "dark red"], ("red", "dark red")),
        ([["red", "dark red"]], ("red", "dark red")),
        ([["red"], ["blue"]], ("red", "blue")),
        ([{"answer": "red", "answer_id": 1}, {"answer": 2, "answer_confidence": "maybe"}], ("red", "2")),
        ({"answer": ["red", "blue"]}, ("red", "blue")),
        ({"text": "red"}, ("red",)),
        ('["red", "blue"]', ("red", "blue")),
        ("['red', 'blue']", ("red", "blue")),
        ("['nokia', \"nokia's\"]", ("nokia", "nokia's")),
        (" ['red'] ", ("red",)),
        ("('red', 'blue')", ("red", "blue")),
        ("{'blue', 'red'}", ("blue", "red")),
        ("[12, 12.0, '12:00']", ("12", "12", "12:00")),
        ("[{'answer': 'red'}, {'answer': 'blue'}]", ("red", "blue")),
        ("['red' 'dark red'\n 'blue']", ("red", "dark red", "blue")),
        ("red [sic]", ("red [sic]",)),
        ("[sic] red", ("[sic] red",)),
        ("(A)", ("(A)",)),
        ("(2, 3)", ("(2, 3)",)),
        (["", "red"], ("", "red")),
        ("红色", ("红色",)),
    ],
)
def test_references_are_read_in_every_way_in_which_tools_write_them(value: Any, expected: tuple[str, ...]) -> None:
    assert reference_texts(value, PLACE) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        [],
        ["", " "],
        "[]",
        True,
        float("nan"),
        "[nokia, noka]",
        "['red', nan]",
        "['red', 'blue'",
        "['red' ... 'blue']",
        "['red' 'dark red', 'blue']",
        [["red", "blue"], ["green"]],
        ["red", None],
        {"red": 0.3, "blue": 1.0},
        "{'red': 1.0}",
        [{"label": "red"}],
        "[" * 10_000 + "]" * 10_000,
    ],
)
def test_references_that_cannot_be_read_are_an_error_with_their_place(value: Any) -> None:
    with pytest.raises(TesseraError, match=r"^a\.json, record 7, gold: expected "):
        reference_texts(value, PLACE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("red", "red"),
        ("", ""),
        (None, None),
        (12, "12"),
        (12.0, "12"),
        (["red"], "red"),
        ([["red"]], "red"),
        ([None], None),
        ({"answer": "red"}, "red"),
        ({"text": ["red"]}, "red"),
        ("['red']", "red"),
        ('["red"]', "red"),
        ("[3]", "3"),
        ("[unclear]", "[unclear]"),
        ("[12, 30, 100, 200]", "[12, 30, 100, 200]"),
        ("{so they say}", "{so they say}"),
        ("(A)", "(A)"),
    ],
)
def test_an_answer_is_one_text(value: Any, expected: str | None) -> None:
    assert answer_text(value, PLACE) == expected


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (["red", "blue"], "FIELD.0"),
        ([["red", "blue"]], "FIELD.0"),
        ("['red', 'blue']", "FIELD.0"),
        ("['red' 'blue']", "FIELD.0"),
        ({"text": "red", "log_prob": -0.1}, "FIELD.text"),
        ({"error": "timeout"}, "FIELD.error"),
        ("{'error': 'timeout'}", "FIELD.error"),
        ([], ""),
        ("[]", ""),
        ({}, ""),
        (False, ""),
        (float("nan"), ""),
        (float("inf"), ""),
    ],
)
def test_an_answer_that_is_a_list_or_an_object_is_refused_with_its_place(value: Any, advice: str) -> None:
    with pytest.raises(TesseraError, match=r"^a\.json, record 7, gold: expected one answer as text, found") as refused:
        answer_text(value, PLACE)
    assert str(refused.value).endswith(advice)


def test_ids_are_texts_or_whole_numbers() -> None:
    assert [id_text(value, PLACE) for value in ("a/7", 7, 7.0)] == ["a/7", "7", "7"]
    for value in (None, True, [7], {"id": 7}, "", " ", float("nan")):
        with pytest.raises(TesseraError, match="record 7, gold: expected an id"):
            id_text(value, PLACE)


def test_a_name_with_dots_is_a_field_before_it_is_a_path() -> None:
    record = {"doc.id": 1, "doc": {"id": 2, "answers": ["red"]}}
    assert lookup(record, "doc.id") == 1
    assert lookup(record, "doc.answers.0") == "red"
