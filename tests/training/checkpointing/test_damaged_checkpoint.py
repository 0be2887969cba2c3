"""A damaged checkpoint is never resumed from: what is damaged is named, and the last whole one is taken."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from tests.model.test_checkpoint_manifest import flip_byte
from tests.training.test_run import run, weights
from training.checkpointing import whole_checkpoint
from training.checkpointing.resume import TRAINER_FOLDER, read_run_state
from training.checkpointing.trainer_state import check_trainer_state
from training.checkpointing.whole_checkpoint import find_whole_checkpoint

STATE_FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.fixture
def trained(trained_copy: Callable[..., tuple[Path, list[Path]]]) -> tuple[Path, list[Path]]:
    """The YAML of a run and its three checkpoints: two in the middle of its stage, the last at its end."""
    stage = {"name": "tune", "train": ["connector", "lora"], "max_steps": 3}
    return trained_copy(stages=[stage], per_device_train_batch_size=2, save_steps=1, save_total_limit=3)


@pytest.fixture
def configuration(trained: tuple[Path, list[Path]]) -> Path:
    return trained[0]


@pytest.fixture
def checkpoints(trained: tuple[Path, list[Path]]) -> list[Path]:
    return trained[1]


def test_a_flipped_byte_in_any_file_is_found_and_the_last_whole_checkpoint_taken(checkpoints: list[Path]) -> None:
    damaged = checkpoints[1]
    files = [path for path in damaged.rglob("*") if path.is_file() and path.name != "whole.json"]
    assert {path.name for path in files} >= {*STATE_FILES, "run_state.json", "adapter_model.safetensors", "tokenizer.json", "config.json"}
    for path in files:
        before = path.read_bytes()
        flip_byte(path)
        whole, messages = find_whole_checkpoint(checkpoints[:2], PartialState())
        name = path.relative_to(damaged)
        assert (whole, messages) == (
            checkpoints[0],
            [f"skipping {damaged}: the content of {name} has changed since it was written (its SHA-256 is not that of whole.json)"],
        )
        path.write_bytes(before)
    assert find_whole_checkpoint(checkpoints[:2], PartialState()) == (damaged, [])


def test_a_run_goes_back_to_the_last_whole_checkpoint(
    configuration: Path, checkpoints: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = weights(checkpoints[2])
    flip_byte(checkpoints[1] / "adapter_model.safetensors")
    (checkpoints[2] / TRAINER_FOLDER / "run_state.json").write_text("{}")
    resumed = run(configuration, resume="auto")
    out = capsys.readouterr().out
    assert f"resuming from {checkpoints[0]}" in out
    assert "the content of adapter_model.safetensors has changed" in out
    assert "trainer/run_state.json has 2 bytes" in out
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())


def test_a_damaged_checkpoint_given_by_its_path_is_refused(configuration: Path, checkpoints: list[Path]) -> None:
    flip_byte(checkpoints[2] / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"--resume .*checkpoint-3: not a complete checkpoint: the content of adapter_model"):
        run(configuration, resume=str(checkpoints[2]))


def test_a_checkpoint_of_before_is_resumed_with_a_note(
    configuration: Path, checkpoints: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = checkpoints[2] / "whole.json"
    listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    manifest.write_text(json.dumps({name: entry["size"] for name, entry in listed.items()}), encoding="utf-8")
    assert run(configuration, resume="auto") == checkpoints[2]
    assert "holds sizes only: contents were not checked" in capsys.readouterr().out


@pytest.mark.parametrize("name", STATE_FILES)
def test_a_trainer_state_that_cannot_be_read_is_one_sentence(configuration: Path, checkpoints: list[Path], name: str) -> None:
    # Listed by the manifest as it is: what its writer wrote was damaged already.
    path = checkpoints[1] / TRAINER_FOLDER / name
    whole = path.read_bytes()
    zeroed = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    for content in (b"", whole[: len(whole) // 2], zeroed, b"\xff" * 64, b"[1]", b"{}" if name != "trainer_state.json" else b'{"a": 1}'):
        path.write_bytes(content)
        with pytest.raises(
            UsageError, match=rf"--resume: {re.escape(str(path))} cannot be used, it is damaged.*earlier checkpoint"
        ) as caught:
            check_trainer_state(path.parent)
        assert "\n" not in str(caught.value)
    shutil.rmtree(checkpoints[2])
    write_manifest(checkpoints[1])
    with pytest.raises(UsageError, match=rf"{name} cannot be used"):
        run(configuration, resume="auto")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("optimizer.pt", lambda state: state["param_groups"].pop()),
        ("scheduler.pt", lambda state: state.update(_get_lr_called_within_step=5, lr_lambdas=3)),
        ("rng_state.pth", lambda state: state.update(cpu=torch.zeros(3))),
    ],
)
def test_a_trainer_state_that_does_not_fit_the_run_is_one_sentence(
    configuration: Path, checkpoints: list[Path], name: str, change: Callable[[dict[str, Any]], Any]
) -> None:
    shutil.rmtree(checkpoints[2])
    path = checkpoints[1] / TRAINER_FOLDER / name
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)
    write_manifest(checkpoints[1])
    with pytest.raises(UsageError, match=r"--resume: .*checkpoint-2/trainer cannot be used, it is damaged or of another run"):
        run(configuration, resume="auto")


@pytest.mark.parametrize("content", ["", "[]", '{"stage": 0}', "{}"])
def test_a_run_state_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "run_state.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"run_state\.json cannot be read, so this is no training checkpoint") as caught:
        read_run_state(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_state_with_values_of_other_types_is_refused(checkpoints: list[Path]) -> None:
    path = checkpoints[1] / TRAINER_FOLDER / "run_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**state, "step": "2"}), encoding="utf-8")
    with pytest.raises(UsageError, match=r"run_state\.json cannot be read"):
        read_run_state(path.parent)


def test_rank_0_checks_for_all(checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_reading(_folder: Path) -> None:
        raise AssertionError("another rank reads the files too")

    def broadcast(found: list[Any]) -> None:
        found[:] = [checkpoints[0], ["skipping"]]

    monkeypatch.setattr(whole_checkpoint, "manifest_mismatch", no_reading)
    monkeypatch.setattr(whole_checkpoint, "broadcast_object_list", broadcast)
    other_rank: Any = SimpleNamespace(is_main_process=False)
    assert find_whole_checkpoint(checkpoints, other_rank) == (checkpoints[0], ["skipping"])
