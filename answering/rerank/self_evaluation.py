"""The answerer judges answers: how likely it says yes when asked whether one is right."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

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
"""Beginnings of the replies that count; whatever else might be said is left out of the probability."""


@runtime_checkable
class SelfEvaluator(Protocol):
    """Something that can say how right an answer is."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """For each request P(yes) of each of its texts, 0..1; None where it cannot be asked."""
        ...


class SelfEvaluatingAnswerer(LocalAnswerer):
    """An answerer with a decoder-only model that also judges: P(yes) / (P(yes) + P(no)) of the first token of its reply."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """As `Judge` says; batch_size: texts judged together."""
        pairs = [
            (i, self_evaluation_request(request, text))
            for i, (request, group) in enumerate(zip(requests, texts, strict=True))
            for text in group
        ]
        found: list[list[float] | None] = [[] for _ in requests]
        with eval_mode(self.model):
            for start in range(0, len(pairs), batch_size):
                part = pairs[start : start + batch_size]
                for (i, _), value in zip(part, self._yes_probabilities([request for _, request in part]), strict=True):
                    group = found[i]
                    if value is None or group is None:
                        found[i] = None
                    else:
                        group.append(value)
        return found

    @torch.no_grad()
    def _yes_probabilities(self, requests: Sequence[Request]) -> list[float | None]:
        """P(yes) of each question that `judging` made; None where its prompt cannot be built."""
        prompts = {}
        for i, request in enumerate(requests):
            try:
                prompts[i] = self.encode(request)
            except TesseraError:
                # A longer prompt than the answer's own may not fit; the answer stands, only unjudged.
                continue
        found: list[float | None] = [None] * len(requests)
        if not prompts:
            return found
        batch = self.collate(list(prompts.values()))
        output = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            logits_to_keep=1,
            **batch.images,
        )
        log_probs = torch.log_softmax(output.logits[:, -1].float(), dim=-1).cpu()
        for i, row in zip(prompts, log_probs, strict=True):
            yes, no = (row[self._first_token_ids(words[requests[i].language])].logsumexp(0) for words in (YES_WORDS, NO_WORDS))
            found[i] = float(torch.sigmoid(yes - no))
        return found

    def _first_token_ids(self, words: Sequence[str]) -> list[int]:
        """First tokens of the words."""
        return sorted({self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})


def self_evaluation_request(request: Request, text: str) -> Request:
    """The same request, asked whether `text` is its answer. As a conversation, so that no short-answer suffix stands behind it."""
    *earlier, last = request.messages
    content = QUESTION_TEMPLATE[request.language].format(question=last.content, answer=text.replace(IMAGE_PLACEHOLDER, " "))
    return replace(request, messages=(*earlier, Message(last.role, content)), task="conversation")
