"""A full disk is one sentence that names the file, wherever it is noticed and whoever notices it."""

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import atomic_io
import cli
from atomic_io import atomic_write, atomic_write_folder, disk_full_reason, naming_full_disk, write_json
from errors import TesseraError
from tests.pipeline import ROOT

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def error_of(main: object, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints that fails with status 1."""
    with pytest.raises(SystemExit) as ended:
        cli.run(main, cli.Parser("A command.", takes_config=False), [])  # type: ignore[arg-type]
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_atomic_write_to_a_full_disk_names_its_file_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    for write in (atomic_write, atomic_write_folder):
        with pytest.raises(TesseraError, match=rf"out\.png: cannot be written: {os.strerror(number)} \([\d,]+ bytes are free there\)"):  # noqa: SIM117
            with write(tmp_path / "out.png"):
                raise OSError(number, os.strerror(number))
        assert list(tmp_path.iterdir()) == []


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    for error in (PermissionError(errno.EACCES, "Permission denied"), RuntimeError("a bug"), ValueError("File too large for the model")):
        with pytest.raises(type(error)), naming_full_disk(tmp_path / "a"):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
        RuntimeError("lance error: LanceError(IO): No space left on device (os error 28)"),
        RuntimeError("I/O error: Disk quota exceeded (os error 122)"),
    ],
)
def test_messages_of_libraries_are_understood(error: Exception) -> None:
    assert disk_full_reason(error) == os.strerror(errno.ENOSPC)


def test_an_error_that_follows_from_a_full_disk_is_understood() -> None:
    try:
        try:
            raise FULL
        except OSError:
            raise RuntimeError("writer failed")  # noqa: B904 - as libraries do
    except RuntimeError as error:
        assert disk_full_reason(error) == os.strerror(errno.ENOSPC)


def test_torchs_writer_gives_no_reason_so_free_space_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic_io, "free_bytes", lambda _path: 100)
    with (
        pytest.raises(TesseraError, match=r"a\.pt: cannot be written: No space left on device \(100 bytes"),
        naming_full_disk(tmp_path / "a.pt"),
    ):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


def test_a_command_names_the_file_of_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "results/a.json")

    assert error_of(main, capsys) == "error: results/a.json: cannot be written: No space left on device\n"


def test_a_command_names_the_full_file_system_where_the_error_names_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def main(_: argparse.Namespace) -> None:
        raise FULL

    assert error_of(main, capsys) == "error: a file: cannot be written: No space left on device\n"
    monkeypatch.setattr(cli, "free_bytes", lambda path: 0 if path == Path() else 1 << 40)
    assert error_of(main, capsys) == f"error: a file in one of {tmp_path}: cannot be written: No space left on device\n"


def run_program(*command: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True, check=False, **settings)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_cannot_be_written_is_named() -> None:
    program = "import cli; cli.run(lambda _: print('x'), cli.Parser('A command.', takes_config=False), [])"
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        completed = run_program("-c", program, stdout=full)
    assert (completed.returncode, completed.stderr) == (1, "error: standard output: cannot be written: No space left on device\n")


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script whose files may have 20,000 bytes each."""


def write_records(folder: Path) -> None:
    """A configuration with 40 records of 2 KB of text that does not compress, about one image."""
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    turns = [[("human", f"<image>\n{os.urandom(1000).hex()}"), ("gpt", "x")] for _ in range(40)]
    rows = [{"image": "a.png", "conversations": [{"from": role, "value": text} for role, text in turn]} for turn in turns]
    write_json(folder / "rows.json", rows)
    config = {"name": "small", "data": {"sources": [{"format": "messages", "path": "rows.json"}]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("tools/preprocess.py --config config.yaml", "data/small/.merge-"),
        ("tools/make_synthetic_data.py --out scenes --train 40 --validation 4 --test 4 --unseen 4", "scenes"),
    ],
)
def test_a_command_whose_files_may_not_grow_ends_with_one_sentence(tmp_path: Path, command: str, file: str) -> None:
    write_records(tmp_path)
    script, *arguments = command.split()
    completed = run_program("-c", LIMITED, str(ROOT / script), *arguments, cwd=tmp_path, stdout=subprocess.PIPE)
    last = completed.stderr.splitlines()[-1]
    assert completed.returncode == 1, completed.stderr
    assert last.startswith(f"error: {file}"), completed.stderr
    assert f": cannot be written: {os.strerror(errno.EFBIG)} (" in last
    assert "Traceback" not in completed.stderr


WRITERS = """
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq, torch
from safetensors.torch import save_file
from atomic_io import atomic_write
from errors import TesseraError
tensor = torch.rand(100_000)
for name, write in (
    ("a.safetensors", lambda path: save_file({"a": tensor}, path)),
    ("a.parquet", lambda path: pq.write_table(pa.table({"a": tensor.numpy()}), path)),
):
    try:
        with atomic_write(Path(name)) as path:
            write(path)
    except TesseraError as error:
        print(error)
"""


def test_libraries_that_write_weights_and_tables_are_understood(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(WRITERS, encoding="utf-8")
    completed = run_program("-c", LIMITED, "program.py", cwd=tmp_path, stdout=subprocess.PIPE)
    files = [line.split(": cannot be written: ")[0] for line in completed.stdout.splitlines()]
    assert files == ["a.safetensors", "a.parquet"], completed.stderr


TENSORBOARD = """
import resource
from pathlib import Path
from errors import TesseraError
from training.monitoring.tensorboard_logger import TensorBoardLogger
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    TensorBoardLogger(Path("curves"), 0)
except TesseraError as error:
    print(error)
"""


def test_curves_that_cannot_be_written_are_one_sentence_without_a_threads_traceback(tmp_path: Path) -> None:
    completed = run_program("-c", TENSORBOARD, cwd=tmp_path, stdout=subprocess.PIPE)
    assert completed.stdout.startswith(f"curves: cannot be written: {os.strerror(errno.EFBIG)} (")
    assert "Traceback" not in completed.stderr
