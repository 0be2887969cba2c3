"""One process at a time in a folder, such as one training in a checkpoint folder."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import file_lock
from errors import UsageError
from file_lock import folder_lock
from tests.pipeline import ROOT

LOCK_FILE = ".lock"
HOLDER = """
import pathlib, sys
from file_lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), ".lock", "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_training_in_a_folder_is_refused_with_the_first_ones_process_and_host(tmp_path: Path) -> None:
    first = holder(tmp_path / "toy")
    with (
        pytest.raises(UsageError, match=rf"toy: process {first.pid} on {socket.gethostname()} is training here"),
        folder_lock(tmp_path / "toy", LOCK_FILE, "training"),
    ):
        pass
    first.communicate("")
    with folder_lock(tmp_path / "toy", LOCK_FILE, "training"):
        assert (tmp_path / "toy" / LOCK_FILE).read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    first = holder(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with folder_lock(tmp_path, LOCK_FILE, "training"):
        pass


def test_a_child_process_does_not_hold_the_lock_of_a_killed_run(tmp_path: Path) -> None:
    # As a DataLoader worker that has not yet seen that its main process is gone.
    program = HOLDER.replace("print(", "import os\n    if os.fork() == 0:\n        sys.stdin.read()\n        os._exit(0)\n    print(")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdout.readline() == b"held\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    with folder_lock(tmp_path, LOCK_FILE, "training"):
        pass
    first.communicate()


def test_nothing_is_left_of_the_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / "toy", LOCK_FILE, "training"):
        pass
    assert not (tmp_path / "a" / "toy").exists()
    with folder_lock(tmp_path, LOCK_FILE, "training"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_lock, "_lock", refuse)
    with folder_lock(tmp_path, LOCK_FILE, "training"):
        assert "this file system has no locks (No locks available): nothing keeps a second training out" in capsys.readouterr().out
