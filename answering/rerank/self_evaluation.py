"""Self-evaluation: ask the answerer whether an answer is right, and take the probability of yes (P(True), arXiv:2207.05221)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from answering.protocol import Request
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message

QUESTION_TEMPLATE: dict[Language, str] = {
    "en": "{question}\nProposed answer: {answer}\nIs the proposed answer right? Answer yes or no.",
    "zh": "{question}\n候选答案：{answer}\n这个答案对吗？请回答是或否。",
}
YES_WORDS: dict[Language, tuple[str, ...]] = {"en": ("yes", "Yes"), "zh": ("是", "对")}
NO_WORDS: dict[Language, tuple[str, ...]] = {"en": ("no", "No"), "zh": ("否", "不")}
"""First words of replies that count; the probability is normalised over their first tokens alone."""


@runtime_checkable
class SelfEvaluator(Protocol):
    """A system that can evaluate answers."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """P(yes) of each text of each request, 0..1; None for a request that cannot be encoded."""
        ...


def self_evaluation_request(request: Request, text: str) -> Request:
    """A request that asks whether `text` is the answer: a conversation without prompts, since it says itself what is wanted."""
    *earlier, last = request.messages
    content = QUESTION_TEMPLATE[request.language].format(question=last.content, answer=text.replace(IMAGE_PLACEHOLDER, " "))
    return replace(request, messages=(*earlier, Message(last.role, content)), task="conversation", with_prompts=False)
