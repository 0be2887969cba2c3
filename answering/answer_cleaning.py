"""Extract a short answer from the sentence around it: "The brand is X." -> "X". The patterns below are the rules."""

import re

from answering.question_types import ASKS_COUNT, ASKS_TEXT, ASKS_YES_NO, matches_question
from dataset.sample import question_text

_DETERMINER = r"(?:(?:the|this|that|these|those|his|her|its|their)\s+)?"

ANSWER_SENTENCES: tuple[str, ...] = (
    rf"{_DETERMINER}(?P<subject>[\w'’ -]{{1,60}}?)\s+(?P<verb>is|are|was|were|says?|reads?)\b\s*:?\s*(?P<answer>.+)",
    r"(?P<subject>answer)\s*(?P<verb>:)\s*(?P<answer>.+)",
    r"(?:(?:图中|图片中|图像中|画面中|照片中)的?)?(?:这个|那个|这件|那件|这辆|那辆)?(?P<subject>[^，。,.是为：:]{1,12}?)(?P<verb>是|为|：|:)\s*(?P<answer>.+)",
)
"""Regular expressions of whole sentences that contain a short answer."""

YES_NO_SENTENCE = r"(?P<answer>yes|no|是的|不是|没有|是|不|有|对)\s*[,，.。;；、]\s*.+"
"""A yes or no followed by a sentence."""

COUNT_SENTENCE = r"there\s+(?:is|are|was|were)\s+(?P<answer>\d+|no|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b.*"
"""A sentence around a number."""

ANSWER_WORDS = ("answer", "答案")

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the a an of in on to at for with this that these those it he she they there here what which who whom whose when where why how "
        "is are was were be do does did say says read reads and or not no yes",
    )
)
"""Words that do not show whether a sentence repeats its question."""

ENDS_WITH_ABBREVIATION = (
    r"(?:(?:^|\s)(?:[^\W\d_]\.)+[^\W\d_]|\s[^\W\d_]|(?:^|\s)(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|ltd|co|corp|ave|rd|blvd|mt|ft))\.$"
)
"""Initials and abbreviations: their full stop is part of the answer."""


def clean_answer(raw: str, question: str) -> str:
    """Extract a short answer from the sentence around it: "The brand is X." -> "X", "答案是X。" -> "X".

    The answer is extracted only if the subject of the sentence is "answer" or comes from the question: "The end is near" on a sign
    is itself an answer. Any other text is returned unchanged, apart from one full stop at its end.
    """
    text = " ".join(raw.split())
    asked = question_text(question)
    for pattern in _patterns(asked):
        match = re.fullmatch(pattern, text, re.IGNORECASE)
        if match and _repeats_question(match, asked):
            text = match["answer"].strip()
            break
    return _strip_full_stop(text) or raw


def _patterns(question: str) -> tuple[str, ...]:
    if matches_question(ASKS_YES_NO, question):
        return (YES_NO_SENTENCE, *ANSWER_SENTENCES)
    return (COUNT_SENTENCE, *ANSWER_SENTENCES) if matches_question(ASKS_COUNT, question) else ANSWER_SENTENCES


def _repeats_question(match: re.Match[str], question: str) -> bool:
    """Whether a sentence only repeats its question around the answer."""
    if "subject" not in match.re.groupindex:
        return True
    subject = match["subject"].strip().casefold()
    if subject in ANSWER_WORDS:
        return True
    if matches_question(ASKS_YES_NO, question) or (
        matches_question(ASKS_TEXT, question) and not matches_question(ASKS_TEXT, f"{subject} {match['verb']}")
    ):
        return False
    if not subject.isascii():
        return subject in question
    words = set(re.findall(r"[\w'’]+", subject)) - STOP_WORDS
    return bool(words) and words <= set(re.findall(r"[\w'’]+", question.casefold()))


def _strip_full_stop(text: str) -> str:
    ends_sentence = text.endswith(".") and not text.endswith("..") and not re.search(ENDS_WITH_ABBREVIATION, text, re.IGNORECASE)
    return text[:-1] if ends_sentence or text.endswith("。") else text
