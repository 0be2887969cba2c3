"""Recognise the type of a question from its wording: yes/no, counting, about written text."""

import re
from typing import Literal, TypeAlias

from answering.rerank.statements import strip_lead_in
from dataset.sample import Language

ASKS_YES_NO = (
    r"^(?:is|are|was|were|am|do|does|did|can|could|will|would|has|have|had|should|may|might)\b(?!.*\bor\b)"
    r"|吗\s*[？?]?\s*$|有没有|是不是|是否|对不对"
)

ASKS_COUNT = r"\bhow many\b|\bnumber of\b|(?:几|多少)[人个只条张把辆本位匹头朵棵座块片件双杯瓶盘种名艘架根支台扇面]|数量|总数|个数"

ASKS_TEXT = r"\b(?:says?|said|reads?|written|writes?|text|title|titled|words?|slogan|message|quote|called|named?)\b|写|文字|字|标题|名"
"""Questions about written text; their answers may look like sentences."""


def matches_question(pattern: str, question: str) -> bool:
    """Whether one of the patterns above matches a question, regardless of case."""
    return re.search(pattern, question, re.IGNORECASE) is not None


SkippableQuestionType: TypeAlias = Literal["yes/no", "counting"]

SKIPPABLE_QUESTION_TYPES: tuple[SkippableQuestionType, ...] = ("yes/no", "counting")
"""Question types that reranking can skip."""


def skippable_question_type(question: str, language: Language) -> SkippableQuestionType | None:
    """The type of a question if reranking can skip it, else None."""
    text = strip_lead_in(question, language)
    if matches_question(ASKS_YES_NO, text):
        return "yes/no"
    return "counting" if matches_question(ASKS_COUNT, text) else None
