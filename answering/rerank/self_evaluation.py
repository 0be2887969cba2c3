"""Self-evaluation: ask the answerer whether an answer is right, and take the probability of yes (P(True), arXiv:2207.05221)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from answering.decoding.kv_cache import prompt_cache
from answering.protocol import Request
from answering.systems.local_model import LocalAnswerer, eval_mode
from dataset.sample import IMAGE_PLACEHOLDER, Language, Message
from errors import TesseraError

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


class SelfEvaluatingAnswerer(LocalAnswerer):
    """An answerer that evaluates answers: P(yes) / (P(yes) + P(no)) of the first token of its reply."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """As `SelfEvaluator.judge`; batch_size: texts per batch."""
        pairs = [
            (i, self_evaluation_request(request, text))
            for i, (request, group) in enumerate(zip(requests, texts, strict=True))
            for text in group
        ]
        probabilities: list[list[float] | None] = [[] for _ in requests]
        with eval_mode(self.model):
            for start in range(0, len(pairs), batch_size):
                batch = pairs[start : start + batch_size]
                for (i, _), value in zip(batch, self._yes_probabilities([request for _, request in batch]), strict=True):
                    group = probabilities[i]
                    if value is None or group is None:
                        probabilities[i] = None
                    else:
                        group.append(value)
        return probabilities

    @torch.no_grad()
    def _yes_probabilities(self, requests: Sequence[Request]) -> list[float | None]:
        """P(yes) of each request made by `self_evaluation_request`; None if its prompt cannot be built."""
        prompts = {}
        for i, request in enumerate(requests):
            try:
                prompts[i] = self.encode(request)
            except TesseraError:
                # The prompt is longer than that of the answer and may not fit: the answer is then not evaluated.
                continue
        probabilities: list[float | None] = [None] * len(requests)
        if not prompts:
            return probabilities
        batch = self.collate(list(prompts.values()))
        log_probs = torch.log_softmax(prompt_cache(self.model, batch, 1, 1).logits[:, -1], dim=-1).cpu()
        for i, row in zip(prompts, log_probs, strict=True):
            yes, no = (row[self._first_token_ids(words[requests[i].language])].logsumexp(0) for words in (YES_WORDS, NO_WORDS))
            probabilities[i] = float(torch.sigmoid(yes - no))
        return probabilities

    def _first_token_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of the first tokens of the words, without duplicates."""
        return sorted({self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})


def self_evaluation_request(request: Request, text: str) -> Request:
    """A request that asks whether `text` is the answer: a conversation without prompts, since it says itself what is wanted."""
    *earlier, last = request.messages
    content = QUESTION_TEMPLATE[request.language].format(question=last.content, answer=text.replace(IMAGE_PLACEHOLDER, " "))
    return replace(request, messages=(*earlier, Message(last.role, content)), task="conversation", with_prompts=False)
