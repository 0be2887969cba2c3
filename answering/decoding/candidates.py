"""From generated texts to distinct candidates, best first."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from answering.decoding.candidate_text_key import merging_key
from answering.protocol import Candidate


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer: its text after and before cleaning; `tokens` counts the end token, which `log_prob` (in nats) includes too.

    Generations with equal `token_ids` (ids, or the tokens as text) are one and the same sequence, drawn more than once.
    Where an endpoint gives no log-probabilities, `log_prob` is None.
    """

    text: str
    raw: str
    token_ids: tuple[Hashable, ...]
    log_prob: float | None

    @property
    def tokens(self) -> int:
        """Length, end token counted."""
        return len(self.token_ids)


def merge(generations: Sequence[Generation]) -> tuple[Candidate, ...]:
    """Distinct candidates, the highest mean log-probability first; ties keep the order of `generations`.

    Of generations that are equal after normalisation the likelier text stays and the probabilities of their distinct
    token sequences add (log-sum-exp): a sequence that was sampled twice counts once. `mean_log_prob` is the merged
    log-probability over the tokens of the text that stays. Where one has no log-probability, they tell nothing apart:
    no candidate gets one, the first text stays, and the order is that of `generations`.
    """
    all_scored = all(generation.log_prob is not None for generation in generations)
    groups: dict[str, list[Generation]] = {}
    for generation in generations:
        groups.setdefault(merging_key(generation.text), []).append(generation)
    if not all_scored:
        return tuple(Candidate(group[0].text, None, None, group[0].raw, len(group)) for group in groups.values())
    merged = [_candidate(group) for group in groups.values()]
    return tuple(sorted(merged, key=lambda candidate: -(candidate.mean_log_prob or 0.0)))


def _candidate(group: list[Generation]) -> Candidate:
    """Of generations that all have a log-probability."""
    scored = [(generation.log_prob or 0.0, generation) for generation in group]
    highest, best = max(scored, key=lambda pair: pair[0])
    distinct = {generation.token_ids: log_prob for log_prob, generation in scored}
    log_prob = highest + math.log(sum(math.exp(value - highest) for value in distinct.values()))
    return Candidate(best.text, log_prob, log_prob / best.tokens, best.raw, len(group))
