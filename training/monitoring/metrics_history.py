"""What was measured in the course of a run: one row a log step or validation, over all stages."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
"""`step` (over all stages), `stage`, and either `loss`, learning rates, rates; or `eval_loss`."""


@dataclass
class History:
    """Rows in the order of their steps. It travels in every checkpoint, so that curves go on where a run was broken off."""

    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of the rows that have `key`."""
        found = [row for row in self.rows if key in row]
        return [int(row["step"]) for row in found], [float(row[key]) for row in found]

    def validation(self, stage: str) -> list[tuple[int, float]]:
        """(step, validation loss) of a stage."""
        return [(int(row["step"]), float(row["eval_loss"])) for row in self.rows if row["stage"] == stage and "eval_loss" in row]
