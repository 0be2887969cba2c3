"""Taking a short answer out of the sentence around it: "The brand is X." -> "X". The rules are data."""

import re

from answering.question_types import ASKS_COUNT, ASKS_TEXT, ASKS_YES_NO, asks
from dataset.sample import IMAGE_MARK

_OWNER = r"(?:(?:the|this|that|these|those|his|her|its|their)\s+)?"


SENTENCES: tuple[str, ...] = (
    rf"{_OWNER}(?P<subject>[\w'’ -]{{1,60}}?)\s+(?P<verb>is|are|was|were|says?|reads?)\b\s*:?\s*(?P<answer>.+)",
    r"(?P<subject>answer)\s*(?P<verb>:)\s*(?P<answer>.+)",
    r"(?:(?:图中|图片中|图像中|画面中|照片中)的?)?(?:这个|那个|这件|那件|这辆|那辆)?(?P<subject>[^，。,.是为：:]{1,12}?)(?P<verb>是|为|：|:)\s*(?P<answer>.+)",
)
"""Whole sentences that hold a short answer."""


YES_NO = r"(?P<answer>yes|no|是的|不是|没有|是|不|有|对)\s*[,，.。;；、]\s*.+"
"""A sentence behind a yes or no."""


COUNT = r"there\s+(?:is|are|was|were)\s+(?P<answer>\d+|no|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b.*"
"""A sentence around a number."""


KNOWN_SUBJECTS = ("answer", "答案")


NOT_A_SUBJECT = frozenset(
    re.findall(
        r"\w+",
        "the a an of in on to at for with this that these those it he she they there here what which who whom whose when where why how "
        "is are was were be do does did say says read reads and or not no yes",
    )
)
"""Words that say nothing about whether a sentence takes up its question."""


KEEPS_ITS_STOP = (
    r"(?:(?:^|\s)(?:[^\W\d_]\.)+[^\W\d_]|\s[^\W\d_]|(?:^|\s)(?:mr|mrs|ms|dr|st|jr|sr|vs|etc|inc|ltd|co|corp|ave|rd|blvd|mt|ft))\.$"
)
"""Initials and abbreviations end with a stop that belongs to them."""


def clean_answer(raw: str, question: str) -> str:
    """Take a short answer out of the sentence around it: "The brand is X." -> "X", "答案是X。" -> "X".

    A sentence is opened only when its subject is "answer" or comes from the question ("The end is near" on a sign is an
    answer); anything else is returned as it is, apart from one full stop at its end.
    """
    text = " ".join(raw.split())
    bare = question.replace(IMAGE_MARK, " ").strip()
    for pattern in _patterns(bare):
        match = re.fullmatch(pattern, text, re.IGNORECASE)
        if match and _takes_up(match, bare):
            text = match["answer"].strip()
            break
    return _without_stop(text) or raw


def _patterns(question: str) -> tuple[str, ...]:
    if asks(ASKS_YES_NO, question):
        return (YES_NO, *SENTENCES)
    return (COUNT, *SENTENCES) if asks(ASKS_COUNT, question) else SENTENCES


def _takes_up(match: re.Match[str], question: str) -> bool:
    """Whether a sentence only repeats its question around the answer."""
    if "subject" not in match.re.groupindex:
        return True
    subject = match["subject"].strip().casefold()
    if subject in KNOWN_SUBJECTS:
        return True
    if asks(ASKS_YES_NO, question) or (asks(ASKS_TEXT, question) and not asks(ASKS_TEXT, f"{subject} {match['verb']}")):
        return False
    if not subject.isascii():
        return subject in question
    words = set(re.findall(r"[\w'’]+", subject)) - NOT_A_SUBJECT
    return bool(words) and words <= set(re.findall(r"[\w'’]+", question.casefold()))


def _without_stop(text: str) -> str:
    if text.endswith("。"):
        return text[:-1]
    if text.endswith(".") and not text.endswith("..") and not re.search(KEEPS_ITS_STOP, text, re.IGNORECASE):
        return text[:-1]
    return text
