"""What several processes share, and what one of them says."""

import sys

import pytest
import torch

import cli
from errors import TesseraError, UsageError
from process_group import Share, join, only_main_speaks, working_together


def test_every_piece_of_work_falls_to_one_process() -> None:
    for processes in (1, 2, 3, 8):
        taken = [[number for number in range(20) if Share(place, processes).takes(number)] for place in range(processes)]
        assert sorted(number for one in taken for number in one) == list(range(20))
        assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_a_process_alone_gathers_its_own() -> None:
    with working_together() as share:
        assert (share.main, share.processes) == (True, 1)
        assert share.gather({"a": 1}) == [{"a": 1}]
    assert not torch.distributed.is_initialized()


def test_a_world_of_another_size_than_launched_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the launcher started 2 processes, but only 1 found each other"):
        join()


def test_what_helpers_show_is_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    for main, said in ((True, "half done\n"), (False, "")):
        with only_main_speaks(main):
            print("half done", file=sys.stderr)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        ("0", UsageError("no such key"), "error: no such key\n"),
        ("1", UsageError("no such key"), ""),
        ("0", TesseraError("the disk is full"), "error: the disk is full\n"),
        ("1", TesseraError("the disk is full"), "error: process 1: the disk is full\n"),
    ],
)
def test_wrong_arguments_are_said_by_one_process_and_failures_by_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, error: TesseraError, said: str
) -> None:
    monkeypatch.setenv("RANK", rank)

    def fails(_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(fails, cli.Parser("", configured=False), [])
    assert ended.value.code == error.exit_status
    assert capsys.readouterr().err == said
