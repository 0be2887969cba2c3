"""tools/demo.py starts without a checkpoint, reports what is missing, and stops on Ctrl+C."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

import cli
import config
from answering.answerer_factory import ScorerCache
from answering.config import find_system
from tests.pipeline import ROOT, workspace
from tests.serving.search.conftest import fill
from tools import demo


@pytest.fixture
def folder(parts: Path, tmp_path: Path) -> Path:
    """A working folder with CLIP and images, but no checkpoint."""
    (tmp_path / "trial.yaml").write_text(
        f"name: trial\nrerank: {{clip: {parts / 'clip'}}}\nsearch: {{images: library}}\n", encoding="utf-8"
    )
    fill(tmp_path / "library", range(14))
    return workspace(tmp_path)


def _restore_interrupt_handler() -> None:
    """A test run in the background ignores SIGINT, and its subprocesses inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_page_is_served_without_a_checkpoint(folder: Path) -> None:
    command = [sys.executable, "tools/demo.py", "--config", "trial.yaml", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=_restore_interrupt_handler,
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines[0].startswith("not available: checkpoints/trial")
            address = re.search(r"http://127\.0\.0\.1:\d+", lines[1])
            assert address is not None, lines
            response = requests.get(address[0], timeout=60)
            assert response.status_code == 200
            assert "Tessera" in response.text
            assert (folder / "data/trial/search").is_dir()
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, 130)


def test_images_that_cannot_be_indexed_are_named_and_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    Path("library/broken.jpg").write_bytes(b"no picture")
    demo.build_index(config.load(Path("trial.yaml"), []), ScorerCache())
    printed = capsys.readouterr().out
    assert "library/broken.jpg: image of 10 bytes: cannot be decoded" in printed
    assert "all 1 failed images: results/trial/search_failed.jsonl" in printed


def test_examples_are_spread_over_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    examples = demo.examples(config.load(Path("trial.yaml")))
    assert len(examples) == len(set(examples)) == demo.NUM_EXAMPLES
    assert demo.examples(config.load(Path("trial.yaml"), ["search.images=null"])) == []


def test_a_taken_port_is_one_sentence_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        cli.run(demo.main, demo.parser, ["--config", "trial.yaml", "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--host, --port: cannot listen on 127.0.0.1 port" in line


def commands(page: str) -> list[str]:
    """The python commands of a page of the documentation."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line for line in "".join(blocks).splitlines() if line.startswith("python ")]


def test_every_command_of_the_documentation_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert commands("zh/demo.md") == commands("demo.md") != []
    for command in commands("demo.md"):
        _, script, *arguments = shlex.split(command)
        assert script == "tools/demo.py"
        parsed = demo.parser.parse_intermixed_args(arguments)
        loaded_config = config.load(parsed.config, parsed.overrides)
        if parsed.against:
            assert find_system(loaded_config.eval.systems, parsed.against, "--against").name == parsed.against


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "other"), "--system: eval.systems has no other (it has: none)"),
        (("--against", "other"), "--against: eval.systems has no other"),
        (("--port", "70000"), "--port 70000"),
        (("rerank.clip=./none",), "rerank.clip: ./none does not exist"),
    ],
)
def test_wrong_arguments_are_a_message_of_one_line(
    arguments: tuple[str, ...], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        cli.run(demo.main, demo.parser, ["--config", "trial.yaml", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
