"""Ctrl-C (SIGINT) and SIGTERM, which clusters send before they take a machine away, as requests to stop after an optimizer step.

In: signals. Out: `requested` while a step may be finished first, an `Interrupted` exception otherwise. The second signal ends the
process at once. Loads no torch, so that the handlers are in place while it is imported.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from errors import Interrupted

HANDLED = (signal.SIGINT, signal.SIGTERM)

COPY_SECONDS = 3.0
"""Under a launcher the same signal may come twice, from the cluster and from the launcher, which passes its own on. One that comes
within this time is taken for such a copy."""


class StopSignals:
    """Context in which SIGINT and SIGTERM request a stop; the handlers of before are restored at its end.

    copy_seconds: time within which the same signal is taken for a copy of the first one; clock: returns seconds, tests replace it.
    """

    def __init__(self, copy_seconds: float | None = None, clock: Callable[[], float] = time.monotonic):
        # Torch's elastic launcher (accelerate launch, torchrun) passes its signals on.
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        self._copy_seconds = (COPY_SECONDS if launched else 0.0) if copy_seconds is None else copy_seconds
        self._clock, self._pid = clock, os.getpid()
        self._first: float | None = None
        self._finish_step = False
        self._before: dict[int, Any] = {}
        self.requested = 0
        """Number of the signal that requested a stop; 0 when there was none."""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def finish_steps(self, enabled: bool) -> None:
        """Whether a signal lets the current step be finished; otherwise, as at first, it raises `Interrupted` where it finds the
        main thread, as KeyboardInterrupt does."""
        self._finish_step = enabled

    @contextlib.contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn a RuntimeError after a signal into `Interrupted`: another rank ended first, and this one waited for it."""
        try:
            yield
        except RuntimeError as error:
            if not self.requested:
                raise
            name = signal.Signals(self.requested).name
            raise Interrupted(self.requested, f"{name}: another process ended first, so this step has no checkpoint ({error})") from error

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a child process between its fork and its own handlers
        now = self._clock()
        if self._first is not None:
            if number != self.requested or now - self._first > self._copy_seconds:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self._first, self.requested = now, number
        if not self._copy_seconds:
            # From here on the system ends the process, also where Python would not come to run a handler.
            for handled in HANDLED:
                signal.signal(handled, signal.SIG_DFL)
        if not self._finish_step:
            raise Interrupted(number, f"{signal.Signals(number).name} before a stage's first step was done: there was nothing to save")
        if os.environ.get("RANK", "0") == "0":
            # Not `print`: the signal may have come in the middle of one.
            os.write(2, f"{signal.Signals(number).name}: finishing this step, then a checkpoint; a second signal ends at once\n".encode())


def ignore_stop_signals(_worker: int = 0) -> None:
    """Let a DataLoader worker outlive the signals that a launcher or a terminal sends to all processes of a run.

    The main process still needs its workers for the step that it finishes, and ends them itself. SIGTERM from the main process
    ends the worker as before. Given to DataLoader as `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows, where no cluster sends SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_sigterm_of_parent, args=(os.getppid(),), daemon=True).start()


def _end_on_sigterm_of_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
