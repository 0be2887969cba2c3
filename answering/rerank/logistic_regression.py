"""A fitted probability as plain numbers: logistic regression over named features, and steps that calibrate it.

Fitting, which needs references, is the evaluation's; here the numbers are only used.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UsageError


@dataclass(frozen=True, slots=True)
class LogisticModel:
    """Probability 1 / (1 + exp(-(bias + features . weights)))."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    def probabilities(self, features: Mapping[str, Sequence[float]]) -> list[float]:
        """One for each place of the features' sequences. Raises UsageError when the features are not those of the fit."""
        if missing := [name for name in self.names if name not in features]:
            raise UsageError(
                f"what was fitted on the validation split needs {', '.join(missing)}; the settings of rerank have changed since"
            )
        table = np.array([features[name] for name in self.names], dtype=np.float64)
        return sigmoid(np.array(self.weights) @ table + self.bias).tolist()  # type: ignore[no-any-return]


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


@dataclass(frozen=True, slots=True)
class IsotonicSteps:
    """A rising staircase, as isotonic regression gives: from `starts[i]` on the value is `values[i]`; below the first, the first."""

    starts: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, x: float) -> float:
        return self.values[max(0, bisect_right(self.starts, x) - 1)]
