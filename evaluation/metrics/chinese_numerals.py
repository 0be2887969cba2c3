"""Chinese numerals as digits: 三个 and 3个 are one answer, 十二 is 12; words that only hold such characters stay (三角形, 统一)."""

import re

from evaluation.metrics.chinese_characters import CJK

_DIGITS = dict(zip("零〇一二两兩三四五六七八九", (0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"亿": 10**8, "億": 10**8, "万": 10**4, "萬": 10**4}
_MEASURE_WORDS = "个個只隻条條张張件辆輛头匹本支把块棵朵座间間位名瓶杯盘盤碗双雙对對群架艘台部颗粒片根层排列点岁年月日号元米次人"
_RUN = f"[{''.join([*_DIGITS, *_UNITS, *_MYRIADS])}]+"
_NUMERAL = re.compile(rf"{_RUN}(?=[{_MEASURE_WORDS}])|(?:(?<![{CJK}])|(?<=第)){_RUN}(?![{CJK}])")


def as_digits(text: str) -> str:
    """The text with its Chinese numerals as digits: those before a measure word, behind 第, or with no character beside them.

    A run of digits alone is read digit by digit (二〇二四 -> 2024). What is no well-formed number (万一) stays.
    """
    return _NUMERAL.sub(lambda match: _to_digits(match.group()) or match.group(), text)


def _to_digits(run: str) -> str | None:
    if all(character in _DIGITS for character in run):
        return "".join(str(_DIGITS[character]) for character in run)
    value = _value(run)
    return None if value is None else str(value)


def _value(run: str) -> int | None:
    """The value of a numeral with units; None where it is not well formed."""
    for name, unit in _MYRIADS.items():
        head, found, tail = run.rpartition(name)
        if found:
            above, below = _value(head), _value(tail.removeprefix("零")) if tail else 0
            return None if not above or below is None or below >= unit else above * unit + below
    return _below_ten_thousand(run)


def _below_ten_thousand(run: str) -> int | None:
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
    # 一百二 is 120 in speech and 一百零二 is 102: what is not said in full stays as it is.
    return value + digit if gap or smallest in (10_000, 10) else None
