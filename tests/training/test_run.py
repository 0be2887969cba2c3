"""Complete training runs of a few steps, in this process."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import config as configuration
from answering.protocol import Answer, Request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.loading.sample_store import SampleStore
from dataset.sample import SAMPLES_SCHEMA
from errors import TesseraError, UsageError
from model.checkpoint_manifest import manifest_mismatch
from model.siglip_qwen.processor import Processor
from training.checkpointing.resume import TRAINER_FOLDER, RunState, read_run_state
from training.run import TrainingRun

Workspace = Callable[..., Path]

slow = pytest.mark.slow


def run(path: Path, *overrides: str, resume: str | None = None) -> Path:
    return TrainingRun(configuration.load(path, list(overrides)), resume).train()


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    # Cloned: load_file maps the file into memory, and a test may change the file.
    return {key: value.clone() for key, value in load_file(checkpoint / "adapter_model.safetensors").items()}


def state(checkpoint: Path) -> RunState:
    return read_run_state(checkpoint / TRAINER_FOLDER)


def losses(checkpoint: Path, key: str = "loss") -> list[float]:
    return [row[key] for row in state(checkpoint).history if key in row]


def test_training_overfits_eight_samples(workspace: Workspace) -> None:
    # All weights of the language model: with the frozen random lm_head of untrained models no answer can become likely.
    stage = {"name": "all", "train": ["connector", "language"], "epochs": 40}
    checkpoint = run(workspace({"lora": None}, stages=[stage], per_device_train_batch_size=8, learning_rate=4e-3, logging_steps=10))
    assert losses(checkpoint)[0] > 5
    assert losses(checkpoint)[-1] < 0.05


def test_stages_run_in_order_and_steps_continue_over_them(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_checkpoint_contains_no_base_weights_and_an_optimizer_unless_another_stage_follows(workspace: Workspace) -> None:
    align = {"name": "align", "train": ["connector"], "max_steps": 1}
    last = run(workspace(stages=[align, {"name": "tune", "train": ["connector", "lora"], "max_steps": 2}], save_steps=1))
    assert all(".lora_" in key or "multi_modal_projector" in key for key in weights(last))
    checkpoints = [last.parent / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert [(path / TRAINER_FOLDER / "optimizer.pt").exists() for path in checkpoints] == [False, True, True]
    assert [state(path).finished for path in checkpoints] == [True, False, True]


@pytest.mark.parametrize(
    ("model", "stage", "trained"),
    [
        ({"quantization": "nf4"}, ["connector", "lora"], "lora_A"),
        pytest.param({"quantization": "nf4"}, ["connector"], "linear_2", marks=slow),
        pytest.param({"quantization": "int8"}, ["connector", "lora"], "lora_B", marks=slow),
        pytest.param({"lora": {"r": 4, "lora_alpha": 8, "use_dora": True}}, ["connector", "lora"], "magnitude", marks=slow),
        pytest.param({"lora": None}, ["connector"], "linear_1", marks=slow),
        ({"lora": None}, ["connector", "language"], "language/model.safetensors"),
        ({"connector": {"kind": "resampler", "num_queries": 5, "num_attention_heads": 4}}, ["connector", "lora"], "queries"),
        pytest.param(
            {"connector": {"kind": "qformer", "num_queries": 5, "num_attention_heads": 4}}, ["connector"], "crossattention", marks=slow
        ),
        ({"tiles": {"max": 2}}, ["connector", "lora"], "image_newline"),
        ({"vision_layers": 1}, ["vision", "connector", "lora"], "trained_weights.safetensors"),
        pytest.param({"lora": None}, ["vision", "connector"], "trained_weights.safetensors", marks=slow),
        pytest.param({"vision_lora": {"r": 2, "lora_dropout": 0.0}}, ["vision", "connector"], "vision_tower", marks=slow),
        pytest.param({"lora": {"r": 4, "use_rslora": True, "layers_to_transform": [0]}}, ["lora"], "layers.0", marks=slow),
        ({"lora": {"r": 4, "init_lora_weights": "pissa"}}, ["connector", "lora"], "lora_A"),
    ],
)
def test_every_combination_of_trained_groups_and_quantization_trains_and_resumes(
    workspace: Workspace, model: dict[str, Any], stage: list[str], trained: str
) -> None:
    path = workspace(
        model, stages=[{"name": "tune", "train": stage, "epochs": 2}], learning_rate=3e-3, save_steps=1, per_device_train_batch_size=8
    )
    uninterrupted = run(path)
    assert losses(uninterrupted)[1] < losses(uninterrupted)[0]
    assert (uninterrupted / trained).is_file() or any(trained in key for key in weights(uninterrupted))
    uninterrupted.rename("moved")
    resumed = run(path, resume="auto")
    assert resumed == uninterrupted
    assert weights(resumed).keys() == weights(Path("moved")).keys()
    for file in Path("moved").rglob("*.safetensors"):
        expected, actual = load_file(file), load_file(resumed / file.relative_to("moved"))
        assert all(torch.equal(value, actual[key]) for key, value in expected.items())


def test_under_bf16_autocast_trained_weights_stay_in_fp32(workspace: Workspace) -> None:
    checkpoint = run(workspace(precision="bf16", gradient_checkpointing=True))
    assert {value.dtype for value in weights(checkpoint).values()} == {torch.float32}


def test_gradient_accumulation_gives_the_same_loss_as_one_large_batch(workspace: Workspace) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 3}
    path = workspace(stages=[stage], per_device_train_batch_size=8)
    run(path).rename("one-batch")
    accumulated = run(path, "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=4")
    assert losses(accumulated) == pytest.approx(losses(Path("one-batch")), abs=1e-5)
    assert losses(accumulated, "grad_norm") == pytest.approx(losses(Path("one-batch"), "grad_norm"), rel=1e-4)


def test_packed_rows_give_the_same_loss_as_padded_batches(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    path = workspace(stages=[stage], per_device_train_batch_size=8)
    run(path).rename("padded")
    assert "micro-batches: 8 samples of similar length, padded (auto on cpu), matrix products in fp32" in capsys.readouterr().out
    packed = run(path, "train.batching=packed", "train.packing_length=1024")
    assert "micro-batches: packed rows of 1,024 tokens (train.batching=packed), matrix products in fp32" in capsys.readouterr().out
    assert losses(packed) == pytest.approx(losses(Path("padded")), abs=1e-4)
    assert losses(packed, "eval_loss") == pytest.approx(losses(Path("padded"), "eval_loss"), abs=1e-4)


def test_validation_loss_is_a_mean_over_tokens(workspace: Workspace) -> None:
    path = workspace(per_device_train_batch_size=4)
    run(path).rename("four")
    # A mean over batches of one would give every sample the same weight.
    single = run(path, "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4", "train.stages.0.max_steps=2")
    first = [losses(folder, "eval_loss")[0] for folder in (single, Path("four"))]
    assert first[0] == pytest.approx(first[1], abs=0.05)
    assert [row["eval_tokens"] for row in state(single).history if "eval_tokens" in row] == [
        row["eval_tokens"] for row in state(Path("four")).history if "eval_tokens" in row
    ]


def test_a_stage_that_stops_early_ends_with_its_best_weights(workspace: Workspace) -> None:
    # A learning rate that ruins the model: the first evaluation is the best one.
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
    assert manifest_mismatch(last) is None


def test_sample_predictions_and_loss_curves_are_written(workspace: Workspace) -> None:
    run(workspace(num_logged_predictions=2, eval_steps=1))
    events = EventAccumulator("results/toy/tensorboard", size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("validation/1")] == [1, 2]
    assert {"loss/training", "loss/validation", "learning_rate/lora", "speed/samples_per_second"} <= set(events.Tags()["scalars"])
    assert Path("results/toy/loss_curves.png").stat().st_size > 5000
    assert Path("results/toy/answers.png").stat().st_size > 2000


def test_an_incomplete_checkpoint_is_skipped_with_a_message(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace(
        stages=[{"name": "tune", "train": ["connector", "lora"], "max_steps": 3}],
        per_device_train_batch_size=2,
        save_steps=1,
        save_total_limit=3,
    )
    last = run(path)
    expected = weights(last)
    (last / "adapter_model.safetensors").write_bytes(b"half")
    resumed = run(path, resume="auto")
    assert f"skipping {last}: adapter_model.safetensors has 4 bytes, whole.json lists" in capsys.readouterr().out
    assert all(torch.equal(value, expected[key]) for key, value in weights(resumed).items())


def test_only_the_latest_checkpoints_of_a_stage_are_kept(workspace: Workspace) -> None:
    stage = {"name": "tune", "train": ["connector"], "epochs": 2}
    last = run(workspace(stages=[stage], per_device_train_batch_size=2, save_steps=1, save_total_limit=3))
    assert sorted(path.name for path in last.parent.iterdir()) == ["checkpoint-6", "checkpoint-7", "checkpoint-8"]


def test_a_new_run_does_not_overwrite_an_old_one(workspace: Workspace) -> None:
    path = workspace()
    last = run(path)
    with pytest.raises(UsageError, match=r"checkpoint-2 already exists: continue with --resume auto"):
        run(path)
    assert run(path, resume="auto") == last


def test_resuming_with_other_settings_is_an_error_that_names_them(workspace: Workspace) -> None:
    path = workspace(save_steps=1)
    last = run(path)
    with pytest.raises(UsageError, match=r"train\.max_grad_norm was 1\.0, is 2\.0; .*use those, or a new name"):
        run(path, "train.max_grad_norm=2", resume="auto")
    with pytest.raises(UsageError, match=r"model\.lora\.r was 4, is 8"):
        run(path, "model.lora.r=8", resume=str(last))
    # Settings that do not change a training step may differ.
    assert run(path, "train.logging_steps=7", "train.save_total_limit=9", resume="auto") == last


def test_a_stage_may_be_added_after_a_finished_run(workspace: Workspace) -> None:
    path = workspace()
    run(path)
    stages = [
        {"name": "tune", "train": ["connector", "lora"], "max_steps": 2},
        {"name": "more", "train": ["lora"], "max_steps": 1},
    ]
    assert run(path, f"train.stages={json.dumps(stages)}", resume="auto").name == "checkpoint-3"


def test_checkpoints_record_the_prompts_of_the_data_and_predictions_are_asked_with_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workspace(num_logged_predictions=1)
    samples = Path("data/toy/samples.parquet")
    rows = pq.read_table(samples).to_pylist()
    for i, row in enumerate(rows):
        row["prompt"] = None if row["task"] == "caption" else "One word." if i else "Briefly!"
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA), samples)
    asked: list[str] = []
    answer = FamilyAnswerer.answer

    def record(answerer: FamilyAnswerer, requests: Sequence[Request], *arguments: Any) -> list[Answer]:
        answers = answer(answerer, requests, *arguments)
        asked.extend(reply.prompt for reply in answers)
        return answers

    monkeypatch.setattr(FamilyAnswerer, "answer", record)
    checkpoint = run(path)
    assert Processor.load(checkpoint).prompts == {"vqa": {"en": "One word."}}
    assert "vqa samples (en) have 2 different prompts" in capsys.readouterr().out
    assert all("What color is the circle?\nOne word.<|im_end|>" in prompt for prompt in asked) and asked


def test_samples_without_a_supervised_token_are_dropped_and_counted(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run(workspace({"max_length": 48}))
    assert (
        "1 training samples, 7 dropped: nothing to supervise within model.max_length, or images that the model does not take (all ids: "
        in capsys.readouterr().out
    )
    (listed,) = Path("checkpoints").glob("*/dropped_training.txt")
    ids = listed.read_text(encoding="utf-8").splitlines()
    assert len(set(ids)) == 7
    assert set(ids) < set(SampleStore(Path("data/toy")).column("sample_id"))


def test_a_loss_that_is_not_finite_ends_the_run(workspace: Workspace) -> None:
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 30, "learning_rate": 1e30}
    with pytest.raises(TesseraError, match=r"step \d+: the loss is .*lower train\.learning_rate"):
        run(workspace(stages=[stage], warmup_steps=0.0))


@pytest.mark.parametrize(
    ("train_settings", "message"),
    [
        ({"num_processes": 2}, r"train\.num_processes: expected 2 processes, found 1"),
        ({"stages": [{"name": "a", "train": ["lora"]}, {"name": "a", "train": ["lora"]}]}, r"train\.stages\.1\.name: an earlier stage"),
        ({"stages": [{"name": "a", "train": []}]}, r"train\.stages\.0\.train: empty"),
        ({"stages": []}, r"train\.stages: empty"),
        ({"stages": [{"name": "a", "train": ["lora"]}, {"name": "b", "train": ["language"]}]}, "only one of these"),
        ({"batching": "packed", "packing_length": 20}, r"train\.packing_length: 20 is less than the longest sample"),
    ],
)
def test_invalid_settings_are_named_in_the_error(workspace: Workspace, train_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(workspace(**train_settings))
