import pytest

from training.optimization.lr_scheduler import num_warmup_steps, rate_factor


def test_warm_up_starts_above_zero_and_the_cosine_ends_at_zero() -> None:
    factors = [rate_factor(step, "cosine", warmup_steps=3, steps=10) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[10] == pytest.approx(0, abs=1e-12)
    assert factors[9] > 0


def test_without_warm_up_the_first_step_has_the_peak_learning_rate() -> None:
    assert rate_factor(0, "cosine", warmup_steps=0, steps=4) == 1.0


def test_warm_up_is_a_number_of_steps_or_below_one_a_share_of_them() -> None:
    assert [num_warmup_steps(value, 600) for value in (0.0, 0.05, 1, 100)] == [0, 30, 1, 100]
    assert num_warmup_steps(0.03, 10) == 1  # rounded up


def test_the_linear_schedule_falls_by_equal_steps_to_zero() -> None:
    factors = [rate_factor(step, "linear", warmup_steps=2, steps=6) for step in range(7)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0])
