"""The answerer judges answers: how likely it says yes when asked whether one is right."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from answering.protocol import Request
from answering.systems.local_model import LocalAnswerer, evaluating
from dataset.sample import IMAGE_MARK, Language, Message
from errors import TesseraError

ASKED: dict[Language, str] = {
    "en": "{question}\nProposed answer: {answer}\nIs the proposed answer right? Answer yes or no.",
    "zh": "{question}\n候选答案：{answer}\n这个答案对吗？请回答是或否。",
}
YES: dict[Language, tuple[str, ...]] = {"en": ("yes", "Yes"), "zh": ("是", "对")}
NO: dict[Language, tuple[str, ...]] = {"en": ("no", "No"), "zh": ("否", "不")}
"""Beginnings of the replies that count; whatever else might be said is left out of the probability."""


@runtime_checkable
class Judge(Protocol):
    """Something that can say how right an answer is."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """For each request P(yes) of each of its texts, 0..1; None where it cannot be asked."""
        ...


class SelfJudging(LocalAnswerer):
    """An answerer with a decoder-only model that also judges: P(yes) / (P(yes) + P(no)) of the first token of its reply."""

    def judge(self, requests: Sequence[Request], texts: Sequence[Sequence[str]], batch_size: int) -> list[list[float] | None]:
        """As `Judge` says; batch_size: texts judged together."""
        asked = [(i, judging(request, text)) for i, (request, group) in enumerate(zip(requests, texts, strict=True)) for text in group]
        found: list[list[float] | None] = [[] for _ in requests]
        with evaluating(self.model):
            for start in range(0, len(asked), batch_size):
                part = asked[start : start + batch_size]
                for (i, _), value in zip(part, self._agreement([request for _, request in part]), strict=True):
                    group = found[i]
                    if value is None or group is None:
                        found[i] = None
                    else:
                        group.append(value)
        return found

    @torch.no_grad()
    def _agreement(self, requests: Sequence[Request]) -> list[float | None]:
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
            **batch.pictures,
        )
        log_probs = torch.log_softmax(output.logits[:, -1].float(), dim=-1).cpu()
        for i, row in zip(prompts, log_probs, strict=True):
            yes, no = (row[self._beginnings(words[requests[i].language])].logsumexp(0) for words in (YES, NO))
            found[i] = float(torch.sigmoid(yes - no))
        return found

    def _beginnings(self, words: Sequence[str]) -> list[int]:
        """First tokens of the words."""
        return sorted({self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words})


def judging(request: Request, text: str) -> Request:
    """The same request, asked whether `text` is its answer. As a conversation, so that no short-answer suffix stands behind it."""
    *before, last = request.messages
    content = ASKED[request.language].format(question=last.content, answer=text.replace(IMAGE_MARK, " "))
    return replace(request, messages=(*before, Message(last.role, content)), task="conversation")
