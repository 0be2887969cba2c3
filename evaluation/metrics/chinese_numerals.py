"""Chinese numerals as digits: 三个 equals 3个, 十二 equals 12. Words that merely contain such characters stay (三角形, 统一)."""

import re

from dataset.chinese_characters import CJK

_DIGITS = dict(zip("零〇一二两兩三四五六七八九", (0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"亿": 10**8, "億": 10**8, "万": 10**4, "萬": 10**4}
_MEASURE_WORDS = "个個只隻条條张張件辆輛头匹本支把块棵朵座间間位名瓶杯盘盤碗双雙对對群架艘台部颗粒片根层排列点岁年月日号元米次人"
_RUN = f"[{''.join([*_DIGITS, *_UNITS, *_MYRIADS])}]+"
_NUMERAL = re.compile(rf"{_RUN}(?=[{_MEASURE_WORDS}])|(?:(?<![{CJK}])|(?<=第)){_RUN}(?![{CJK}])")


def as_digits(text: str) -> str:
    """Replace Chinese numerals by digits: before a measure word, after 第, or without an adjacent Chinese character.

    A run of digit characters alone is read digit by digit (二〇二四 -> 2024). Anything that is not a well-formed number (万一) stays.
    """
    return _NUMERAL.sub(lambda match: _to_digits(match.group()) or match.group(), text)


def _to_digits(run: str) -> str | None:
    if all(character in _DIGITS for character in run):
        return "".join(str(_DIGITS[character]) for character in run)
    value = _value(run)
    return None if value is None else str(value)


def _value(run: str) -> int | None:
    """Value of a numeral with units; None if it is not well formed."""
    for name, unit in _MYRIADS.items():
        head, separator, tail = run.rpartition(name)
        if separator:
            above, below = _value(head), _value(tail.removeprefix("零")) if tail else 0
            return None if not above or below is None or below >= unit else above * unit + below
    return _below_ten_thousand(run)


def _below_ten_thousand(run: str) -> int | None:
    """Value of a numeral without 万 and 亿; None if it is not well formed."""
    value, smallest, digit, gap = 0, 10_000, None, False
    for character in run:
        if character in "零〇":
            gap = True
        elif character in _DIGITS:
            if digit is not None:
                return None
            digit = _DIGITS[character]
        else:
            unit = _UNITS[character]
            if digit is None and not (unit == 10 and value == 0):
                return None
            if unit >= smallest or not (gap or smallest in (10_000, 10 * unit)):
                return None
            value, smallest, digit, gap = value + (digit or 1) * unit, unit, None, False
    if digit is None:
        return value or None
    # 一百二 means 120 in speech, while 一百零二 is 102: such shortened forms are ambiguous and stay as they are.
    return value + digit if gap or smallest in (10_000, 10) else None
