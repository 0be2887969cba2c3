"""What is known of a question's candidates beside their texts: one signal a scorer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

SELF_EVALUATION = "self"
"""Name of the signal that the answerer itself gives: its probability of "yes, this answer is right"."""
CORRECTED_SUFFIX = "_corrected"
"""Behind a scorer's name: its scores minus what the same texts score on unrelated pictures."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one scorer says of the candidates, in their order.

    scores: a logit each, or a probability for `self`; prior: the mean score of the same text over a bank of unrelated
    pictures, None where there is no bank.
    """

    scores: tuple[float, ...]
    prior: tuple[float, ...] | None = None

    @property
    def corrected(self) -> tuple[float, ...] | None:
        """Scores minus prior: how much better a text fits this picture than any."""
        return None if self.prior is None else tuple(score - prior for score, prior in zip(self.scores, self.prior, strict=True))


Signals: TypeAlias = Mapping[str, Signal]
"""By the name of the scorer: "clip", others as configured, and `self`."""


def image_text_signals(signals: Signals) -> dict[str, Signal]:
    """The signals of scorers that look at pictures."""
    return {name: signal for name, signal in signals.items() if name != SELF_EVALUATION}


def fill_missing(signals: Signals, has_priors: Mapping[str, bool], k: int) -> dict[str, Signal]:
    """The signals of k candidates with those that are missing filled in: a scorer that had nothing to look at finds all alike.

    kinds: the signals that there must be, and whether each has a prior.
    """
    zeros = (0.0,) * k
    return {name: signals.get(name) or Signal(zeros, zeros if has_prior else None) for name, has_prior in has_priors.items()}
