"""Early stopping on the validation loss."""

from collections.abc import Sequence


def best_evaluation(validation: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """(step, loss) of the lowest validation loss, the earliest of equal ones. validation: (step, loss) pairs, not empty."""
    return min(validation, key=lambda pair: pair[1])


def should_stop_early(validation: Sequence[tuple[int, float]], patience: int) -> bool:
    """True when none of the last `patience` evaluations improved on the best one before them."""
    if len(validation) <= patience:
        return False
    return best_evaluation(validation) in validation[:-patience]
