"""Time gone and time left of a run, for its status lines."""

import time
from collections.abc import Callable


class TimeEstimate:
    """Time since this command began to train, and the time that its remaining steps will take.

    A step takes as long as the steps of its stage took on average, evaluations and checkpoints included, without the stage's first
    step, which also fills the loaders and compiles. Later stages are taken to be as fast. After a resume both count from there.

    clock: Returns seconds; tests replace it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._began = clock, clock()
        self._seconds_per_step: float | None = None
        self.begin_stage()

    def begin_stage(self) -> None:
        """Measure anew; until its second step, a stage is taken to be as fast as the one before."""
        self._first_step_end: float | None = None
        self._steps = 0

    def count_step(self) -> None:
        """To be called at the end of each optimizer step."""
        if self._first_step_end is None:
            self._first_step_end = self._clock()
        else:
            self._steps += 1

    def describe(self, steps_left: int) -> str:
        """Such as "0:01:23 gone, 0:12:10 left"; only the time gone as long as nothing was measured."""
        now = self._clock()
        if self._steps and self._first_step_end is not None:
            self._seconds_per_step = (now - self._first_step_end) / self._steps
        gone = f"{hours(now - self._began)} gone"
        return gone if self._seconds_per_step is None else f"{gone}, {hours(self._seconds_per_step * steps_left)} left"


def hours(seconds: float) -> str:
    """Hours, minutes and seconds, such as 0:12:10 or 103:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
