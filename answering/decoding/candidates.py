"""Merge generated texts into distinct candidates, best first."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from answering.decoding.candidate_text_key import candidate_key
from answering.protocol import Candidate


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer.

    Args:
        text: the answer after cleaning.
        raw: the text before cleaning.
        token_ids: token ids, or the tokens as text, including the end token. Generations with equal `token_ids` are the same sequence,
            sampled more than once.
        log_prob: log-probability of all tokens in nats; None if an endpoint returns none.
    """

    text: str
    raw: str
    token_ids: tuple[Hashable, ...]
    log_prob: float | None

    @property
    def tokens(self) -> int:
        """Number of tokens, including the end token."""
        return len(self.token_ids)


def merge(generations: Sequence[Generation]) -> tuple[Candidate, ...]:
    """Distinct candidates, the highest mean log-probability first; ties keep the order of `generations`.

    Generations that are equal after normalisation are merged: the candidate has the text of the most probable one, and the
    probabilities of the distinct token sequences are added (log-sum-exp), so a sequence that was sampled twice counts once.
    `mean_log_prob` is the merged log-probability divided by the number of tokens of that text. If any generation has no
    log-probability, no candidate gets one: the first text is used, and the order is that of `generations`.
    """
    all_scored = all(generation.log_prob is not None for generation in generations)
    groups: dict[str, list[Generation]] = {}
    for generation in generations:
        groups.setdefault(candidate_key(generation.text), []).append(generation)
    if not all_scored:
        return tuple(Candidate(group[0].text, None, None, group[0].raw, len(group)) for group in groups.values())
    merged = [_candidate(group) for group in groups.values()]
    return tuple(sorted(merged, key=lambda candidate: -(candidate.mean_log_prob or 0.0)))


def _candidate(group: list[Generation]) -> Candidate:
    """Merge generations that all have a log-probability."""
    scored = [(generation.log_prob or 0.0, generation) for generation in group]
    highest, best = max(scored, key=lambda pair: pair[0])
    distinct = {generation.token_ids: log_prob for log_prob, generation in scored}
    log_prob = highest + math.log(sum(math.exp(value - highest) for value in distinct.values()))
    return Candidate(best.text, log_prob, log_prob / best.tokens, best.raw, len(group))
