"""Runs of other model families: trained, resumed, asked, and what they cannot do."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import config as configuration
from answering.answerer_factory import build_answerer, build_untuned
from answering.config import CheckpointSystem, DecodingConfig
from errors import UsageError
from tests.answering.conftest import make_request
from tests.small_models import build_blip2, build_llava
from tests.training import toy_family
from tests.training.test_run import losses
from tests.training.test_train_command import check_killed_run_resumes, run_on_two_ranks
from training.preflight import check_settings
from training.run import TrainingRun

Workspace = Callable[..., Path]

STAGES = [
    {"name": "align", "train": ["connector"], "max_steps": 2},
    {"name": "tune", "train": ["connector", "lora"], "epochs": 2, "max_steps": 3},
]


def qwen_vl(parts: Path, **changes: Any) -> dict[str, Any]:
    """Keys of `model`."""
    return {"family": "qwen_vl", "path": str(parts / "qwen3_vl"), **changes}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{path.name}: {name}": tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


FUSION = {"hidden_size": 32, "num_attention_heads": 3}


def family_keys(kind: str, parts: Path) -> dict[str, Any]:
    """Keys of `model` of a small model of each kind."""
    resnet_gpt2 = {"vision": str(parts / "resnet"), "language": str(parts / "gpt2"), "lora": None, "connector": FUSION}
    keys: dict[str, dict[str, Any]] = {
        "qwen_vl": qwen_vl(parts),
        "qwen_vl_nf4": qwen_vl(parts, quantization="nf4"),
        "blip2": {"family": "blip2", "path": str(parts / "blip2")},
        "blip2_t5": {"family": "blip2", "path": str(build_blip2(Path("t5"), "t5", parts))} if kind == "blip2_t5" else {},
        "llava": {"family": "llava", "path": str(build_llava(Path("llava"), parts, "clip_llama"))} if kind == "llava" else {},
        "resnet_gpt2": {"family": "resnet_gpt2", **resnet_gpt2},
        "resnet_gpt2_original": {"family": "resnet_gpt2", **resnet_gpt2, "features": "grid", "generation": "original"},
    }
    return keys[kind]


VISUAL_TOKENS = {"qwen_vl": 9, "qwen_vl_nf4": 9, "blip2": 9, "blip2_t5": 4, "llava": 4, "resnet_gpt2": 1, "resnet_gpt2_original": 9}


FIRST = "qwen_vl_nf4"
"""The family that `make test` trains; all are trained by `make test-all`."""


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=() if kind == FIRST else pytest.mark.slow) for kind in VISUAL_TOKENS])
def test_a_model_of_each_family_is_trained_resumed_bit_for_bit_and_asked(
    workspace: Workspace, parts: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model, stages = family_keys(kind, parts), STAGES
    if kind.startswith("resnet"):
        stages = [STAGES[0], {**STAGES[1], "train": ["connector", "language"]}]
    config = configuration.load(workspace(model, stages=stages, save_steps=1, save_total_limit=9, eval_steps=2, num_logged_predictions=2))
    last = TrainingRun(config).train()
    printed = capsys.readouterr().out
    assert "stage tune: 3 steps, " in printed and "validation loss" in printed and "FLOP of useful operations" in printed
    expected = weights(last)
    for step in (4, 5):
        shutil.rmtree(last.parent / f"checkpoint-{step}")
    assert TrainingRun(config, "auto").train() == last
    found = weights(last)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    request = make_request("a", "What color is the circle?", Image.new("RGB", (96, 96), "red"))
    system = CheckpointSystem(name="tuned", kind="checkpoint", path=str(last))
    answers = [
        build(system, checkpoint_folder=last.parent, device="cpu").answer([request], DecodingConfig(num_candidates=2, max_new_tokens=3))[0]
        for build in (build_answerer, build_untuned)
    ]
    assert answers[0].visual_tokens == answers[1].visual_tokens == VISUAL_TOKENS[kind]
    assert answers[0].first.log_prob != answers[1].first.log_prob


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in ("resnet_gpt2", "qwen_vl_nf4", "blip2", "llava")])
def test_a_killed_run_of_each_family_resumes_with_the_same_weights_bit_for_bit(workspace: Workspace, parts: Path, kind: str) -> None:
    model, stages = {"lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3}, **family_keys(kind, parts)}, STAGES
    if kind.startswith("resnet"):
        stages = [STAGES[0], {**STAGES[1], "train": ["connector", "language"]}]
    check_killed_run_resumes(workspace(model, stages=stages, save_steps=1), 4, 5, weights)


def test_samples_without_an_image_are_dropped_by_a_family_that_needs_one(
    workspace: Workspace, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TrainingRun(configuration.load(workspace(family_keys("blip2", parts)))).train()
    assert (
        "7 training samples, 1 dropped: nothing to supervise within model.max_length, or images that the model" in capsys.readouterr().out
    )


def test_questions_are_not_joined_for_an_encoder_decoder(workspace: Workspace, parts: Path) -> None:
    config = configuration.load(workspace(family_keys("blip2_t5", parts), max_questions_per_conversation=4))
    with pytest.raises(UsageError, match=r"train\.max_questions_per_conversation: 4, but of a conversation .* the last answer alone"):
        TrainingRun(config).train()


def test_training_samples_are_balanced_by_category(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace()
    with pytest.raises(UsageError, match=r"data\.balance: no sample in data/toy has a category"):
        TrainingRun(configuration.load(path, ["data.balance=category"])).train()
    table = pq.read_table("data/toy/samples.parquet")
    categories = pa.array(["circle", *["star"] * (len(table) - 1)])
    pq.write_table(table.set_column(table.schema.get_field_index("category"), "category", categories), "data/toy/samples.parquet")
    TrainingRun(configuration.load(path, ["data.balance=category"])).train()
    assert "14 training samples" in capsys.readouterr().out


EIGHT_AT_ONCE = ("train.per_device_train_batch_size=8",)


@pytest.mark.parametrize(
    ("processes", "others"),
    [
        (1, ("train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=4")),
        pytest.param(1, (*EIGHT_AT_ONCE, "train.gradient_checkpointing=true"), marks=pytest.mark.slow),
        # Batches of one: the sample without an image is the only one of its micro-batch.
        pytest.param(2, ("train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4"), marks=pytest.mark.slow),
    ],
    ids=["accumulated", "recomputed", "two ranks"],
)
def test_the_loss_is_the_mean_over_the_tokens_of_a_step_however_it_is_divided(
    workspace: Workspace, parts: Path, processes: int, others: tuple[str, ...]
) -> None:
    """Stock Qwen classes tell Trainer to average the means of the micro-batches instead."""
    stage = {"name": "tune", "train": ["connector", "lora"], "epochs": 2}
    path = workspace(qwen_vl(parts), stages=[stage], save_steps=1)
    checkpoint = TrainingRun(configuration.load(path, [*EIGHT_AT_ONCE])).train()
    checkpoint.parent.rename("whole")
    if processes == 1:
        TrainingRun(configuration.load(path, [*others])).train()
    else:
        result = run_on_two_ranks("--config", path, *others, "train.num_processes=2")
        assert result.returncode == 0, result.stderr
    whole = Path("whole") / checkpoint.name
    assert losses(checkpoint) == pytest.approx(losses(whole), abs=1e-5)
    assert losses(checkpoint, "grad_norm") == pytest.approx(losses(whole, "grad_norm"), rel=1e-4)
    assert losses(checkpoint, "eval_loss") == pytest.approx(losses(whole, "eval_loss"), abs=1e-4)


def test_a_family_that_the_product_does_not_know_is_trained_resumed_and_asked(
    workspace: Workspace, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer, data loaders and answering know the protocol alone; see CONTRIBUTING, To add a model family."""
    monkeypatch.setitem(sys.modules, "model.toy", ModuleType("model.toy"))
    monkeypatch.setitem(sys.modules, "model.toy.family", toy_family)
    groups = [["connector"], ["connector", "language"]]
    stages = [{"name": name, "train": trained, "epochs": 2} for name, trained in zip(("align", "tune"), groups, strict=True)]
    config = configuration.load(workspace(stages=stages, save_steps=1, save_total_limit=9, num_logged_predictions=1))
    object.__setattr__(config, "model", toy_family.ToyConfig(path=str(parts / "qwen3"), max_length=128))
    last = TrainingRun(config).train()
    expected = weights(last)
    assert {name.split(": ")[1].split(".")[0] for name in expected} == {"color", "model"}
    for step in (6, 7, 8):
        shutil.rmtree(last.parent / f"checkpoint-{step}")
    assert TrainingRun(config, "auto").train() == last
    assert all(torch.equal(weights(last)[name], tensor) for name, tensor in expected.items())
    system = CheckpointSystem(name="toy", kind="checkpoint", path=str(last))
    requests = [make_request(color, "What color is the circle?", Image.new("RGB", (9, 9), color)) for color in ("red", "blue")]
    answers = build_answerer(system, checkpoint_folder=last.parent, device="cpu").answer(requests, DecodingConfig(max_new_tokens=3))
    assert [answer.visual_tokens for answer in answers] == [1, 1]
    assert answers[0].first.log_prob != answers[1].first.log_prob


def test_an_image_of_another_size_than_when_the_data_were_merged_is_left_out(
    workspace: Workspace, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tokens would be others than those that were counted."""
    path = workspace(qwen_vl(parts), max_unreadable_images=0.5)
    Image.new("RGB", (128, 96), "red").save("data/toy/2.png")
    TrainingRun(configuration.load(path)).train()
    assert "data/toy/2.png: has 128 x 96 pixels, 96 x 96 when the data were merged" in capsys.readouterr().out


def test_an_image_that_the_model_cannot_take_is_dropped_with_its_sample(
    workspace: Workspace, parts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data_loading.image_sizes", lambda _, sample, __: [(9000, 4)] * len(sample.image_ids))
    TrainingRun(configuration.load(workspace(qwen_vl(parts)))).train()
    assert "1 training samples, 7 dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batching": "packed"}, r"train\.batching: packed rows cannot be had with model\.family=qwen_vl"),
        ({"cache_vision_features": True}, r"train\.cache_vision_features: .* cannot be had with model\.family=qwen_vl"),
        ({"torch_compile": True}, r"train\.torch_compile: .* cannot be had"),
        ({"init_from": "data"}, r"train\.init_from: .* cannot be had"),
    ],
)
def test_what_a_family_cannot_do_is_one_sentence(workspace: Workspace, parts: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings(configuration.load(workspace(qwen_vl(parts), **settings)))


def test_a_group_that_a_family_does_not_have_is_one_sentence(workspace: Workspace) -> None:
    stages = [{"name": "tune", "train": ["lora"]}]
    path = workspace(stages=stages)
    raw = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**raw, "model": {"family": "resnet_gpt2", "vision": "a/b", "language": "c/d"}}))
    with pytest.raises(UsageError, match=r"stages\.0\.train: a resnet_gpt2 model has no group lora; it has vision, connector, language"):
        check_settings(configuration.load(path))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "blip3", "path": "a/b"}, r"model: unknown family; expected siglip_qwen, qwen_vl, blip2, llava or resnet_gpt2"),
        ({"family": "qwen_vl", "path": "a/b", "vision": "c/d"}, r"model\.vision: unknown key"),
        ({"family": "qwen_vl"}, r"model\.path: this key is missing"),
        ({"family": "qwen_vl", "path": "a/b", "min_pixels": 9, "max_pixels": 3}, r"min_pixels 9 is more than max_pixels 3"),
    ],
)
def test_a_wrong_key_of_a_family_is_named(workspace: Workspace, model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configuration.load(workspace(model))
