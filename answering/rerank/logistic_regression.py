"""Apply a fitted logistic regression over named features, and isotonic calibration. `evaluation.calibration` fits them."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UsageError


@dataclass(frozen=True, slots=True)
class LogisticModel:
    """P = 1 / (1 + exp(-(bias + features . weights)))."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float

    def probabilities(self, features: Mapping[str, Sequence[float]]) -> list[float]:
        """One probability per element of the feature sequences. Raises UsageError if features of the fit are missing."""
        if missing := [name for name in self.names if name not in features]:
            raise UsageError(
                f"the model fitted on the validation split needs the features {', '.join(missing)}; the rerank settings have changed since"
            )
        table = np.array([features[name] for name in self.names], dtype=np.float64)
        return sigmoid(np.array(self.weights) @ table + self.bias).tolist()  # type: ignore[no-any-return]


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


@dataclass(frozen=True, slots=True)
class IsotonicSteps:
    """A rising step function, as fitted by isotonic regression: `values[i]` from `starts[i]` on; below the first start, the first value."""

    starts: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, x: float) -> float:
        return self.values[max(0, bisect_right(self.starts, x) - 1)]
