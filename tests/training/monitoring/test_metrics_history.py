import pytest

from training.monitoring.metrics_history import History, best_evaluation, should_stop_early


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [
        ([3.0], 1, False),
        ([3.0, 3.1], 1, True),
        ([3.0, 3.1], 2, False),
        ([3.0, 3.1, 2.9, 3.0], 2, False),
        ([3.0, 3.1, 2.9, 3.0, 2.9], 2, True),
        ([3.0, 2.0, 1.0], 1, False),
    ],
)
def test_early_stopping_after_as_many_evaluations_without_improvement_as_patience(losses: list[float], patience: int, stops: bool) -> None:
    assert should_stop_early(list(enumerate(losses)), patience) is stops


def test_the_best_evaluation_is_the_earliest_of_equal_losses() -> None:
    assert best_evaluation([(1, 2.0), (2, 1.0), (3, 1.0)]) == (2, 1.0)


def test_a_series_contains_the_rows_that_have_its_metric() -> None:
    history = History()
    history.rows.append({"step": 1, "stage": "a", "loss": 2.0})
    history.rows.append({"step": 1, "stage": "a", "eval_loss": 3.0})
    history.rows.append({"step": 2, "stage": "b", "eval_loss": 1.0})
    assert history.series("loss") == ([1], [2.0])
    assert history.validation("b") == [(2, 1.0)]
