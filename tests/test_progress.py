"""Progress without a terminal: plain lines, the last one with the total."""

import pytest

from progress import Progress, track


def test_the_last_line_has_the_final_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "reading", unit="files")) == [1, 2, 3]
    assert capsys.readouterr().err.startswith("reading: 3/3 files")


def test_a_note_is_printed_after_the_count(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("asking", 10, "questions", interval=0.0) as progress:
        progress.update(4, note="accuracy 0.50")
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("asking: 4/10 questions") and first.endswith("accuracy 0.50")


def test_the_final_line_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("asking", 2, "questions", interval=0.0) as progress:
        progress.update(2)
    assert len(capsys.readouterr().err.splitlines()) == 1
