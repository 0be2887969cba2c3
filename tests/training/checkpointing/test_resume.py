"""Which settings may differ on a resume, and how those that may not are named."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import config as configuration
from errors import UsageError
from tests.pipeline import ROOT
from training.checkpointing.resume import RunState, check_same_settings, config_settings, data_settings, machine_settings

TINY = ROOT / "configs" / "tiny.yaml"


def state(stage: int = 1, **changed: Any) -> RunState:
    """The run state of the demo in a stage, with other settings."""
    return RunState(stage, 0, 5, False, {**config_settings(configuration.load(TINY)), **changed}, [])


def message(*overrides: str, stage: int = 1) -> str:
    with pytest.raises(UsageError) as error:
        check_same_settings(Path("here"), state(stage), config_settings(configuration.load(TINY, list(overrides))))
    return str(error.value)


def accepted(*overrides: str, stage: int = 1) -> bool:
    check_same_settings(Path("here"), state(stage), config_settings(configuration.load(TINY, list(overrides))))
    return True


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.stages.0.learning_rate=0.5", "train.stages.0.learning_rate was 0.002, is 0.5"),
        ("train.stages.1.learning_rate={lora: 0.5}", "train.stages.1.learning_rate was null, is "),
        ("train.stages.1.train=[lora]", 'train.stages.1.train was ["connector", "lora"], is ["lora"]'),
        ("train.stages.0.max_steps=1", "train.stages.0.max_steps was 40, is 1"),
        ("model.lora.r=7", "model.lora.r was 32, is 7"),
        ("train.weight_decay=0.5", "train.weight_decay was 0.0, is 0.5"),
    ],
)
def test_a_setting_that_cannot_change_is_named_alone_by_its_dotted_key(override: str, named: str) -> None:
    text = message(override)
    assert text.startswith(f"--resume here: trained with other settings: {named}")
    assert text.count(" was ") == 1


def test_a_stage_that_is_gone_is_named() -> None:
    assert "train.stages.1 was {" in message("train.stages=[{name: align, train: [connector], epochs: 1, max_steps: 100}]")


def test_the_length_of_the_stage_in_progress_and_all_later_stages_may_change() -> None:
    assert accepted("train.stages.1.max_steps=9999", "train.stages.1.epochs=9")
    assert accepted("train.stages.1.learning_rate=0.5", "train.stages.0.max_steps=7", stage=0)


def test_what_depends_on_machine_and_data_is_compared_once_it_is_known(tmp_path: Path) -> None:
    samples = tmp_path / "samples.parquet"
    samples.write_bytes(b"one merge")
    config = configuration.load(TINY)

    def settings(precision: str) -> dict[str, Any]:
        return {**config_settings(config), **machine_settings(1, False, precision), **data_settings(samples)}

    saved = dataclasses.replace(state(), settings=settings("fp32"))
    check_same_settings(Path("here"), saved, config_settings(config))
    with pytest.raises(UsageError, match=r'train\.precision was "fp32", is "bf16"; use'):
        check_same_settings(Path("here"), saved, settings("bf16"))
    samples.write_bytes(b"another merge")
    with pytest.raises(UsageError, match=r"settings: data \(samples\.parquet\) was"):
        check_same_settings(Path("here"), saved, settings("fp32"))
