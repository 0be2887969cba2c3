"""The prompt policy of a system: the suffix added to a question, and whether answers are cleaned.

It applies to short-answer questions (task vqa) alone.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

from answering.answer_cleaning import clean_answer
from answering.config import SystemBase
from answering.protocol import Request
from dataset.sample import IMAGE_PLACEHOLDER, Message


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """The suffix of short-answer questions in English and Chinese, and whether their answers are cleaned."""

    short_answer_prompt: str | None = None
    short_answer_prompt_zh: str | None = None
    clean_answers: bool = False

    @classmethod
    def from_config(cls, system: SystemBase) -> Self:
        """The policy in a system's configuration."""
        return cls(system.short_answer_prompt, system.short_answer_prompt_zh, system.clean_answers)

    def messages(self, request: Request) -> tuple[Message, ...]:
        """The messages with the suffix after the last turn, on a line of its own."""
        suffix = self.short_answer_prompt_zh if request.language == "zh" else self.short_answer_prompt
        if request.task != "vqa" or not suffix or not request.messages:
            return request.messages
        *earlier, last = request.messages
        content = last.content.rstrip("\n")
        marks = IMAGE_PLACEHOLDER if content.endswith(IMAGE_PLACEHOLDER) else ""
        question = content.removesuffix(marks).rstrip("\n")
        suffix_marks = f"\n{marks}" if marks else ""
        return (*earlier, Message(last.role, f"{question}\n{suffix}{suffix_marks}"))

    def clean(self, raw: str, request: Request) -> str:
        """The answer in a generated text: cleaned for short-answer questions, else the text itself."""
        if request.task != "vqa" or not self.clean_answers or not request.messages:
            return raw
        return clean_answer(raw, request.messages[-1].content)

    def settings(self) -> dict[str, object]:
        """For Description.settings."""
        return dataclasses.asdict(self)
