"""What SIGINT and SIGTERM do to a training process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from errors import Interrupted
from tests.pipeline import ROOT
from training.interruption.stop_signals import StopSignals


def test_before_a_step_is_done_a_signal_ends_the_run_where_it_is() -> None:
    with StopSignals() as signals, pytest.raises(Interrupted, match="SIGTERM before a stage's first step was done"):
        signal.raise_signal(signal.SIGTERM)
    assert signals.requested == signal.SIGTERM


def test_within_a_stage_a_signal_only_asks_for_a_stop(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals:
        signals.finish_steps(True)
        signal.raise_signal(signal.SIGINT)
    assert signals.requested == signal.SIGINT
    assert capfd.readouterr().err == "SIGINT: finishing this step, then a checkpoint; a second signal ends at once\n"


def test_the_handlers_of_before_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignals() as signals:
        signals.finish_steps(True)
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def after_two_signals(copy_seconds: float, seconds_between: float) -> int:
    """Exit status of a process that gets SIGTERM twice during a step."""
    program = f"""
import signal
from training.interruption.stop_signals import StopSignals
now = 0.0
with StopSignals({copy_seconds}, lambda: now) as signals:
    signals.finish_steps(True)
    signal.raise_signal(signal.SIGTERM)
    now = {seconds_between}
    signal.raise_signal(signal.SIGTERM)
"""
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode


def test_a_second_signal_ends_the_process_at_once() -> None:
    assert after_two_signals(copy_seconds=0.0, seconds_between=0.0) == -signal.SIGTERM


def test_the_launchers_copy_of_a_signal_is_no_second_signal() -> None:
    assert after_two_signals(copy_seconds=3.0, seconds_between=1.0) == 0
    assert after_two_signals(copy_seconds=3.0, seconds_between=4.0) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_exits_with_the_signals_status(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(_arguments: object) -> None:
        raise Interrupted(number, "stopped after step 3")

    for rank, printed in (("0", "stopped after step 3\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(main, cli.Parser("a command", takes_config=False), [])
        assert exit_info.value.code == 128 + number
        assert capsys.readouterr().err == printed


def test_loading_workers_outlive_the_signals_of_a_launcher(tmp_path: Path) -> None:
    """In a process of its own: loaders that other tests used leave handlers behind."""
    program = tmp_path / "program.py"
    program.write_text("""
import os, subprocess, sys
from torch.utils.data import DataLoader
from training.interruption.stop_signals import ignore_stop_signals

class SignalledData:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        # What a launcher sends to its whole process group while a sample is loaded.
        sender = f"import os, signal; [os.kill({os.getpid()}, number) for number in (signal.SIGINT, signal.SIGTERM)]"
        subprocess.run([sys.executable, "-S", "-c", sender], check=True)
        return index

loader = DataLoader(SignalledData(), batch_size=None, num_workers=1, worker_init_fn=ignore_stop_signals)
raise SystemExit(0 if list(loader) == [0, 1] else 1)
""")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, str(program)], env=environment, check=False, timeout=100).returncode == 0


def test_a_worker_still_ends_when_its_main_process_says_so(tmp_path: Path) -> None:
    program = f"""
import multiprocessing, pathlib, time
from training.interruption.stop_signals import ignore_stop_signals
def work():
    ignore_stop_signals()
    pathlib.Path({str(tmp_path / "ready")!r}).touch()
    time.sleep(600)
worker = multiprocessing.get_context("fork").Process(target=work)
worker.start()
while not pathlib.Path({str(tmp_path / "ready")!r}).exists():
    time.sleep(0.01)
worker.terminate()
worker.join(60)
raise SystemExit(0 if worker.exitcode == 0 else 1)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False, timeout=100).returncode == 0
