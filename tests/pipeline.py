"""Commands run as a user runs them: real processes in an empty folder."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def workspace(folder: Path) -> Path:
    """A folder with the project's commands and configurations, but none of its data."""
    for name in ("tools", "configs", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(folder: Path, command: str, timeout: int = 300, stdin: str = "") -> str:
    """Run a command line in a folder; its output and error output. Fails with both when its status is not 0."""
    words = shlex.split(command, comments=True)
    words[0] = {"python": sys.executable, "accelerate": str(BIN / "accelerate")}.get(words[0], words[0])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, input=stdin, capture_output=True, encoding="utf-8", timeout=timeout, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{output}"
    return output
