import pytest

from training.monitoring.metrics_history import History
from training.optimization.early_stopping import best_evaluation, should_stop_early


@pytest.mark.parametrize(
    ("losses", "patience", "over"),
    [
        ([3.0], 1, False),
        ([3.0, 3.1], 1, True),
        ([3.0, 3.1], 2, False),
        ([3.0, 3.1, 2.9, 3.0], 2, False),
        ([3.0, 3.1, 2.9, 3.0, 2.9], 2, True),
        ([3.0, 2.0, 1.0], 1, False),
    ],
)
def test_patience_ends_when_nothing_better_has_come_for_so_long(losses: list[float], patience: int, over: bool) -> None:
    assert should_stop_early(list(enumerate(losses)), patience) is over


def test_the_best_validation_is_the_earliest_of_equals() -> None:
    assert best_evaluation([(1, 2.0), (2, 1.0), (3, 1.0)]) == (2, 1.0)


def test_rows_are_found_by_what_they_measure() -> None:
    history = History()
    history.add({"step": 1, "stage": "a", "loss": 2.0})
    history.add({"step": 1, "stage": "a", "eval_loss": 3.0})
    history.add({"step": 2, "stage": "b", "eval_loss": 1.0})
    assert history.series("loss") == ([1], [2.0])
    assert history.validation("b") == [(2, 1.0)]
