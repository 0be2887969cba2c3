"""A run starts from the weights of a checkpoint, a merged model or a LLaVA folder; its own checkpoints are loaded from anywhere."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.family import LoadOptions
from model.family_config import ParamGroup
from model.hub.llava_export import export
from model.siglip_qwen import checkpoint, initial_weights
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.config import ConnectorConfig, LoraConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_checkpoint import logits
from tests.model.siglip_qwen.test_modeling import with_labels
from tests.model.test_lora import train

Settings = Callable[..., SiglipQwenConfig]
Batch = Callable[..., dict[str, torch.Tensor]]
Source = Callable[..., tuple[Path, nn.Module]]

OTHER_LORA = LoraConfig(r=2, lora_alpha=2, lora_dropout=0.0)


def write(model: nn.Module, folder: Path, processor: Processor) -> Path:
    """Write a complete checkpoint."""
    checkpoint.save(model, folder)
    processor.save(folder)
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def trained(make: Build, settings: Settings, batch: Batch, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A trained model as a folder of a form, made once; returns the folder and the model."""
    made: dict[str, tuple[Path, nn.Module]] = {}

    def build(form: str, groups: tuple[ParamGroup, ...], **changes: Any) -> tuple[Path, nn.Module]:
        key = f"{form} {groups} {changes}"
        if key not in made and form == "adapter":
            model = configure_trainable(make(**changes), settings(**changes), groups)
            train(model, with_labels(batch(1, 2)), steps=3)
            made[key] = write(model, tmp_path_factory.mktemp("trained") / "checkpoint-3", processor), model.eval()
        elif key not in made:
            folder, model = build("adapter", groups, **changes)
            out = tmp_path_factory.mktemp(form) / form
            export(folder, out, form, processor)  # type: ignore[arg-type]
            made[key] = out, model
        return made[key]

    return build


@pytest.fixture
def source(trained: Source, tmp_path: Path) -> Source:
    """A copy of a trained model's folder, which a test may change; returns the folder and the model."""

    def copy(form: str = "adapter", groups: tuple[ParamGroup, ...] = ("connector", "lora"), **changes: Any) -> tuple[Path, nn.Module]:
        original, model = trained(form, groups, **changes)
        folder = tmp_path / ("run/checkpoint-3" if form == "adapter" else form)
        shutil.copytree(original, folder, dirs_exist_ok=True)
        return folder, model

    return copy


def start(folder: Path, model: SiglipQwenConfig, processor: Processor, trains_language: bool = False) -> VisionLanguageModel | PeftModel:
    """What a run does before its first stage."""
    found = initial_weights.find(folder)
    initial_weights.check_compatible(found, model, processor)
    started = initial_weights.start(found, model, LoadOptions(torch.float32), trains_language=trains_language)
    base_model(started).config.image_token_id = processor.image_token_id
    return started.eval()


@pytest.mark.parametrize("form", ["adapter", "merged", "llava"])
@pytest.mark.parametrize("lora", [LoraConfig(r=4, lora_alpha=8), OTHER_LORA, None])
def test_every_form_of_folder_gives_the_logits_of_its_model(
    source: Source, settings: Settings, processor: Processor, batch: Batch, form: str, lora: LoraConfig | None
) -> None:
    folder, trained = source(form)
    started = start(folder, settings(lora=lora), processor)
    torch.testing.assert_close(logits(started, batch(1, 2)), logits(trained, batch(1, 2)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("form", "groups"),
    [
        ("adapter", ("connector",)),
        ("adapter", ("connector", "lora")),
        ("merged", ("connector", "language")),
        ("llava", ("connector", "lora")),
        ("llava", ("connector", "language")),
    ],
)
def test_the_runs_own_checkpoint_loads_merges_and_exports(
    source: Source, settings: Settings, processor: Processor, batch: Batch, tmp_path: Path, form: str, groups: tuple[ParamGroup, ...]
) -> None:
    folder, _ = source(form)
    config = settings(lora=OTHER_LORA, system_prompt="Answer briefly.")
    model = configure_trainable(start(folder, config, processor, "language" in groups), config, groups)
    train(model, with_labels(batch(1, 2)), steps=2)
    own, expected = write(model, tmp_path / "own", processor), logits(model.eval(), batch(1, 2))
    torch.testing.assert_close(logits(checkpoint.load(own), batch(1, 2)), expected, atol=1e-5, rtol=0)
    assert checkpoint.settings(own) == config
    merged = checkpoint.merge(own)
    torch.testing.assert_close(logits(merged, batch(1, 2)), expected, atol=1e-5, rtol=0)
    assert merged.config.base_folder is None
    export(own, tmp_path / "exported", "llava", processor)
    again = start(tmp_path / "exported", config, processor)
    torch.testing.assert_close(logits(again, batch(1, 2)), expected, atol=1e-5, rtol=0)


def test_resuming_a_run_that_started_elsewhere_rounds_no_trained_weight(
    source: Source, settings: Settings, processor: Processor, batch: Batch, tmp_path: Path
) -> None:
    folder, _ = source("merged")
    config = settings(lora=OTHER_LORA)
    model = configure_trainable(start(folder, config, processor), config, ["connector", "lora"])
    train(model, with_labels(batch(1, 2)), steps=2)
    own = write(model, tmp_path / "own", processor)
    resumed = checkpoint.load(own, trainable=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in resumed.named_parameters() if parameter.requires_grad} == trainable
    write(resumed, tmp_path / "again", processor)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["base_folder"]["path"] == str(folder)


def test_adapters_of_the_same_shape_continue_and_others_are_merged(source: Source, settings: Settings, processor: Processor) -> None:
    folder, _ = source()
    dropout = settings(lora=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3))
    continued = start(folder, dropout, processor)
    assert isinstance(continued, PeftModel) and continued.peft_config["default"].lora_dropout == 0.3  # type: ignore[union-attr]
    assert base_model(continued).config.base_folder is None
    for lora in (OTHER_LORA, LoraConfig(r=4, lora_alpha=4), LoraConfig(r=4, lora_alpha=8, use_dora=True), None):
        merged = start(folder, settings(lora=lora), processor)
        assert not isinstance(merged, PeftModel)
        assert merged.config.base_folder == {"path": str(folder), "sha256": initial_weights.find(folder).digest}


def test_a_checkpoint_without_adapters_needs_its_folder_no_more(source: Source, settings: Settings, processor: Processor) -> None:
    folder, _ = source(groups=("connector",))
    assert base_model(start(folder, settings(lora=OTHER_LORA), processor)).config.base_folder is None


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_model_trained_in_full_is_a_base_too(source: Source, settings: Settings, processor: Processor, batch: Batch, form: str) -> None:
    folder, trained = source(form, groups=("connector", "language"), lora=None)
    started = start(folder, settings(lora=OTHER_LORA), processor)
    torch.testing.assert_close(logits(started, batch(1)), logits(trained, batch(1)), atol=1e-5, rtol=0)
    assert started.config.base_folder is not None and not started.config.language_weights


def test_full_training_saves_the_language_model_and_so_needs_no_folder_of_adapters(
    source: Source, settings: Settings, processor: Processor, tmp_path: Path
) -> None:
    folder, _ = source()
    config = settings(lora=None)
    # A stage that trains the connector alone comes first: its checkpoint has the merged language model too.
    model = configure_trainable(start(folder, config, processor, trains_language=True), config, ["connector"])
    own = write(model, tmp_path / "own", processor)
    shutil.rmtree(folder)
    assert (own / "language" / "model.safetensors").is_file()
    assert base_model(checkpoint.load(own)).config.base_folder is None


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_merged_weights_are_quantised_as_if_they_were_loaded(
    source: Source, settings: Settings, processor: Processor, batch: Batch, tmp_path: Path, quantization: Any
) -> None:
    folder, trained = source()
    config = settings(lora=OTHER_LORA, quantization=quantization)
    model = configure_trainable(start(folder, config, processor), config, ["connector", "lora"])
    difference = (logits(model.eval(), batch(1)) - logits(trained, batch(1))).abs().max()
    assert 0 < difference < 1, "the language model is quantised, with the merged weights"
    train(model, with_labels(batch(1, 2)), steps=2)
    own = write(model, tmp_path / "own", processor)
    assert torch.equal(logits(checkpoint.load(own), batch(1)), logits(model.eval(), batch(1)))
    exact = checkpoint.load(own, quantization="none")
    torch.testing.assert_close(logits(checkpoint.merge(own), batch(1)), logits(exact, batch(1)), atol=1e-5, rtol=0)


def test_a_checkpoint_whose_start_is_gone_or_has_changed_says_so(
    source: Source, settings: Settings, processor: Processor, tmp_path: Path
) -> None:
    folder, _ = source("merged")
    config = settings(lora=OTHER_LORA)
    own = write(configure_trainable(start(folder, config, processor), config, ["connector", "lora"]), tmp_path / "own", processor)
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=rf"own: its run started from {folder} \(train\.init_from\), which does not exist"):
        checkpoint.load(own)
    shutil.copytree(moved, folder)
    checkpoint.load(own)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"which holds other weights now: the SHA-256"):
        checkpoint.load(own)


def test_the_latest_checkpoint_of_a_runs_folder_is_taken(source: Source, tmp_path: Path) -> None:
    folder, _ = source()
    shutil.copytree(folder, folder.with_name("checkpoint-20"))
    assert initial_weights.find(tmp_path / "run").folder.name == "checkpoint-20"


@pytest.mark.parametrize("form", ["adapter", "merged", "llava"])
def test_a_damaged_folder_is_refused(source: Source, form: str) -> None:
    folder, _ = source(form)
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UsageError, match=rf"train\.init_from: {folder}: .*the content of {weights.name} has changed"):
        initial_weights.find(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, parts: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.init_from: .*nothing does not exist"):
        initial_weights.find(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"train\.init_from: .*it contains no complete checkpoint"):
        initial_weights.find(tmp_path)
    with pytest.raises(UsageError, match=r"train\.init_from: .*not a Tessera checkpoint but a qwen3 model"):
        initial_weights.find(parts / "qwen3")


@pytest.mark.parametrize("form", ["adapter", "merged", "llava"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connector": ConnectorConfig(kind="mlp_pool", pool=2)}, "model.connector.kind was mlp, is mlp_pool"),
        ({"vision_feature_layer": -1}, "model.vision_feature_layer was -2, is -1"),
        ({"drop_first_patch": True}, "model.drop_first_patch was False, is True"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    source: Source, settings: Settings, processor: Processor, form: str, changes: dict[str, Any], message: str
) -> None:
    folder, _ = source(form)
    with pytest.raises(UsageError, match=rf"train\.init_from: {folder}: {message}"):
        initial_weights.check_compatible(initial_weights.find(folder), settings(**changes), processor)


def test_a_connector_that_is_trained_may_read_another_layer(source: Source, settings: Settings, processor: Processor) -> None:
    found = initial_weights.find(source()[0])
    other = settings(vision_feature_layer=-1)
    initial_weights.check_compatible(found, other, processor, trains_connector=True)
    model = initial_weights.start(found, other, LoadOptions(torch.float32), trains_language=False)
    assert base_model(model).config.vision_feature_layer == -1
    with pytest.raises(UsageError, match=r"model\.connector\.kind was mlp, is mlp_pool"):
        pooled = settings(connector=ConnectorConfig(kind="mlp_pool", pool=2))
        initial_weights.check_compatible(found, pooled, processor, trains_connector=True)


def test_another_base_model_is_named_with_what_differs(
    source: Source, settings: Settings, processor: Processor, qwen2: Path, parts: Path, tmp_path: Path
) -> None:
    found = initial_weights.find(source()[0])
    with pytest.raises(UsageError, match=rf"model\.language was {parts}/qwen3 \(\w+ .*\), is {qwen2} \(\w+ .*\)"):
        initial_weights.check_compatible(found, settings(language=str(qwen2)), processor)
    shutil.copytree(parts / "siglip", tmp_path / "siglip")
    config = json.loads((tmp_path / "siglip" / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (tmp_path / "siglip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"model\.vision was .*/siglip \(num_hidden_layers \d+\), is .*/siglip \(num_hidden_layers \d+\)"):
        initial_weights.check_compatible(found, settings(vision=str(tmp_path / "siglip")), processor)


def test_an_equal_layer_by_another_index_fits(source: Source, settings: Settings, processor: Processor) -> None:
    found = initial_weights.find(source()[0])
    layers = found.config.vision_config.num_hidden_layers
    initial_weights.check_compatible(found, settings(vision_feature_layer=layers - 1), processor)


def test_another_vocabulary_is_named(source: Source, settings: Settings, processor: Processor) -> None:
    folder, _ = source()
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    vocab = state["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    path.write_text(json.dumps(state), encoding="utf-8")
    write_manifest(folder)
    with pytest.raises(UsageError, match=r"its tokenizer gives '[AB]' the id \d+, that of model\.language \d+"):
        initial_weights.check_compatible(initial_weights.find(folder), settings(), processor)


@pytest.mark.parametrize(
    ("key", "value"),
    [("projector_hidden_act", "relu"), ("multimodal_projector_bias", False), ("vision_feature_layer", [-2, -1])],
)
def test_a_llava_of_another_kind_is_refused_by_name(source: Source, key: str, value: Any) -> None:
    folder, _ = source("llava")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    (folder / "whole.json").unlink()
    with pytest.raises(UsageError, match=rf"train\.init_from: {folder}/config\.json: {key} is "):
        initial_weights.find(folder)


@pytest.mark.parametrize("changes", [{"vision_feature_layer": "last_hidden_state"}, {"vision_feature_layer": -1}])
def test_a_llava_folder_keeps_its_feature_layer(
    source: Source, settings: Settings, processor: Processor, batch: Batch, changes: dict[str, Any]
) -> None:
    folder, trained = source("llava", **changes)
    started = start(folder, dataclasses.replace(settings(**changes), lora=OTHER_LORA), processor)
    torch.testing.assert_close(logits(started, batch(1)), logits(trained, batch(1)), atol=1e-5, rtol=0)


def specification(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("form", ["adapter", "merged", "llava"])
@pytest.mark.parametrize("groups", [("connector", "lora"), ("connector", "language")])
def test_a_rank_that_is_sent_the_weights_has_the_same_parameters(
    source: Source, settings: Settings, processor: Processor, tmp_path: Path, form: str, groups: tuple[ParamGroup, ...]
) -> None:
    folder, _ = source(form)
    config, found = settings(lora=OTHER_LORA), initial_weights.find(folder)
    options = [LoadOptions(torch.bfloat16, load_weights=loads) for loads in (True, False)]
    started = [initial_weights.start(found, config, each, trains_language="language" in groups) for each in options]
    models = [configure_trainable(model, config, groups) for model in started]
    assert specification(models[0]) == specification(models[1])
    assert any(parameter.is_meta for parameter in models[1].parameters())
    own = write(models[0], tmp_path / "own", processor)
    resumed = [checkpoint.load(own, each, trainable=True) for each in options]
    assert specification(resumed[0]) == specification(resumed[1])
