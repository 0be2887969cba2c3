import pytest

from training.optimization.lr_scheduler import cosine_with_warmup


def test_the_rate_rises_from_above_zero_and_falls_to_zero() -> None:
    shares = [cosine_with_warmup(step, warmup_steps=3, steps=10) for step in range(11)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[3:] == sorted(shares[3:], reverse=True)
    assert shares[10] == pytest.approx(0, abs=1e-12)
    assert shares[9] > 0


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert cosine_with_warmup(0, warmup_steps=0, steps=4) == 1.0
