"""tools/demo.py: it starts with what there is, says what is missing, and ends on Ctrl+C."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

import cli
import config
from tests.pipeline import ROOT, workspace
from tests.serving.search.conftest import fill
from tools import demo


@pytest.fixture
def folder(parts: Path, tmp_path: Path) -> Path:
    """A working folder with CLIP and pictures, but no checkpoint."""
    (tmp_path / "trial.yaml").write_text(
        f"name: trial\nrerank: {{clip: {parts / 'clip'}}}\nsearch: {{images: library}}\n", encoding="utf-8"
    )
    fill(tmp_path / "library", range(14))
    return workspace(tmp_path)


def _hear_interrupts() -> None:
    """A test run in the background hands its deafness for Ctrl+C down to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_without_a_checkpoint_the_page_is_served_and_says_so(folder: Path) -> None:
    command = [sys.executable, "tools/demo.py", "--config", "trial.yaml", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=_hear_interrupts,
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines[0].startswith("not available: checkpoints/trial")
            address = re.search(r"http://127\.0\.0\.1:\d+", lines[1])
            assert address is not None, lines
            answer = requests.get(address[0], timeout=60)
            assert answer.status_code == 200
            assert "Tessera" in answer.text
            assert (folder / "data/trial/search").is_dir()
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, 130)


def test_examples_are_spread_over_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = demo.examples(config.load(Path("trial.yaml")))
    assert len(found) == len(set(found)) == demo.NUM_EXAMPLES
    assert demo.examples(config.load(Path("trial.yaml"), ["search.images=null"])) == []


def shown(page: str) -> list[str]:
    """Commands that a page of the documentation shows."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in "".join(blocks).splitlines() if line.startswith("python ")]


def test_every_command_of_the_documentation_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert shown("zh/demo.md") == shown("demo.md") != []
    for command in shown("demo.md"):
        _, script, *arguments = shlex.split(command)
        assert script == "tools/demo.py"
        parsed = demo.parser.parse_intermixed_args(arguments)
        read = config.load(parsed.config, parsed.overrides)
        if parsed.against:
            assert demo.select_system(read, "--against", parsed.against).name == parsed.against


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "other"), "--system other: eval.systems has no such system (it has: none)"),
        (("--against", "other"), "--against other: eval.systems has no such system"),
        (("--port", "70000"), "--port 70000"),
        (("rerank.clip=./none",), "rerank.clip: ./none does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        cli.run(demo.main, demo.parser, ["--config", "trial.yaml", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
