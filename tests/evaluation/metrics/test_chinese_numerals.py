"""Chinese numerals with known values."""

import pytest

from evaluation.metrics.chinese_numerals import as_digits


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
