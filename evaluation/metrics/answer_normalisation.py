"""Normalisation of answers before they are compared: official VQA v2 rules, the M4C variant, and rules for Chinese and its numerals."""

import re
from functools import cache, lru_cache
from importlib import resources

import yaml

from dataset.chinese_characters import CJK, HAS_CJK

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_REMOVED_PERIODS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})

_DIGITS = dict(zip("零〇一二两兩三四五六七八九", (0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9), strict=True))
_UNITS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"亿": 10**8, "億": 10**8, "万": 10**4, "萬": 10**4}
_MEASURE_WORDS = "个個只隻条條张張件辆輛头匹本支把块棵朵座间間位名瓶杯盘盤碗双雙对對群架艘台部颗粒片根层排列点岁年月日号元米次人"
_RUN = f"[{''.join([*_DIGITS, *_UNITS, *_MYRIADS])}]+"
_NUMERAL = re.compile(rf"{_RUN}(?=[{_MEASURE_WORDS}])|(?:(?<![{CJK}])|(?<=第)){_RUN}(?![{CJK}])")

_WIDE_TO_ASCII = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_CJK_PUNCTUATION = re.compile(r"[\u3001-\u3003\u3008-\u3011\u3014-\u301b\uff61-\uff65\u00b7\u2014\u2018\u2019\u201c\u201d\u2026~:'.]")
_INSIDE_NUMBER = re.compile(r"(?<=\d)[.:](?=\d)")
_SPACE_NEXT_TO_CJK = re.compile(rf"(?<=[{CJK}])\s+|\s+(?=[{CJK}])")
_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


def fold_width(text: str) -> str:
    """Convert full-width forms to ASCII."""
    return text.translate(_WIDE_TO_ASCII)


def strip_whitespace(text: str) -> str:
    """Replace line breaks and tabs by spaces and strip both ends, as the official script does to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalise_vqa(text: str) -> str:
    """The normalisation of the official VQA v2 evaluation (github.com/GT-Vision-Lab/VQA, vqaEval.py), quirks included.

    A punctuation mark is removed if it occurs next to a space anywhere in the text, or if the text has a number such as 1,000;
    otherwise it becomes a space. A full stop is removed unless a digit follows. The script passes a regular-expression flag as
    the number of replacements, so at most 32 full stops are removed. Then: lower case, number words up to ten (and "none") as
    digits, articles dropped, apostrophes restored.
    """
    return _plain_words(_without_punctuation(strip_whitespace(text)))


@lru_cache(maxsize=1 << 16)
def normalise_m4c(text: str) -> str:
    """The normalisation of M4C (Pythia's EvalAIAnswerProcessor), also used by lmms-eval, extended to Chinese.

    Before the official steps it drops commas and question marks, separates the possessive 's, and converts full-width forms to
    ASCII. In a text with Chinese characters, Chinese punctuation and spaces around characters are removed too, and Chinese
    numerals become digits. Texts without Chinese characters are treated exactly as upstream, except that a text of which upstream
    leaves nothing is kept: the articles of "A" or "the", the marks of "?". Else an empty answer would equal the reference "A".
    """
    original = strip_whitespace(fold_width(text).lower())
    text = original
    chinese = HAS_CJK.search(text) is not None
    if chinese:
        text = _without_cjk_punctuation(text)
    else:
        text = text.replace("\u3002", ".")
    text = strip_whitespace(text.replace(",", "").replace("?", "").replace("'s", " 's"))
    text = _without_punctuation(text)
    text = _plain_words(text) or _plain_words(text, articles=True) or original
    return as_digits(_SPACE_NEXT_TO_CJK.sub("", text)) if chinese else text


def split_words(text: str) -> list[str]:
    """Words of a normalised text; each Chinese character is one word."""
    return _WORD.findall(text)


def _without_cjk_punctuation(text: str) -> str:
    protected = {match.start() for match in _INSIDE_NUMBER.finditer(text)}
    return _CJK_PUNCTUATION.sub(lambda match: match.group() if match.start() in protected else "", text)


def _without_punctuation(text: str) -> str:
    number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        next_to_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if next_to_space or number else " ")
    return _PERIOD.sub("", result, count=_MAX_REMOVED_PERIODS)


def _plain_words(text: str, *, articles: bool = False) -> str:
    """Lower case, number words as digits, apostrophes restored; with `articles`, articles stay."""
    digits = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_contractions().get(word, word) for word in digits if articles or word not in _ARTICLES)


def as_digits(text: str) -> str:
    """Replace Chinese numerals by digits: before a measure word, after 第, or without an adjacent Chinese character.

    三个 becomes 3个; words that merely contain such characters stay (三角形, 统一). A run of digit characters alone is read digit by digit
    (二〇二四 -> 2024). Anything that is not a well-formed number (万一) stays.
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


@cache
def _contractions() -> dict[str, str]:
    """Misspelt contraction -> correct spelling."""
    data = yaml.safe_load(resources.files("evaluation.metrics").joinpath("contractions.yaml").read_text(encoding="utf-8"))
    table: dict[str, str] = dict(data["odd"])
    for correct in data["right"].split():
        for match in re.finditer("'", correct):
            table[correct[: match.start()] + correct[match.end() :]] = correct
    return table
