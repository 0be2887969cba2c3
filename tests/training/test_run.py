"""Whole trainings of a few steps, in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import config as configuration
from errors import TesseraError, UsageError
from model.siglip_qwen import checkpoint as model_checkpoint
from training.checkpointing import TRAINER_FOLDER
from training.resume import RunState, read_run_state
from training.run import train

Workplace = Callable[..., Path]


def run(path: Path, *overrides: str, resume: str | None = None) -> Path:
    return train(configuration.load(path, list(overrides)), resume)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    # Copies: what load_file gives is mapped to the file, which a test may change.
    return {key: value.clone() for key, value in load_file(checkpoint / "adapter_model.safetensors").items()}


def state(checkpoint: Path) -> RunState:
    return read_run_state(checkpoint / TRAINER_FOLDER)


def losses(checkpoint: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in state(checkpoint).history if key in row]


def test_eight_samples_are_learnt_by_heart(workspace: Workplace) -> None:
    # The whole language model: behind the frozen head of untrained parts no answer can become likely.
    stage = {"name": "all", "train": ["connector", "language"], "epochs": 40}
    checkpoint = run(workspace({"lora": None}, stages=[stage], per_device_train_batch_size=8, learning_rate=4e-3, logging_steps=10))
    assert losses(checkpoint)[0] > 5
    assert losses(checkpoint)[-1] < 0.05


def test_stages_follow_one_another_and_steps_count_on(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    align = {"name": "align", "train": ["connector"], "max_steps": 1}
    tune = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    last = run(workspace(stages=[align, tune], logging_steps=2))
    assert [path.name for path in sorted(last.parent.iterdir())] == ["checkpoint-1", "checkpoint-5"]
    assert [(row["step"], row["stage"]) for row in state(last).history if "loss" in row] == [
        (1, "align"), (2, "tune"), (3, "tune"), (5, "tune"),
    ]  # fmt: skip
    first = weights(last.parent / "checkpoint-1")
    assert not any("lora" in key for key in first)
    assert any("lora" in key for key in weights(last))
    connector = next(key for key in first if "linear_1.weight" in key)
    assert not torch.equal(first[connector], weights(last)[connector])
    assert "step 5/5 tune | loss" in capsys.readouterr().out


def test_a_checkpoint_holds_no_base_weights_and_no_optimizer_once_its_stage_is_over(workspace: Workplace) -> None:
    last = run(workspace(save_steps=1))
    keys = weights(last)
    assert all(".lora_" in key or "multi_modal_projector" in key for key in keys)
    assert not (last / TRAINER_FOLDER / "optimizer.pt").exists()
    assert (last.parent / "checkpoint-1" / TRAINER_FOLDER / "optimizer.pt").exists()
    assert state(last).finished
    assert not state(last.parent / "checkpoint-1").finished


@pytest.mark.parametrize(
    ("model", "stage", "trained"),
    [
        ({"quantization": "nf4"}, ["connector", "lora"], "lora_A"),
        ({"quantization": "nf4"}, ["connector"], "linear_2"),
        ({"quantization": "int8"}, ["connector", "lora"], "lora_B"),
        ({"lora": {"r": 4, "alpha": 8, "dora": True}}, ["connector", "lora"], "magnitude"),
        ({"lora": None}, ["connector"], "linear_1"),
        ({"lora": None}, ["connector", "language"], "language/model.safetensors"),
    ],
)
def test_every_way_of_training_takes_steps_and_is_continued(
    workspace: Workplace, model: dict[str, Any], stage: list[str], trained: str
) -> None:
    path = workspace(
        model, stages=[{"name": "tune", "train": stage, "epochs": 2}], learning_rate=3e-3, save_steps=1, per_device_train_batch_size=8
    )
    whole = run(path)
    assert losses(whole)[1] < losses(whole)[0]
    assert (whole / trained).is_file() or any(trained in key for key in weights(whole))
    whole.rename("kept")
    again = run(path, resume="auto")
    assert again == whole
    assert weights(again).keys() == weights(Path("kept")).keys()
    for file in Path("kept").rglob("*.safetensors"):
        expected, found = load_file(file), load_file(again / file.relative_to("kept"))
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_bf16_autocast_keeps_what_is_trained_in_fp32(workspace: Workplace) -> None:
    checkpoint = run(workspace(precision="bf16", gradient_checkpointing=True))
    assert {value.dtype for value in weights(checkpoint).values()} == {torch.float32}


def test_micro_batches_and_accumulation_give_the_same_loss(workspace: Workplace) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 3}
    path = workspace(stages=[stage], per_device_train_batch_size=8)
    at_once = run(path)
    at_once.rename("at-once")
    in_parts = run(path, "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=4")
    assert losses(in_parts) == pytest.approx(losses(Path("at-once")), abs=1e-5)
    assert losses(in_parts, "grad_norm") == pytest.approx(losses(Path("at-once"), "grad_norm"), rel=1e-4)


def test_packed_rows_give_the_same_loss_as_padded_batches(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    path = workspace(stages=[stage], per_device_train_batch_size=8)
    run(path).rename("padded")
    assert "micro-batches: 8 samples of similar length, padded (auto on cpu), products in fp32" in capsys.readouterr().out
    packed = run(path, "train.batching=packed", "train.packing_length=1024")
    assert "micro-batches: packed rows of 1,024 tokens (train.batching=packed), products in fp32" in capsys.readouterr().out
    assert losses(packed) == pytest.approx(losses(Path("padded")), abs=1e-4)
    assert losses(packed, "eval_loss") == pytest.approx(losses(Path("padded"), "eval_loss"), abs=1e-4)


def test_validation_loss_is_a_mean_over_tokens(workspace: Workplace) -> None:
    path = workspace(per_device_train_batch_size=4)
    run(path).rename("four")
    # Batches of one weigh each sample alike unless tokens are counted.
    alone = run(path, "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4", "train.stages.0.max_steps=2")
    first = [losses(folder, "eval_loss")[0] for folder in (alone, Path("four"))]
    assert first[0] == pytest.approx(first[1], abs=0.05)
    assert [row["eval_tokens"] for row in state(alone).history if "eval_tokens" in row] == [
        row["eval_tokens"] for row in state(Path("four")).history if "eval_tokens" in row
    ]


def test_a_stage_out_of_patience_ends_with_its_best_weights(workspace: Workplace) -> None:
    # A rate that ruins the model: the first validation is the best one.
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 50, "learning_rate": 0.3}
    last = run(
        workspace(stages=[stage], per_device_train_batch_size=8, warmup_steps=0.0, eval_steps=1, save_steps=1000, early_stopping_patience=3)
    )
    validation = losses(last, "eval_loss")
    best = validation.index(min(validation))
    assert len(validation) == best + 4 < 50
    assert last.name == f"checkpoint-{len(validation)}"
    kept = weights(last.parent / f"checkpoint-{best + 1}")
    assert all(torch.equal(value, kept[key]) for key, value in weights(last).items())
    assert model_checkpoint.manifest_mismatch(last) is None


def test_panels_and_tables_are_written(workspace: Workplace) -> None:
    run(workspace(num_logged_predictions=2, eval_steps=1))
    events = EventAccumulator("results/toy/tensorboard", size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("validation/1")] == [1, 2]
    assert {"loss/training", "loss/validation", "learning_rate/lora", "speed/samples_per_second"} <= set(events.Tags()["scalars"])
    assert Path("results/toy/loss_curves.png").stat().st_size > 5000
    assert Path("results/toy/answers.png").stat().st_size > 2000


def test_a_half_written_checkpoint_is_skipped_with_a_message(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(
        stages=[{"name": "tune", "train": ["connector", "lora"], "max_steps": 3}],
        per_device_train_batch_size=2,
        save_steps=1,
        save_total_limit=3,
    )
    last = run(path)
    expected = weights(last)
    (last / "adapter_model.safetensors").write_bytes(b"half")
    again = run(path, resume="auto")
    assert f"skipping {last}: adapter_model.safetensors is missing or has another size" in capsys.readouterr().out
    assert all(torch.equal(value, expected[key]) for key, value in weights(again).items())


def test_only_the_latest_checkpoints_of_a_stage_are_kept(workspace: Workplace) -> None:
    stage = {"name": "tune", "train": ["connector"], "epochs": 2}
    last = run(workspace(stages=[stage], per_device_train_batch_size=2, save_steps=1, save_total_limit=3))
    assert sorted(path.name for path in last.parent.iterdir()) == ["checkpoint-6", "checkpoint-7", "checkpoint-8"]


def test_a_new_run_does_not_begin_over_an_old_one(workspace: Workplace) -> None:
    path = workspace()
    last = run(path)
    with pytest.raises(UsageError, match=r"checkpoint-2 is there already: continue with --resume auto"):
        run(path)
    assert run(path, resume="auto") == last


def test_other_settings_are_refused_by_name(workspace: Workplace) -> None:
    path = workspace(save_steps=1)
    last = run(path)
    with pytest.raises(UsageError, match=r"train\.batch_size was 4, is 2; .*take those, or another name"):
        run(path, "train.per_device_train_batch_size=2", resume="auto")
    with pytest.raises(UsageError, match=r"model\.lora\.r was 4, is 8"):
        run(path, "model.lora.r=8", resume=str(last))
    # What does not touch a training step may change.
    assert run(path, "train.logging_steps=7", "train.save_total_limit=9", resume="auto") == last


def test_a_stage_may_be_added_behind_a_finished_run(workspace: Workplace) -> None:
    path = workspace()
    run(path)
    stages = [
        {"name": "tune", "train": ["connector", "lora"], "max_steps": 2},
        {"name": "more", "train": ["lora"], "max_steps": 1},
    ]
    assert run(path, f"train.stages={json.dumps(stages)}", resume="auto").name == "checkpoint-3"


def test_samples_without_a_supervised_token_are_dropped_and_counted(workspace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    run(workspace({"max_tokens": 48}))
    said = capsys.readouterr().out
    assert "1 training samples, 7 dropped: nothing to supervise within model.max_length" in said


def test_a_loss_that_is_not_finite_stops_the_run(workspace: Workplace) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 30, "learning_rate": 1e30}
    with pytest.raises(TesseraError, match=r"step \d+: the loss is .*lower train\.learning_rate"):
        run(workspace(stages=[stage], warmup_steps=0.0))


@pytest.mark.parametrize(
    ("train_settings", "message"),
    [
        ({"processes": 2}, r"train\.processes: 2 processes are asked for, 1 are running"),
        ({"stages": [{"name": "a", "train": ["lora"]}, {"name": "a", "train": ["lora"]}]}, r"train\.stages\.1\.name: an earlier stage"),
        ({"stages": [{"name": "a", "train": []}]}, r"train\.stages\.0\.train: empty"),
        ({"stages": []}, r"train\.stages: empty"),
        ({"stages": [{"name": "a", "train": ["lora"]}, {"name": "b", "train": ["language"]}]}, "one or the other"),
        ({"batching": "packed", "tokens_per_row": 20}, r"train\.tokens_per_row: 20 is less than the longest sample"),
    ],
)
def test_settings_that_do_not_fit_are_named(workspace: Workplace, train_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(workspace(**train_settings))
