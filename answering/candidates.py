"""From generated texts to distinct candidates, best first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from answering.normalise import merging_key
from answering.protocol import Candidate


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer: its text after and before cleaning; `tokens` counts the end token, which `log_prob` (in nats) includes too.

    Generations with equal `token_ids` are one and the same sequence, drawn more than once.
    """

    text: str
    raw: str
    token_ids: tuple[int, ...]
    log_prob: float

    @property
    def tokens(self) -> int:
        """Length, end token counted."""
        return len(self.token_ids)


def merge(generations: Sequence[Generation]) -> tuple[Candidate, ...]:
    """Distinct candidates, the highest mean log-probability first; ties keep the order of `generations`.

    Of generations that are equal after normalisation the likelier text stays and the probabilities of their distinct
    token sequences add (log-sum-exp): a sequence that was sampled twice counts once. `mean_log_prob` is the merged
    log-probability over the tokens of the text that stays.
    """
    groups: dict[str, list[Generation]] = {}
    for generation in generations:
        groups.setdefault(merging_key(generation.text), []).append(generation)
    merged = [_candidate(group) for group in groups.values()]
    return tuple(sorted(merged, key=lambda candidate: -(candidate.mean_log_prob or 0.0)))


def _candidate(group: list[Generation]) -> Candidate:
    best = max(group, key=lambda generation: generation.log_prob)
    distinct = {generation.token_ids: generation.log_prob for generation in group}
    log_prob = best.log_prob + math.log(sum(math.exp(value - best.log_prob) for value in distinct.values()))
    return Candidate(best.text, log_prob, log_prob / best.tokens, best.raw, len(group))
