"""Selection of the evaluated systems."""

from pathlib import Path

import pytest

from answering.config import CheckpointSystem, QwenVlSystem
from errors import UsageError
from evaluation.run.system_selection import select_systems, with_checkpoints

OURS = CheckpointSystem(name="ours", kind="checkpoint", quantization="nf4")
BASELINE = QwenVlSystem(name="baseline", kind="qwen3_vl", path="somewhere")


def test_given_checkpoints_replace_the_configured_ones_and_take_over_their_settings(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    systems = with_checkpoints([BASELINE, OURS], folders)
    assert [system.name for system in systems] == ["a", "b", "baseline"]
    assert isinstance(systems[0], CheckpointSystem)
    assert (systems[0].path, systems[0].quantization) == (str(folders[0]), "nf4")


def test_folders_of_equal_name_get_the_name_of_the_parent_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "one" / "checkpoint-5", tmp_path / "two run" / "checkpoint-5", tmp_path / "last"]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [system.name for system in with_checkpoints([], folders)] == ["one-checkpoint-5", "two_run-checkpoint-5", "last"]


def test_without_checkpoints_the_configured_systems_are_used() -> None:
    assert with_checkpoints([OURS, BASELINE], []) == (OURS, BASELINE)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        with_checkpoints([OURS], [tmp_path / "gone"])


def test_names_select_systems_in_the_given_order() -> None:
    assert select_systems([OURS, BASELINE], ["baseline", "ours", "baseline"]) == (BASELINE, OURS)
    assert select_systems([OURS, BASELINE], []) == (OURS, BASELINE)
    with pytest.raises(UsageError, match=r"--systems: eval\.systems has no other \(it has: ours, baseline\)"):
        select_systems([OURS, BASELINE], ["other"])
