"""tools/clip.py classify: labels for an image file or URL."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

import cli
from errors import TesseraError
from tools import clip
from visual import image_url

IMAGE = Image.new("RGB", (60, 40), "red")


class Images(BaseHTTPRequestHandler):
    """Serves /red.png (an image), /text and /large (no images); every other path is 404."""

    def do_GET(self) -> None:
        data = io.BytesIO()
        IMAGE.save(data, "PNG")
        body = {"/red.png": data.getvalue(), "/text": b"hello", "/large": b"0" * 100_000}.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Images)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def classify(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> "Classify":
    config = tmp_path / "trial.yaml"
    config.write_text(f"name: trial\nrerank: {{clip: {parts / 'clip'}}}\n", encoding="utf-8")
    return Classify(config, capsys)


class Classify:
    """Runs `tools/clip.py classify`."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]):
        self.config, self.capsys = config, capsys

    def __call__(self, *arguments: str) -> tuple[int, list[str], str]:
        """Exit status, lines of standard output, last line of standard error."""
        with pytest.raises(SystemExit) as ended:
            cli.run(clip.main, clip.arguments(), ["classify", "--config", str(self.config), *arguments])
        output = self.capsys.readouterr()
        return int(ended.value.code or 0), output.out.splitlines(), (output.err.strip().splitlines() or [""])[-1]


def test_labels_are_printed_with_probabilities_the_highest_first(classify: Classify, tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "red.png")
    status, lines, _ = classify("--image", str(tmp_path / "red.png"), "--labels", "cat, dog ，一个红色的圆形,")
    assert status == 0
    probabilities, labels = zip(*(line.split(maxsplit=1) for line in lines), strict=True)
    assert set(labels) == {"cat", "dog", "一个红色的圆形"}
    values = [float(probability.rstrip("%")) for probability in probabilities]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(100, abs=0.1)


def test_a_url_gives_the_same_result_as_the_file(classify: Classify, tmp_path: Path, address: str) -> None:
    IMAGE.save(tmp_path / "red.png")
    expected = classify("--image", str(tmp_path / "red.png"), "--labels", "cat,dog")[1]
    assert classify("--image", f"{address}/red.png", "--labels", "cat,dog")[:2] == (0, expected)


def test_without_an_image_it_prompts_until_exit(classify: Classify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    IMAGE.save(tmp_path / "red.png")
    typed = iter([str(tmp_path / "red.png"), "no.png", "", f"{address}/none.png", "exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    status, lines, _ = classify("--labels", "cat,dog")
    assert status == 0
    assert [line.startswith("error: ") for line in lines] == [False, False, True, True]
    assert "no.png: there is no such file" in lines[2]
    assert "none.png: the server answers 404" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--labels", " , ，"], 2, "--labels: at least one label"),
        (["--labels", "cat", "rerank.clip=null"], 2, "rerank.clip is null"),
        (["--labels", "cat", "--image", "no.png"], 1, "no.png: there is no such file"),
        ([], 2, "--labels"),
    ],
)
def test_an_error_is_a_message_of_one_line(classify: Classify, arguments: list[str], status: int, message: str) -> None:
    exit_status, _, error = classify(*arguments)
    assert exit_status == status
    assert message in error


def test_a_url_that_is_not_an_image_is_an_error(classify: Classify, address: str) -> None:
    status, _, error = classify("--image", f"{address}/text", "--labels", "cat")
    assert status == 1
    assert "cannot be decoded" in error


def test_fetch_limits_size_and_time(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(image_url.fetch(f"{address}/large")) == 100_000
    with pytest.raises(TesseraError, match=r"large: larger than 0\.0\d+ MiB"):
        image_url.fetch(f"{address}/large", max_bytes=99_999)
    clock = iter([0.0, *[30.0] * 100])
    monkeypatch.setattr("visual.image_url.time.monotonic", lambda: next(clock))
    with pytest.raises(TesseraError, match="not finished after 20 seconds"):
        image_url.fetch(f"{address}/large")


def test_an_unreachable_server_is_a_message_of_one_line() -> None:
    with pytest.raises(TesseraError, match=r"http://127\.0\.0\.1:9/x: cannot be fetched"):
        image_url.fetch("http://127.0.0.1:9/x")
