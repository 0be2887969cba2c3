"""Status lines, and the time gone and left in them, on a clock that the test moves."""

from training.monitoring.console import TimeEstimate, hours, status_line

ROW = {
    "step": 1200, "stage": "tune", "loss": 1.23456, "grad_norm": 0.5, "learning_rate/connector": 1e-4, "learning_rate/lora": 2e-4,
    "supervised_tokens_per_second": 12345.6, "samples_per_second": 58.83, "peak_memory_gib": 43.9, "data_wait": 0.031,
}  # fmt: skip


TIMES = "0:01:23 gone, 0:12:10 left"


def test_a_log_step_is_one_line_with_all_metrics() -> None:
    assert status_line(ROW, 6400, TIMES) == (
        "step 1,200/6,400 tune | loss 1.2346 | lr connector 1.00e-04 lora 2.00e-04 | grad norm 0.5 | 12,346 supervised tokens/s"
        " | 58.8 samples/s | peak 43.90 GiB | data wait 3% | 0:01:23 gone, 0:12:10 left"
    )


def test_a_device_with_a_known_peak_shows_tflops_and_mfu() -> None:
    assert status_line({**ROW, "tflops": 371.2, "mfu": 0.3753}, 6400, TIMES).endswith(
        " | data wait 3% | 371 TFLOP/s, MFU 37.5% | 0:01:23 gone, 0:12:10 left"
    )


def test_an_evaluation_has_its_own_line() -> None:
    row = {"step": 5, "stage": "tune", "eval_loss": 0.75, "eval_tokens": 1600}
    assert status_line(row, 10, TIMES) == "step 5/10 tune | validation loss 0.7500 over 1,600 tokens"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps(estimate: TimeEstimate, clock: Clock, *seconds: float) -> None:
    for duration in seconds:
        clock.now += duration
        estimate.count_step()


def test_time_is_told_in_hours_minutes_and_seconds() -> None:
    assert [hours(83), hours(730), hours(370_805), hours(59.6)] == ["0:01:23", "0:12:10", "103:00:05", "0:01:00"]


def test_before_the_second_step_nothing_is_said_about_the_time_left() -> None:
    clock = Clock()
    estimate = TimeEstimate(clock)
    steps(estimate, clock, 40)
    assert estimate.describe(99) == "0:00:40 gone"


def test_the_first_step_of_a_stage_which_compiles_does_not_count_for_the_time_left() -> None:
    clock = Clock()
    estimate = TimeEstimate(clock)
    steps(estimate, clock, 40, 2, 2, 2)
    assert estimate.describe(100) == "0:00:46 gone, 0:03:20 left"


def test_the_time_of_evaluations_counts_for_the_steps_to_come() -> None:
    clock = Clock()
    estimate = TimeEstimate(clock)
    steps(estimate, clock, 40, 2)
    clock.now += 6  # an evaluation
    steps(estimate, clock, 2)
    assert estimate.describe(10) == "0:00:50 gone, 0:00:50 left"


def test_a_new_stage_is_measured_anew_and_until_then_taken_to_be_as_fast_as_the_one_before() -> None:
    clock = Clock()
    estimate = TimeEstimate(clock)
    steps(estimate, clock, 1, 2)
    assert estimate.describe(10).endswith("0:00:20 left")
    estimate.begin_stage()
    steps(estimate, clock, 30)
    assert estimate.describe(10).endswith("0:00:20 left")
    steps(estimate, clock, 4)
    assert estimate.describe(10) == "0:00:37 gone, 0:00:40 left"
