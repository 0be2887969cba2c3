"""How decoding settings change which token comes next, and when an answer ends; one form of them for all models in this process.

The settings read the answer's own tokens alone: an answer may repeat words of its question. transformers' classes do the work.

Shapes: R rows, L tokens of the answer so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from answering.decoding.stop_strings import StopStrings
from answering.protocol import Decoding


class CountPenalty(LogitsProcessor):
    """Subtracts `frequency` for each time that an answer has a token, and `presence` if it has it at all.

    Source: OpenAI's API reference, "Frequency and presence penalties".
    """

    def __init__(self, presence: float, frequency: float):
        self.presence, self.frequency = presence, frequency

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        counts = torch.zeros_like(scores).scatter_add_(1, input_ids, torch.ones_like(input_ids, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


@dataclass(frozen=True, slots=True)
class DecodingRules:
    """The rules of one decoding.

    Args:
        max_new_tokens: longest answer in tokens, including the end token.
        end_ids: token ids that end an answer.
        penalties: change logits [R, V] by the tokens [R, L] of the answer so far, in every strategy.
        warpers: change them afterwards where tokens are sampled: temperature, top_k, top_p.
        length_penalty: of beam search.
        stop: texts that end an answer; None: there are none.
    """

    max_new_tokens: int
    end_ids: Sequence[int]
    penalties: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    warpers: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    length_penalty: float = 1.0
    stop: StopStrings | None = None

    @classmethod
    def from_config(cls, decoding: Decoding, end_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Self:
        """The rules of decoding settings, in the order of transformers' `generate`. decode: text of token ids, with its whitespace."""
        penalties, warpers = LogitsProcessorList(), LogitsProcessorList([TemperatureLogitsWarper(decoding.temperature)])
        if decoding.repetition_penalty != 1.0:
            penalties.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
        if decoding.presence_penalty or decoding.frequency_penalty:
            penalties.append(CountPenalty(decoding.presence_penalty, decoding.frequency_penalty))
        if decoding.no_repeat_ngram_size:
            penalties.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram_size))
        if decoding.top_k:
            warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1.0:
            warpers.append(TopPLogitsWarper(decoding.top_p))
        stop = StopStrings(decoding.stop, decode) if decoding.stop else None
        return cls(decoding.max_new_tokens, end_ids, penalties, warpers, decoding.length_penalty, stop)

    def stopped(self, tokens: torch.Tensor) -> torch.Tensor:
        """Whether the latest of the tokens [..., L] completes a stop text: bool [...]."""
        if self.stop is None:
            return torch.zeros(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        found = [self.stop.newly_found(row) for row in tokens.flatten(0, -2).tolist()]
        return torch.tensor(found, device=tokens.device).view(tokens.shape[:-1])
