"""train.init_from: a run that starts from the weights of another."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.hub.llava_export import export
from model.siglip_qwen.processor import Processor
from tests.training.test_run import losses, run, state, weights

OTHER_LORA = "model.lora={r: 2, lora_alpha: 2, lora_dropout: 0.0}"


@pytest.fixture
def source(trained_copy: Callable[..., tuple[Path, list[Path]]]) -> tuple[Path, Path]:
    """A YAML file, and the last checkpoint of a run with it."""
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 6}
    path, checkpoints = trained_copy(stages=[stage], per_device_train_batch_size=8, learning_rate=5e-3, warmup_steps=0.0)
    return path, checkpoints[-1]


def test_a_run_goes_on_from_the_weights_with_a_new_optimizer_and_new_steps(
    source: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, checkpoint = source
    first, last = losses(checkpoint)[0], losses(checkpoint)[-1]
    own = run(path, "name=mine", "data.folder=data/toy", f"train.init_from={checkpoint}", "train.stages.0.epochs=2")
    assert own == Path("checkpoints/mine/checkpoint-2")
    assert f"starting from {checkpoint}: its connector and LoRA adapters continue" in capsys.readouterr().out
    assert losses(own)[0] < (first + last) / 2
    assert [row["step"] for row in state(own).history if "loss" in row] == [1, 2]


@pytest.mark.parametrize("form", ["run", pytest.param("merged", marks=pytest.mark.slow), pytest.param("llava", marks=pytest.mark.slow)])
def test_another_adapter_starts_on_the_merged_weights_and_resumes_bit_for_bit(
    source: tuple[Path, Path], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, checkpoint = source
    folder = checkpoint.parent
    if form != "run":
        folder = Path(form)
        export(checkpoint, folder, form, Processor.load(checkpoint))  # type: ignore[arg-type]
    settings = ("name=mine", "data.folder=data/toy", f"train.init_from={folder}", OTHER_LORA, "train.save_steps=1")
    own = run(path, *settings, "train.stages.0.epochs=2")
    assert "its weights, merged, are the base" in capsys.readouterr().out
    assert losses(own)[0] < (losses(checkpoint)[0] + losses(checkpoint)[-1]) / 2
    own.rename("uninterrupted")
    assert run(path, *settings, "train.stages.0.epochs=2", resume="auto") == own
    expected = weights(Path("uninterrupted"))
    assert all(torch.equal(value, expected[key]) for key, value in weights(own).items())


@pytest.mark.slow
def test_the_whole_language_model_is_trained_on_from_merged_adapters(source: tuple[Path, Path]) -> None:
    path, checkpoint = source
    stages = "train.stages=[{name: align, train: [connector], max_steps: 1}, {name: all, train: [connector, language], max_steps: 1}]"
    own = run(path, "name=mine", "data.folder=data/toy", f"train.init_from={checkpoint}", "model.lora=null", stages)
    first = load_file(own.with_name("checkpoint-1") / "language" / "model.safetensors")
    assert any(not torch.equal(value, first[key]) for key, value in load_file(own / "language" / "model.safetensors").items())
    assert losses(own)[0] < (losses(checkpoint)[0] + losses(checkpoint)[-1]) / 2


@pytest.mark.slow
def test_cached_features_are_those_of_the_folders_own_vision_encoder(source: tuple[Path, Path]) -> None:
    path, checkpoint = source
    export(checkpoint, Path("merged"), "merged", Processor.load(checkpoint))
    (Path("merged") / "whole.json").unlink()
    tensors = load_file("merged/model.safetensors")
    changed = {key: value * 1.5 if ".vision_tower." in key and "layers.0" in key else value for key, value in tensors.items()}
    save_file(changed, "merged/model.safetensors", metadata={"format": "pt"})
    settings = ("data.folder=data/toy", "train.init_from=merged", OTHER_LORA, "train.stages.0.epochs=1")
    expected = losses(run(path, "name=pixels", *settings))
    assert losses(run(path, "name=cached", *settings, "train.cache_vision_features=true")) == pytest.approx(expected, abs=1e-2)
    other = losses(run(path, "name=other", "data.folder=data/toy", f"train.init_from={checkpoint}", "train.stages.0.epochs=1"))
    assert abs(other[0] - expected[0]) > 0.05, "the changed encoder must change the loss"


def test_the_start_is_a_setting_that_a_resumed_run_keeps(source: tuple[Path, Path]) -> None:
    path, checkpoint = source
    settings = ("name=mine", "data.folder=data/toy", "train.stages.0.epochs=1")
    own = run(path, *settings, f"train.init_from={checkpoint}")
    with pytest.raises(UsageError, match=rf'train\.init_from was "{checkpoint}", is null'):
        run(path, *settings, resume="auto")
    content = (checkpoint / "tessera_processor.json").read_bytes()
    (checkpoint / "tessera_processor.json").write_bytes(content + b" ")
    write_manifest(checkpoint)
    with pytest.raises(UsageError, match=rf'train\.init_from \(content\) was "{checkpoint}, SHA-256 \w+", is "{checkpoint}, SHA-256'):
        run(path, *settings, f"train.init_from={checkpoint}", resume="auto")
    # The run has its weights: it goes on without the folder that it started from.
    shutil.rmtree(checkpoint)
    assert run(path, *settings, f"train.init_from={checkpoint}", resume="auto") == own


def test_weights_that_do_not_fit_are_refused_before_any_is_loaded(source: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = source
    capsys.readouterr()
    for override, message in (
        ("model.connector={kind: mlp_pool, pool: 2}", r"model\.connector\.kind was mlp, is mlp_pool"),
        ("train.init_from=nowhere", r"train\.init_from: nowhere does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            run(path, "name=mine", "data.folder=data/toy", f"train.init_from={checkpoint}", override)
    assert "training samples" not in capsys.readouterr().out
