"""Normalisation rules and quirks. Expected texts were derived by hand from the published rules."""

import pytest

from evaluation.metrics.answer_normalisation import as_digits, normalise_m4c, normalise_vqa, split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("  a\tred\nball ", "red ball"),  # whitespace; the article is dropped
        ("The Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("eleven", "eleven"),  # number words end at ten
        ("T-shirt", "t shirt"),  # a mark without an adjacent space becomes a space
        ("red - white", "red white"),  # a mark next to a space is removed
        ("a-b - c", "ab c"),  # one mark next to a space removes all marks of its kind
        ("1,000", "1000"),  # a comma between digits
        ("1,000/day", "1000day"),  # ... removes every mark, not only the comma
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("2.", "2"),  # a full stop after a digit is removed too
        ("2.5", "2.5"),  # unless a digit follows
        ("p.m.", "pm"),
        (".5", ".5"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the list
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # reversed in the official list
        ("Im", "im"),  # capitalised in the official list but looked up in lower case: never found
        ("The", ""),
        ("how's it?", "how's it"),
    ],
)
def test_official_rules(text: str, expected: str) -> None:
    assert normalise_vqa(text) == expected


def test_the_official_script_drops_at_most_32_full_stops() -> None:
    assert normalise_vqa("a." * 40) == "a" * 33 + ".a" * 7 + "."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Red?", "red"),
        ("1,000", "1000"),
        ("red,white", "redwhite"),  # a comma is dropped before anything else
        ("john's", "john 's"),
        ("she's", "she 's"),
        ("A dog.", "dog"),
        ("Two", "2"),
        ("½ cup", "½ cup"),  # only full-width forms are folded
        ("３", "3"),
        ("Ａ型", "a型"),
        ("红色。", "红色"),
        ("红 色", "红色"),
        ("“红色”、白色！", "红色白色"),
        ("３个", "3个"),
        ("2.5米。", "2.5米"),
        ("10：30分", "10:30分"),
        ("yes。", "yes"),
    ],
)
def test_m4c_rules_and_chinese(text: str, expected: str) -> None:
    assert normalise_m4c(text) == expected


def test_each_chinese_character_is_a_word() -> None:
    assert split_words("2只black cat猫") == ["2", "只", "black", "cat", "猫"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("三", "3"),
        ("十", "10"),
        ("十二", "12"),
        ("二十", "20"),
        ("九十九", "99"),
        ("一百零二", "102"),
        ("一百二十", "120"),
        ("三千零五", "3005"),
        ("一万两千", "12000"),
        ("三亿零五十万", "300500000"),
        ("二〇二四年", "2024年"),
        ("三个", "3个"),
        ("有两只狗", "有2只狗"),
        ("第一", "第1"),
        ("十一月二日", "11月2日"),
        ("a 三 b", "a 3 b"),
    ],
)
def test_numerals_become_digits(text: str, expected: str) -> None:
    assert as_digits(text) == expected


@pytest.mark.parametrize("text", ["三角形", "十字形", "统一", "唯一", "万一", "一百二", "一样", "一些", "十百", "一一十", "星期三"])
def test_words_that_merely_contain_numeral_characters_stay(text: str) -> None:
    assert as_digits(text) == text
