"""The loss axis shows what matters: the first steps, whose losses are many times the others, may lie above it."""

from pathlib import Path

import pytest

from training.monitoring import loss_curves
from training.monitoring.metrics_history import History


def history(losses: list[float]) -> History:
    return History([{"step": 10 * step, "stage": "tune", "loss": loss, "learning_rate/lora": 1e-3} for step, loss in enumerate(losses)])


def test_the_axis_ends_above_all_losses_but_the_first() -> None:
    rows = history([9.0, 4.0, *[1.0 - 0.01 * step for step in range(30)]])
    assert loss_curves._top(rows) == pytest.approx(1.1 * 0.98)
    rows.rows.append({"step": 300, "stage": "tune", "eval_loss": 1.5})
    assert loss_curves._top(rows) == pytest.approx(1.65)


def test_an_axis_on_which_all_losses_have_room_is_not_cut(tmp_path: Path) -> None:
    assert loss_curves._top(history([1.0, 1.05, 1.0])) is None
    assert loss_curves._top(History()) is None
    loss_curves.plot_loss_curves(history([9.0, *[1.0] * 20]), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
