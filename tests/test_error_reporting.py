"""An error of one of several processes is printed once, with its rank, and stands in the launcher's summary."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
import cli
from errors import TesseraError, UsageError

def main(arguments):
    if os.environ["RANK"] in arguments.failing.split(","):
        raise {"usage": UsageError("data.folder: missing"), "defect": KeyError("sample")}[arguments.kind]

parser = cli.Parser("A command.", False)
parser.add_argument("kind")
parser.add_argument("failing")
cli.run(main, parser)
"""


def run_rank(rank: int, folder: Path, *arguments: str) -> tuple[int, str, Path]:
    """Exit status, standard error and error file of one of two processes, in the environment that torchrun makes."""
    error_file = folder / "attempt_0" / str(rank) / "error.json"
    error_file.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(error_file)}
    completed = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)
    return completed.returncode, completed.stderr, error_file


def test_an_error_of_any_rank_is_printed_with_its_rank(tmp_path: Path) -> None:
    status, printed, error_file = run_rank(1, tmp_path, "usage", "1")
    assert (status, printed) == (2, "error: rank 1: data.folder: missing\n")
    assert json.loads(error_file.read_text())["message"]["message"] == "rank 1: data.folder: missing"


def test_an_error_that_all_ranks_have_is_printed_once(tmp_path: Path) -> None:
    first, second = (run_rank(rank, tmp_path, "usage", "0,1") for rank in (0, 1))
    assert first[:2] == (2, "error: rank 0: data.folder: missing\n")
    assert second[:2] == (2, "")
    assert second[2].exists(), "the launcher's summary has it"


def test_a_defect_ends_with_its_rank_after_the_traceback(tmp_path: Path) -> None:
    status, printed, error_file = run_rank(1, tmp_path, "defect", "1")
    assert status == 1
    assert printed.startswith("Traceback")
    assert printed.endswith("error: rank 1: KeyError: 'sample'\n")
    assert "Traceback" in json.loads(error_file.read_text())["message"]["extraInfo"]["py_callstack"]


@pytest.mark.slow
def test_the_launchers_own_summary_has_the_error(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), "usage", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    printed = subprocess.run(command, env=env, capture_output=True, text=True, check=False).stderr
    assert printed.count("error: rank 1: data.folder: missing") == 1
    assert "traceback : rank 1: data.folder: missing" in printed
