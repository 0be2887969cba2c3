"""What is left of a merge that a signal ended, and who clears it."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from dataset.build.merge import LOCK_FILE
from errors import UsageError
from tests.dataset.raw_files import RawFiles, conversation
from tests.pipeline import ROOT

HOLD = """
import pickle, sys
from pathlib import Path
import dataset.build.merge as merging
def hold(*_):
    print("writing", flush=True)
    sys.stdin.read()
merging.write_samples = hold
merging.merge(*pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def start_until(raw: RawFiles, line: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process in the folder of the raw files that has printed `line` and then waits."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=raw.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == f"{line}\n"
    return process


def merge_that_waits(raw: RawFiles) -> subprocess.Popen[str]:
    """A merge in another process that stops in the middle of writing."""
    raw.image("a.jpg")
    config = raw.config(raw.llava([conversation("a.jpg", "?", "x")]))
    (raw.folder / "config.pickle").write_bytes(pickle.dumps((config, raw.merged)))
    return start_until(raw, "writing", "-c", HOLD, str(raw.folder / "config.pickle"))


def test_what_a_killed_merge_leaves_is_cleared_by_the_next(raw: RawFiles) -> None:
    process = merge_that_waits(raw)
    process.kill()
    process.communicate()
    (raw.merged / "cache").mkdir(exist_ok=True)
    for name in ("cache/.image_checks.0a1b2c3d.parquet", ".report.0a1b2c3d.json"):
        (raw.merged / name).write_text("half", encoding="utf-8")
    (raw.merged / ".merge-of-earlier-versions").mkdir()
    assert len([name for name in hidden(raw.merged) if name.startswith(".merge-")]) == 2
    raw.merge(raw.llava([conversation("a.jpg", "?", "y")]))
    assert hidden(raw.merged) == []
    assert raw.samples()[0].targets == ("y",)


def test_a_running_merge_keeps_others_out_of_its_folder_and_its_files_are_not_cleared(raw: RawFiles) -> None:
    process = merge_that_waits(raw)
    before = hidden(raw.merged)
    with pytest.raises(UsageError, match=rf"merged: process {process.pid} on .* is merging here"):
        raw.merge(raw.llava([conversation("a.jpg", "?", "y")]))
    assert hidden(raw.merged) == before
    assert LOCK_FILE in before
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_to_the_command_ends_its_workers_too(raw: RawFiles, number: signal.Signals, status: int) -> None:
    for i in range(300):
        raw.image(f"{i}.jpg", shade=i)
    source = {"format": "llava", "annotations": str(raw.write("c.json", [conversation(f"{i}.jpg", "?", "x") for i in range(300)]))}
    config = {"name": "small", "data": {"folder": str(raw.merged), "workers": 2, "sources": [{**source, "images": str(raw.images)}]}}
    (raw.folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    program = (
        "import sys, dataset.build.image_validation as validation, cli\n"
        "from tools import preprocess\n"
        "def wait(*_):\n"
        "    print('checking', flush=True)\n"
        "    sys.stdin.read()\n"
        "if __name__ == '__main__':\n"
        "    validation.track = lambda results, *_: [next(results), wait()]\n"
        "    cli.run(preprocess.main, preprocess.parser, ['--config', 'config.yaml'])\n"
    )
    (raw.folder / "program.py").write_text(program, encoding="utf-8")
    process = start_until(raw, "checking", "program.py")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in printed
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    if number != signal.SIGKILL:
        assert hidden(raw.merged) == []
