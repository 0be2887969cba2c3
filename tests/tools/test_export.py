"""tools/export.py: both formats, errors, and the examples of the documentation."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

import cli
from atomic_io import write_json
from dataset.build.merge_report import MergeReport, SourceReport
from model.checkpoint_manifest import manifest_mismatch, write_manifest
from model.family import LoadOptions
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import ConnectorConfig, LoraConfig, SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from tests.pipeline import ROOT, workspace
from tests.untrained import write_checkpoint
from tools import export

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def experiment(parts: Path, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Function that writes c.yaml and a complete checkpoint in the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(pool: int = 1) -> Path:
        connector = ConnectorConfig(kind="mlp_pool" if pool > 1 else "mlp", pool=pool)
        settings = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=2), connector=connector)
        model = configure_trainable(build(settings, image_token_id=processor.image_token_id), settings, ["connector", "lora"])
        folder = tmp_path / "checkpoints" / "small" / "checkpoint-7"
        checkpoint.save(model, folder)
        processor.save(folder)
        write_manifest(folder)
        Path("c.yaml").write_text(yaml.safe_dump({"name": "small"}))
        return folder

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.run(export.main, export.parser, ["--config", "c.yaml", *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_the_latest_checkpoint_is_exported_for_stock_transformers(experiment: Callable[..., Path], run: Run) -> None:
    folder = experiment()
    status, out, _ = run("--format", "llava", "--out", "exported")
    assert status == 0
    assert out.endswith("checkpoint-7 written to exported (llava, float32)\n")
    assert AutoModelForImageTextToText.from_pretrained("exported").dtype == torch.float32
    files = {path.name for path in Path("exported").iterdir()}
    assert files >= {"README.md", "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "processor_config.json"}
    assert manifest_mismatch(folder) is None, "the checkpoint itself is not changed"


def test_an_export_has_the_keys_that_vllm_reads_of_a_llava(experiment: Callable[..., Path], run: Run) -> None:
    experiment()
    assert run("--format", "llava", "--out", "exported")[0] == 0
    config = json.loads(Path("exported/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    # vLLM looks up the language model by this name only.
    assert config["text_config"]["architectures"] == ["Qwen3ForCausalLM"]
    assert config["vision_config"]["model_type"] == "siglip_vision_model"
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-2, "full")
    assert config["image_token_index"] > 0
    assert "<|im_start|>" in Path("exported/chat_template.jinja").read_text(encoding="utf-8")
    assert not any(Path(part.get("_name_or_path", "")).is_absolute() for part in (config["text_config"], config["vision_config"]))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("language", ["bash", "text", "yaml"])
def test_both_pages_have_the_same_code_blocks(language: str) -> None:
    assert blocks("zh/export.md", language) == blocks("export.md", language) != []


def test_the_examples_of_the_documentation_run(parts: Path, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace(tmp_path))
    write_checkpoint(Path("checkpoints/tiny/checkpoint-1"), parts, processor)
    for name in ("siglip", "qwen3", "clip"):
        Path("checkpoints/tiny", name).symlink_to(parts / name)
    documented = [shlex.split(line) for line in "".join(blocks("export.md", "bash")).splitlines()]
    for _, command, *arguments in documented:
        assert command == "tools/export.py"
        with pytest.raises(SystemExit) as ended:
            cli.run(export.main, export.parser, arguments)
        assert not ended.value.code
    assert {path.name for path in Path("exported").iterdir()} == {"tiny", "tiny_merged"}


def test_a_given_checkpoint_is_merged_in_bf16_with_its_data_report(experiment: Callable[..., Path], run: Run) -> None:
    folder = experiment(pool=3)
    write_json(Path("report.json"), MergeReport(sources=[SourceReport("coco", "coco_captions")], images=41, samples=97).to_json())
    status, _, _ = run("--checkpoint", str(folder), "--format", "merged", "--dtype", "bfloat16", "--out", "m", "--report", "report.json")
    assert status == 0
    assert "97" in Path("m/README.md").read_text()
    assert checkpoint.load(Path("m"), LoadOptions(torch.bfloat16)).dtype == torch.bfloat16
    assert Processor.load(Path("m")).tokens_per_image == 36


def test_an_incompatible_setting_is_one_line_with_status_2(experiment: Callable[..., Path], run: Run) -> None:
    experiment(pool=3)
    status, _, error = run("--format", "llava", "--out", "exported")
    assert status == 2
    assert "error: --format llava: model.connector.kind is mlp_pool" in error
    assert not Path("exported").exists()


def test_an_experiment_without_a_checkpoint_is_one_line_with_status_2(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("name: fresh")
    status, _, error = run("--format", "llava", "--out", "exported")
    assert status == 2
    assert "checkpoints/fresh: it contains no complete checkpoint" in error
