"""Failed images are listed whole in a file, the first ones on the terminal."""

import json
from pathlib import Path

from answering.batch_inference import MAX_SHOWN, FailedImage, list_failed


def test_all_are_in_the_file_and_the_first_on_the_terminal(tmp_path: Path) -> None:
    failed = [FailedImage(f"{i}.jpg", ("cannot be decoded", "too large")) for i in range(25)]
    path = tmp_path / "new" / "failed.jsonl"
    lines = list_failed(failed, path)
    assert lines[0] == "  0.jpg: cannot be decoded; too large"
    assert len(lines) == MAX_SHOWN + 1
    assert lines[-1] == f"all 25 failed images: {path}"
    assert [json.loads(line)["image"] for line in path.read_text(encoding="utf-8").splitlines()] == [image.image for image in failed]


def test_a_run_without_failures_removes_the_list_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    list_failed([FailedImage("a.jpg", ("gone",))], path)
    assert list_failed([], path) == []
    assert not path.exists()


def test_a_name_that_is_not_utf8_is_listed_with_escapes(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    lines = list_failed([FailedImage("caf\udce9.jpg", ("gone",))], path)
    assert lines[0] == "  caf\\udce9.jpg: gone"
    assert json.loads(path.read_text(encoding="utf-8"))["image"] == "caf\udce9.jpg"
