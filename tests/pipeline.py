"""Run commands as a user does: as processes in an empty folder."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def workspace(folder: Path) -> Path:
    """Link the project's commands and configurations, but none of its data, into `folder`; returns it."""
    for name in ("tools", "configs", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(folder: Path, command: str, timeout: int = 300, stdin: str = "") -> str:
    """Run a command line and return its standard output and standard error. Asserts that its exit status is 0.

    Args:
        folder: working directory.
        command: command line; comments are removed.
        timeout: seconds.
        stdin: text for standard input.
    """
    words = shlex.split(command, comments=True)
    words[0] = {"python": sys.executable, "accelerate": str(BIN / "accelerate")}.get(words[0], words[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    completed = subprocess.run(
        words, cwd=folder, env=environment, input=stdin, capture_output=True, encoding="utf-8", timeout=timeout, check=False
    )
    output = completed.stdout + completed.stderr
    assert completed.returncode == 0, f"{command}: status {completed.returncode}\n{output}"
    return output
