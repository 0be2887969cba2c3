"""Early stopping on the validation loss."""

from collections.abc import Sequence


def best(validation: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """Step and loss of the lowest validation loss; the earliest of equal ones. validation: not empty."""
    return min(validation, key=lambda pair: pair[1])


def out_of_patience(validation: Sequence[tuple[int, float]], patience: int) -> bool:
    """True when the last `patience` validations have not come below the best one before them."""
    if len(validation) <= patience:
        return False
    return best(validation) in validation[:-patience]
