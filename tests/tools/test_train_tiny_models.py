"""The command that trains the tiny models, with a few steps."""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Qwen3ForCausalLM

from errors import UsageError
from model.siglip_qwen.processor import Processor
from tools import train_tiny_models
from visual import vision_encoder


def run(*arguments: str) -> int:
    parsed: argparse.Namespace = train_tiny_models.arguments().parse_args(list(arguments))
    return train_tiny_models.main(parsed)


@pytest.fixture(scope="module", autouse=True)
def small_evaluation_pools() -> Iterator[None]:
    """Metrics are measured on few scenes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.tiny_models.contrastive_pretraining.RECALL_POOL_SIZE", 16)
        patch.setattr("training.tiny_models.language_pretraining._MEASURED_SIZE", 2)
        patch.setattr("training.tiny_models.language_pretraining._MEASURED_BATCHES", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SigLIP and Qwen3 after two steps."""
    folder = tmp_path_factory.mktemp("models")
    status = run(
        "--out", str(folder), "--only", "siglip", "qwen3", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--workers", "0"
    )
    assert status == 0
    return folder


def test_without_steps_missing_models_are_written_and_others_are_not_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--out", str(tmp_path), "--only", "siglip", "--steps", "0")
    before = (tmp_path / "siglip/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    run("--out", str(tmp_path), "--only", "siglip", "qwen3", "--steps", "0")
    assert "qwen3 written untrained" in capsys.readouterr().out
    assert (tmp_path / "siglip/model.safetensors").stat().st_mtime_ns == before
    assert "Untrained" in (tmp_path / "qwen3/README.md").read_text(encoding="utf-8")
    run("--out", str(tmp_path), "--only", "siglip", "qwen3", "--steps", "0")
    assert "nothing is missing" in capsys.readouterr().out


def test_trained_models_load_as_in_the_demo(trained: Path) -> None:
    assert not {path.name for path in trained.iterdir()} - {"siglip", "qwen3"}
    processor = Processor.from_pretrained(
        language=str(trained / "qwen3"), vision=str(trained / "siglip"), tokens_per_image=36, vocab_size=1536, max_length=64
    )
    assert processor.tokens_per_image == 36
    vision_encoder.load(str(trained / "siglip"), dtype=torch.float32)
    assert Qwen3ForCausalLM.from_pretrained(trained / "qwen3").config.vocab_size == 1536


def test_a_card_states_data_steps_device_and_metrics(trained: Path) -> None:
    card = (trained / "siglip/README.md").read_text(encoding="utf-8")
    for text in ("license: apache-2.0", "rendered scenes of seed", "2 of 4 scenes", "CPU", "recall@1 of 16"):
        assert text in card
    language_card = (trained / "qwen3/README.md").read_text(encoding="utf-8")
    assert "perplexity" in language_card
    assert "accuracy" in language_card


def test_the_same_seed_trains_the_same_weights(trained: Path, tmp_path: Path) -> None:
    run("--out", str(tmp_path), "--only", "siglip", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--workers", "0")
    first, second = (AutoModel.from_pretrained(folder / "siglip").state_dict() for folder in (trained, tmp_path))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_further_training_starts_from_the_models_own_weights_with_new_scenes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    before = AutoModel.from_pretrained(tmp_path / "qwen3", dtype=torch.float32).state_dict()
    rate = 1e-6
    options = ("--only", "qwen3", "--steps", "2", "--batch-size", "4", "--device", "cpu", "--workers", "0", "--learning-rate", str(rate))
    run("--out", str(tmp_path), "--further", *options)
    after = AutoModel.from_pretrained(tmp_path / "qwen3", dtype=torch.float32).state_dict()
    # At so small a learning rate the weights change by bf16 rounding at most, so training started from them, not from random weights.
    assert all(torch.allclose(before[key], after[key], rtol=2**-7, atol=1e-4) for key in before)
    card = (tmp_path / "qwen3/README.md").read_text(encoding="utf-8")
    assert "| run | 2 |" in card
    assert "| started from | run 1: 2 of 4 scenes (8 in all) |" in card
    assert "--only qwen3 --further" in card
    seeds = [re.search(r"scenes of seed (\d+)", (folder / "qwen3/README.md").read_text(encoding="utf-8")) for folder in (trained, tmp_path)]
    assert seeds[0] and seeds[1] and seeds[0][1] != seeds[1][1]


def test_an_untrained_model_cannot_be_trained_further(tmp_path: Path) -> None:
    run("--out", str(tmp_path), "--only", "siglip", "--steps", "0")
    with pytest.raises(UsageError, match=r"--further: .*siglip holds no trained model"):
        run("--out", str(tmp_path), "--only", "siglip", "--further", "--steps", "1")


def test_clip_and_qwen3_vl_start_from_the_models_in_the_folder(trained: Path, tmp_path: Path) -> None:
    for model_name in ("siglip", "qwen3"):
        (tmp_path / model_name).symlink_to(trained / model_name)
    run("--out", str(tmp_path), "--only", "clip", "qwen3_vl", "--steps", "1", "--batch-size", "4", "--device", "cpu", "--workers", "0")
    assert "| started from | siglip |" in (tmp_path / "clip/README.md").read_text(encoding="utf-8")
    assert "| started from | qwen3, siglip |" in (tmp_path / "qwen3_vl/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [("--steps", "-1"), ("--steps", "1", "--batch-size", "1"), ("--workers", "-2")])
def test_numbers_below_the_minimum_are_rejected(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least"):
        run("--out", str(tmp_path), *arguments)
