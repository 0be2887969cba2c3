"""The examples of docs/search.md run as they are, and the Chinese page has the same examples."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from tests.pipeline import ROOT
from tests.serving.search.conftest import fill, png
from tools import benchmark, clip

COMMANDS: dict[str, tuple[Callable[..., int | None], Callable[[], cli.Parser], list[str]]] = {
    "tools/clip.py": (clip.main, clip.arguments, []),
    "tools/benchmark.py": (benchmark.main, benchmark.arguments, ["--vectors", "40", "--width", "16", "--questions", "3"]),
}
"""Entry point and parser of each command, and arguments added to make it fast."""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def commands() -> list[list[str]]:
    """The arguments of every python command of the page."""
    lines = "".join(blocks("search.md", "bash")).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


@pytest.mark.parametrize("language", ["bash", "python"])
def test_both_pages_have_the_same_examples(language: str) -> None:
    assert blocks("zh/search.md", language) == blocks("search.md", language) != []


def test_every_example_runs(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("checkpoints/tiny").mkdir(parents=True)
    Path("checkpoints/tiny/clip").symlink_to(parts / "clip")
    library = fill(Path("data/scenes/coco/test"), range(3))
    (library / "000400000001.jpg").write_bytes(png(7))
    assert len(commands()) > 5
    for command, *arguments in commands():
        main, parser, added_arguments = COMMANDS[command]
        with pytest.raises(SystemExit) as ended:
            cli.run(main, parser(), [*arguments, *added_arguments])
        assert not ended.value.code, (command, arguments, capsys.readouterr().err)
    assert Path("results/alike.png").is_file()
    assert re.search(r"\nexact: median .*\napproximate \(ef \d+\): median .*; recall [01]\.\d{3}\n", capsys.readouterr().out)
    (example,) = blocks("search.md", "python")
    exec(compile(example, "docs/search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 new images; exact search over 4 images"
    assert lines[-1] == "True"
