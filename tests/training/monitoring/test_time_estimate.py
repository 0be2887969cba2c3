"""Time gone and left, on a clock that the test moves."""

from training.monitoring.time_estimate import TimeEstimate, hours


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
