"""Rank and world size: distribution of work items, gathering, and which rank reports errors."""

import sys

import pytest
import torch

from errors import UsageError
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
