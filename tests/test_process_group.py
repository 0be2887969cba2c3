"""Rank and world size: distribution of work items, gathering, and which rank reports errors."""

import sys

import pytest
import torch

import cli
from errors import TesseraError, UsageError
from process_group import ProcessGroup, init_distributed, init_process_group, main_process_only


def test_every_work_item_belongs_to_exactly_one_rank() -> None:
    for world_size in (1, 2, 3, 8):
        items = [[index for index in range(20) if ProcessGroup(rank, world_size).owns(index)] for rank in range(world_size)]
        assert sorted(index for rank_items in items for index in rank_items) == list(range(20))
        assert max(map(len, items)) - min(map(len, items)) <= 1


def test_a_single_process_gathers_its_own_value() -> None:
    with init_process_group() as process_group:
        assert (process_group.is_main_process, process_group.world_size) == (True, 1)
        assert process_group.gather({"a": 1}) == [{"a": 1}]
    assert not torch.distributed.is_initialized()


def test_a_world_size_that_differs_from_the_launcher_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init_distributed().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="the launcher started 2 processes, but the world size is 1"):
        init_distributed()


def test_only_the_main_process_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    for is_main_process, expected in ((True, "half done\n"), (False, "")):
        with main_process_only(is_main_process):
            print("half done", file=sys.stderr)
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        ("0", UsageError("no such key"), "error: no such key\n"),
        ("1", UsageError("no such key"), ""),
        ("0", TesseraError("the disk is full"), "error: the disk is full\n"),
        ("1", TesseraError("the disk is full"), "error: rank 1: the disk is full\n"),
    ],
)
def test_usage_errors_are_reported_by_rank_0_and_failures_by_every_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, error: TesseraError, message: str
) -> None:
    monkeypatch.setenv("RANK", rank)

    def fails(_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(fails, cli.Parser("", takes_config=False), [])
    assert ended.value.code == error.exit_status
    assert capsys.readouterr().err == message
