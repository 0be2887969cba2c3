"""Types of questions told by their wording: yes/no, counting, about written text."""

import re
from typing import Literal, TypeAlias

from answering.rerank.statements import core
from dataset.sample import Language

ASKS_YES_NO = (
    r"^(?:is|are|was|were|am|do|does|did|can|could|will|would|has|have|had|should|may|might)\b(?!.*\bor\b)"
    r"|吗\s*[？?]?\s*$|有没有|是不是|是否|对不对"
)


ASKS_COUNT = r"\bhow many\b|\bnumber of\b|(?:几|多少)[人个只条张把辆本位匹头朵棵座块片件双杯瓶盘种名艘架根支台扇面]|数量|总数|个数"


ASKS_TEXT = r"\b(?:says?|said|reads?|written|writes?|text|title|titled|words?|slogan|message|quote|called|named?)\b|写|文字|字|标题|名"
"""Questions about something written, which may itself look like a sentence."""


def asks(pattern: str, question: str) -> bool:
    """Whether a question is of the kind that one of the patterns above describes."""
    return re.search(pattern, question, re.IGNORECASE) is not None


Guarded: TypeAlias = Literal["yes/no", "counting"]


KINDS: tuple[Guarded, ...] = ("yes/no", "counting")
"""Kinds of questions that can be left alone."""


"""Kinds of questions that can be left alone."""


def guarded_kind(question: str, language: Language) -> Guarded | None:
    """Whether a question wants yes or no, or a number; None for any other."""
    text = core(question, language)
    if asks(ASKS_YES_NO, text):
        return "yes/no"
    return "counting" if asks(ASKS_COUNT, text) else None
