"""tools/clip.py index and search."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import cli
from tests.serving.search.conftest import fill, png
from tools import clip

Result = tuple[int, list[str], str]
"""Exit status, lines of standard output, last line of standard error."""
Command = Callable[..., Result]


@pytest.fixture
def command(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a subcommand of tools/clip.py in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("trial.yaml").write_text(f"name: trial\nrerank: {{clip: {parts / 'clip'}}}\nsearch: {{images: library}}\n", encoding="utf-8")

    def run(subcommand: str, *arguments: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.run(clip.main, clip.arguments(), [subcommand, "--config", "trial.yaml", *arguments])
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out.splitlines(), (output.err.strip().splitlines() or [""])[-1]

    return run


def test_a_folder_is_indexed_and_its_images_are_found(command: Command, tmp_path: Path) -> None:
    fill(tmp_path / "library", range(7))
    (tmp_path / "library" / "broken.jpg").write_bytes(b"no picture")
    status, lines, _ = command("index")
    assert status == 0
    assert lines == [
        "data/trial/search: 7 images",
        "added 7, removed 0; files unchanged 0, moved or copied 0",
        "exact search over 7 images",
        "unreadable files: 1",
        f"  {tmp_path}/library/broken.jpg: image of 10 bytes: cannot be decoded (not an image in a supported format)",
        "all 1 failed images: results/trial/search_failed.jsonl",
    ]
    status, lines, _ = command("search", "--text", "一个红色的圆形", "-k", "6")
    assert status == 0
    assert lines[0].split() == ["#", "score", "bytes", "image"]
    assert [line.split()[0] for line in lines[1:7]] == list("123456")
    scores = [float(line.split()[1]) for line in lines[1:7]]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(line.split()[3]).is_file() for line in lines[1:7])
    assert lines[7] == "exact search over 7 images; thumbnails: results/trial/search.png"
    with Image.open("results/trial/search.png") as sheet:
        assert sheet.width == 1120
        assert sheet.height > 2 * 200


def test_an_image_finds_itself_first(command: Command, tmp_path: Path) -> None:
    fill(tmp_path / "library", range(3))
    command("index", "--images", str(tmp_path / "library"))
    (tmp_path / "query.png").write_bytes(png(1))
    status, lines, _ = command("search", "--image", "query.png", "-k", "1", "--save", "found.png")
    assert status == 0
    assert lines[1].split() == ["1", "1.000", f"{len(png(1)):,}", str(tmp_path / "library" / "1.png")]
    assert Path("found.png").is_file()


def test_an_index_of_another_clip_is_rebuilt_with_reindex(command: Command, tmp_path: Path, chinese_clip: Path) -> None:
    fill(tmp_path / "library", range(2))
    other_clip = f"search.clip={chinese_clip}"
    assert command("index")[0] == 0
    for arguments in (("index", other_clip), ("search", "--text", "两个", other_clip)):
        status, _, error = command(*arguments)
        assert status == 2
        assert "built with another CLIP model" in error
        assert "--reindex" in error
    status, lines, _ = command("index", "--reindex", other_clip)
    assert (status, lines[1]) == (0, "added 2, removed 0; files unchanged 0, moved or copied 0")
    assert command("search", "--text", "两个绿色的三角形", other_clip)[0] == 0
    assert command("search", "--text", "two")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("search", "--text", "a"), 2, "search.index: data/trial/search does not exist; `python tools/clip.py index --config"),
        (("search", "--text", " "), 2, "--text: the text is empty"),
        (("search", "--text", "a", "-k", "0"), 2, "-k 0"),
        (("search", "--text", "a", "--save", "found.txt"), 2, "--save found.txt"),
        (("search", "--image", "no.png"), 1, "no.png: there is no such file"),
        (("search",), 2, "--text"),
        (("search", "--text", "a", "search.clip=./none"), 2, "search.clip: ./none does not exist"),
        (("search", "--text", "a", "rerank.clip=null"), 2, "rerank.clip is null"),
        (("index", "--images", "none"), 2, "--images none: there is no such folder"),
        (("index", "search.images=null"), 2, "--images: name a folder"),
        (("index", "search.recall=0"), 2, "search.recall"),
    ],
)
def test_an_error_is_a_message_of_one_line(command: Command, arguments: tuple[str, ...], status: int, message: str) -> None:
    exit_status, _, error = command(*arguments)
    assert exit_status == status
    assert message in error


def test_without_lancedb_the_error_names_the_extra(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "library", range(1))
    for name in [name for name in sys.modules if name.startswith(("lancedb", "serving.search."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lancedb", None)
    status, _, error = command("index")
    assert status == 2
    assert "pip install 'tessera-vlm[search]'" in error
