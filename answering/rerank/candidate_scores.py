"""The scores of a question's candidates: one `Signal` per scorer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

SELF_EVALUATION = "self"
"""Name of the answerer's own signal: its probability of "yes, this answer is right"."""
CORRECTED_SUFFIX = "_corrected"
"""Suffix of a scorer's name for its scores minus the mean scores of the same texts on background images."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The scores that one scorer gives to the candidates of a question, in their order.

    scores: logits, or probabilities for `self`. prior: the mean score of the same text over background images; None without them.
    """

    scores: tuple[float, ...]
    prior: tuple[float, ...] | None = None

    @property
    def corrected(self) -> tuple[float, ...] | None:
        """Scores minus prior: how much better a text fits this image than an unrelated one."""
        return None if self.prior is None else tuple(score - prior for score, prior in zip(self.scores, self.prior, strict=True))


Signals: TypeAlias = Mapping[str, Signal]
"""Signals by the name of the scorer: "clip", others as configured, and `self`."""


def scores_by_name(signals: Signals) -> dict[str, tuple[float, ...]]:
    """The scores of each image-text scorer by its name and, where they have a prior, corrected by <name>_corrected; last `self`."""
    by_name: dict[str, tuple[float, ...]] = {}
    for name, signal in signals.items():
        if name != SELF_EVALUATION:
            by_name[name] = signal.scores
            if signal.corrected is not None:
                by_name[name + CORRECTED_SUFFIX] = signal.corrected
    return by_name | ({SELF_EVALUATION: signals[SELF_EVALUATION].scores} if SELF_EVALUATION in signals else {})


def fill_missing(signals: Signals, has_priors: Mapping[str, bool], k: int) -> dict[str, Signal]:
    """The signals of k candidates. A missing one is filled with zeros: a scorer that did not score a question finds all candidates equal.

    has_priors: the names of the signals that must be there, and whether each has a prior.
    """
    zeros = (0.0,) * k
    return {name: signals.get(name) or Signal(zeros, zeros if has_prior else None) for name, has_prior in has_priors.items()}
