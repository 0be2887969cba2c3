"""Configuration: strict and typed, overrides, and every shipped YAML file loads."""

import dataclasses
from pathlib import Path

import pytest

import config
import config_schema
from answering.config import QwenVlSystem
from dataset.source_config import AiChallengerSource
from errors import UsageError
from model.siglip_qwen.config import SiglipQwenConfig

SHIPPED = sorted(path for path in Path("configs").glob("*.yaml") if path.stem != "ablation")  # that one is several configurations


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "t.yaml"
    path.write_text(
        "name: t\ndata:\n  sources:\n    - {format: ai_challenger, annotations: a.json, images: b}\ntrain: {learning_rate: 1e-4}\n",
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_yaml_loads_and_is_named_after_its_file(path: Path) -> None:
    assert config.load(path).name == path.stem


@pytest.mark.parametrize("path", [path for path in SHIPPED if not path.stem.startswith(("tiny", "blip2"))], ids=lambda path: path.stem)
def test_every_recipe_gives_the_baseline_its_own_image_limits_and_labels_the_original_384_pixels(path: Path) -> None:
    systems = {system.name: system for system in config.load(path).eval.systems}
    own, limited = systems["qwen3-vl-4bit"], systems["qwen3-vl-4bit-384px"]
    assert isinstance(own, QwenVlSystem) and own.max_image_side is None and own.quantization == "nf4"
    assert limited == dataclasses.replace(own, name="qwen3-vl-4bit-384px", max_image_side=384)


@pytest.mark.parametrize("path", Path("configs").glob("siglip_*.yaml"), ids=lambda path: path.stem)
def test_recipes_for_real_models_ask_for_short_answers_and_join_the_questions_of_an_image(path: Path) -> None:
    loaded = config.load(path)
    prompts = {source.prompt_in("en") for source in loaded.data.sources if source.format == "vqav2"}
    assert prompts == {"Answer the question using a single word or phrase."}
    assert loaded.train.max_questions_per_conversation == 8


@pytest.mark.parametrize("name", ["tiny", "tiny_seed1"])
def test_the_demo_asks_the_question_alone(name: str) -> None:
    assert {source.prompt for source in config.load(Path(f"configs/{name}.yaml")).data.sources} <= {None}


def test_the_default_is_shipped() -> None:
    assert config.DEFAULT in SHIPPED


def test_scientific_notation_is_a_number(yaml_file: Path) -> None:
    assert config.load(yaml_file).train.learning_rate == 1e-4


def test_overrides_reach_nested_keys_and_list_members(yaml_file: Path) -> None:
    loaded = config.load(
        yaml_file,
        [
            "train.per_device_train_batch_size=8",
            "data.sources.0.limit=5",
            "model.connector.kind=mlp_pool",
            "model.connector.pool=3",
            "model.lora=null",
        ],
    )
    assert loaded.train.per_device_train_batch_size == 8
    assert isinstance(loaded.model, SiglipQwenConfig) and loaded.model.connector.pool == 3
    assert loaded.model.lora is None
    source = loaded.data.sources[0]
    assert isinstance(source, AiChallengerSource) and source.limit == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bach_size=8", "train.bach_size: unknown key"),
        ("train.per_device_train_batch_size=eight", "train.per_device_train_batch_size: input should be a valid integer, found 'eight'"),
        ('train.seed="5"', "train.seed: input should be a valid integer"),
        ("train.per_device_train_batch_size=0", "train.per_device_train_batch_size: input should be greater than or equal to 1"),
        ("train.gradient_checkpointing=1", "train.gradient_checkpointing.bool: input should be a valid boolean, found 1"),
        ("model.quantization=int4", "model.quantization: input should be 'none', 'int8' or 'nf4'"),
        ("data.sources.0.format=cocoo", "data.sources.0: input tag 'cocoo'"),
        ("data.sources.7.limit=1", "'7' is not an index of a list of 1"),
        ("name.x=1", "'name' has no keys below it"),
        ("train.per_device_train_batch_size", "expected key=value"),
        ("train.per_device_train_batch_size=[1", "the value is not YAML"),
        ("name=../elsewhere", "name: string should match pattern"),
    ],
)
def test_a_wrong_override_names_the_key(yaml_file: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.load(yaml_file, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "a.json" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not a YAML file"),
        ("- 1", "expected a mapping"),
        ("name: t\nnmae: u", "nmae: unknown key"),
        ("data: {}", "name: this key is missing"),
        ("name: 2020-01-01", "only text, numbers"),
    ],
)
def test_an_invalid_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        config.load(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        config.load(tmp_path / "none.yaml")


def test_a_folder_instead_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        config.load(tmp_path)


def test_a_source_that_does_not_exist_is_named(yaml_file: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.sources\.0\.annotations: a\.json does not exist"):
        config.check_source_paths(config.load(yaml_file))


def test_a_folder_that_does_not_exist_is_named_and_a_hub_name_passes(yaml_file: Path) -> None:
    loaded = config.load(yaml_file, ["model.vision=checkpoints/none/siglip", "model.language=Qwen/Qwen3-1.7B"])
    config.check_model_paths(loaded, "model.language", "rerank.clip")
    with pytest.raises(UsageError, match=r"model\.vision: checkpoints/none/siglip does not exist"):
        config.check_model_paths(loaded, "model.vision")


def test_help_documents_every_key() -> None:
    lines = config_schema.describe(config.Config)
    undocumented = [lines[i - 1] for i, line in enumerate(lines) if not line.strip()]
    assert undocumented == []
    text = "\n".join(lines)
    for key in (
        "model.lora.use_dora: bool = false",
        "train.stages.N.epochs: float = 1.0",
        "eval.systems.N.max_image_side: int | null = null",
    ):
        assert key in text
