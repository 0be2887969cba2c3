"""What a system's prompt policy does to a question and to an answer. One policy per task; the rules are data.

Only short-answer questions (task vqa) get a suffix or have their answers cleaned.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Self

from answering.config import SystemBase
from answering.protocol import Request
from dataset.sample import IMAGE_MARK, Message

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

ASKS_YES_NO = (
    r"^(?:is|are|was|were|am|do|does|did|can|could|will|would|has|have|had|should|may|might)\b(?!.*\bor\b)"
    r"|吗\s*[？?]?\s*$|有没有|是不是|是否|对不对"
)
ASKS_COUNT = r"\bhow many\b|\bnumber of\b|(?:几|多少)[人个只条张把辆本位匹头朵棵座块片件双杯瓶盘种名艘架根支台扇面]|数量|总数|个数"
ASKS_TEXT = r"\b(?:says?|said|reads?|written|writes?|text|title|titled|words?|slogan|message|quote|called|named?)\b|写|文字|字|标题|名"
"""Questions about something written, which may itself look like a sentence."""

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


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """What is put behind a short-answer question, and whether its answers are cleaned."""

    short_answer_prompt: str | None = None
    short_answer_prompt_zh: str | None = None
    clean_answers: bool = False

    @classmethod
    def of(cls, system: SystemBase) -> Self:
        """The policy that a system's configuration states."""
        return cls(system.short_answer_prompt, system.short_answer_prompt_zh, system.clean_answers)

    def messages(self, request: Request) -> tuple[Message, ...]:
        """The messages with the suffix behind the last turn, after a line break."""
        suffix = self.short_answer_prompt_zh if request.language == "zh" else self.short_answer_prompt
        if request.task != "vqa" or not suffix or not request.messages:
            return request.messages
        *before, last = request.messages
        content = last.content.rstrip("\n")
        marks = IMAGE_MARK if content.endswith(IMAGE_MARK) else ""
        question = content.removesuffix(marks).rstrip("\n")
        behind = f"\n{marks}" if marks else ""
        return (*before, Message(last.role, f"{question}\n{suffix}{behind}"))

    def clean(self, raw: str, request: Request) -> str:
        """The answer in a generated text."""
        if request.task != "vqa" or not self.clean_answers or not request.messages:
            return raw
        return clean_answer(raw, request.messages[-1].content)

    def settings(self) -> dict[str, object]:
        """For Description.settings."""
        return dataclasses.asdict(self)


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


def asks(pattern: str, question: str) -> bool:
    """Whether a question is of the kind that one of the patterns above describes."""
    return re.search(pattern, question, re.IGNORECASE) is not None


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
