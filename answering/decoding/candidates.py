"""Merge generated texts into distinct candidates, best first."""

import math
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from answering.protocol import Candidate

_OPENING = "\"'“‘「『([{（【《〈"
_CLOSING = "\"'”’」』)]}）】》〉"
_SENTENCE_ENDS = ".,;:!?…。，、；：！？"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer.

    Args:
        text: the answer after cleaning.
        raw: the text before cleaning.
        token_ids: token ids, or the tokens as text, including the end token. Generations with equal `token_ids` are the same sequence,
            sampled more than once.
        log_prob: log-probability of all tokens in nats; None if an endpoint returns none.
        penalised_log_prob: the same after the penalties of the decoding; None: there are none, or they are not known.
    """

    text: str
    raw: str
    token_ids: tuple[Hashable, ...]
    log_prob: float | None
    penalised_log_prob: float | None = None


def merge(generations: Sequence[Generation], length_penalty: float = 1.0) -> tuple[Candidate, ...]:
    """Distinct candidates, best first; ties keep the order of `generations`.

    Generations that are equal after normalisation are merged: the candidate has the text of the most probable one, and the
    probabilities of the distinct token sequences are added (log-sum-exp), so a sequence that was sampled twice counts once.
    `mean_log_prob` is the merged log-probability divided by the number of tokens of that text. If any generation has no
    log-probability, no candidate gets one: the first text is used, and the order is that of `generations`.

    The order is that of the search: merged log-probability / tokens ** length_penalty, after the penalties where there are any, so
    that an answer which a penalty pushed back does not come first again. The candidates' log-probabilities are those of the model.
    """
    groups: dict[str, list[Generation]] = {}
    for generation in generations:
        groups.setdefault(candidate_key(generation.text), []).append(generation)
    if any(generation.log_prob is None for generation in generations):
        return tuple(Candidate(group[0].text, None, None, group[0].raw, len(group)) for group in groups.values())
    merged = [_candidate(group, length_penalty) for group in groups.values()]
    return tuple(candidate for candidate, _ in sorted(merged, key=lambda scored: -scored[1]))


def _candidate(group: list[Generation], length_penalty: float) -> tuple[Candidate, float]:
    """Merge generations that all have a log-probability; the candidate and the score by which it is ordered."""
    best = max(group, key=_ranked_log_prob)
    log_prob = _log_sum_exp({generation.token_ids: generation.log_prob or 0.0 for generation in group})
    ranked = _log_sum_exp({generation.token_ids: _ranked_log_prob(generation) for generation in group})
    candidate = Candidate(best.text, log_prob, log_prob / len(best.token_ids), best.raw, len(group))
    return candidate, ranked / len(best.token_ids) ** length_penalty


def _ranked_log_prob(generation: Generation) -> float:
    return (generation.log_prob if generation.penalised_log_prob is None else generation.penalised_log_prob) or 0.0


def _log_sum_exp(distinct: dict[tuple[Hashable, ...], float]) -> float:
    highest = max(distinct.values())
    return highest + math.log(sum(math.exp(value - highest) for value in distinct.values()))


def candidate_key(text: str) -> str:
    """A key that is equal for texts that differ only in case, full-width forms, whitespace or surrounding punctuation.

    Marks with a meaning (`-5`, `$5`, `.5`, `5%`, `C++`) are kept; a text that is only punctuation keeps it.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded.lstrip(_OPENING).rstrip(_CLOSING + _SENTENCE_ENDS).strip()
    return bare or folded
