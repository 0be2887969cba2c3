"""Metrics of a run over all stages: one row per log step or evaluation. Early stopping on the validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""Keys: `step` (over all stages), `stage`, and either `loss`, `grad_norm`, learning rates and throughput, or `eval_loss` and
`eval_tokens`."""


@dataclass
class History:
    """Rows in the order of their steps. Every checkpoint contains it, so that the curves of a resumed run are complete."""

    rows: list[Row] = field(default_factory=list)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have `key`."""
        rows = [row for row in self.rows if key in row]
        return [int(row["step"]) for row in rows], [float(row[key]) for row in rows]

    def validation(self, stage: str) -> list[tuple[int, float]]:
        """(step, validation loss) of every evaluation of a stage."""
        return [(int(row["step"]), float(row["eval_loss"])) for row in self.rows if row["stage"] == stage and "eval_loss" in row]


def best_evaluation(validation: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """(step, loss) of the lowest validation loss, the earliest of equal ones. validation: (step, loss) pairs, not empty."""
    return min(validation, key=lambda pair: pair[1])


def should_stop_early(validation: Sequence[tuple[int, float]], patience: int) -> bool:
    """True when none of the last `patience` evaluations improved on the best one before them."""
    return len(validation) > patience and best_evaluation(validation) in validation[:-patience]
