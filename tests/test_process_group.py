"""What several processes share, and what one of them says."""

import sys

import pytest
import torch

import cli
from errors import TesseraError, UsageError
from process_group import ProcessGroup, init_distributed, init_process_group, main_process_only


def test_every_piece_of_work_falls_to_one_process() -> None:
    for world_size in (1, 2, 3, 8):
        taken = [[number for number in range(20) if ProcessGroup(rank, world_size).owns(number)] for rank in range(world_size)]
        assert sorted(number for one in taken for number in one) == list(range(20))
        assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_a_process_alone_gathers_its_own() -> None:
    with init_process_group() as process_group:
        assert (process_group.is_main_process, process_group.world_size) == (True, 1)
        assert process_group.gather({"a": 1}) == [{"a": 1}]
    assert not torch.distributed.is_initialized()


def test_a_world_of_another_size_than_launched_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init_distributed().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the launcher started 2 processes, but only 1 found each other"):
        init_distributed()


def test_what_helpers_show_is_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    for is_main_process, said in ((True, "half done\n"), (False, "")):
        with main_process_only(is_main_process):
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
        cli.run(fails, cli.Parser("", takes_config=False), [])
    assert ended.value.code == error.exit_status
    assert capsys.readouterr().err == said
