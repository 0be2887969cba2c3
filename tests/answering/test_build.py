"""What a configuration names is loaded, or one line says why not."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from answering.build import build_answerer, load_scorer
from answering.checkpoint import CheckpointAnswerer
from answering.config import CheckpointSystem, DecodingConfig, QwenVlSystem
from answering.qwen_vl import QwenVlAnswerer
from dataset.processor import Processor
from errors import UsageError
from model import build, checkpoint
from model.adapters import attach
from model.config import LoraConfig, ModelConfig
from tests.answering.conftest import asked

REQUEST = asked("a", "What color?", Image.new("RGB", (60, 60), "red"))


@pytest.fixture(scope="module")
def checkpoints(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two whole checkpoints and a newer, half-written one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = ModelConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=4, alpha=8))
    torch.manual_seed(0)
    model = attach(build.build(config, placeholder_id=processor.placeholder_id), config, ("projector", "lora"))
    for step in (1, 2, 3):
        torch.nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name), std=0.1 * step)
        path = folder / f"checkpoint-{step}"
        checkpoint.save(model, path)
        processor.save(path)
        if step < 3:
            checkpoint.mark_whole(path)
    return folder


def test_newest_is_the_newest_whole_checkpoint(checkpoints: Path) -> None:
    newest = build_answerer(CheckpointSystem(name="ours", kind="checkpoint"), checkpoint_folder=checkpoints, device="cpu")
    assert isinstance(newest, CheckpointAnswerer)
    assert newest.description.settings["path"] == str(checkpoints / "checkpoint-2")
    # The folder of another run may be named as well.
    elsewhere = CheckpointSystem(name="other", kind="checkpoint", path=str(checkpoints))
    another = build_answerer(elsewhere, checkpoint_folder=Path("elsewhere"), device="cpu")
    assert another.description.settings["path"] == str(checkpoints / "checkpoint-2")
    decoding = DecodingConfig(k=3, max_new_tokens=4)
    (answer,) = newest.answer([REQUEST], decoding)
    named = CheckpointSystem(name="ours", kind="checkpoint", path=str(checkpoints / "checkpoint-2"))
    assert build_answerer(named, checkpoint_folder=Path("elsewhere"), device="cpu").answer([REQUEST], decoding) == [answer]
    other = CheckpointSystem(name="ours", kind="checkpoint", path=str(checkpoints / "checkpoint-1"))
    assert build_answerer(other, checkpoint_folder=checkpoints, device="cpu").answer([REQUEST], decoding) != [answer]


def test_a_checkpoint_answers_in_4_bit(checkpoints: Path) -> None:
    system = CheckpointSystem(name="ours", kind="checkpoint", quantization="nf4")
    answerer = build_answerer(system, checkpoint_folder=checkpoints, device="cpu")
    assert isinstance(answerer, CheckpointAnswerer)
    assert "Linear4bit" in {type(module).__name__ for module in answerer.model.modules()}
    (answer,) = answerer.answer([REQUEST], DecodingConfig(k=2, max_new_tokens=2))
    assert answer.error is None


def test_a_qwen_is_loaded_by_its_kind(parts: Path) -> None:
    system = QwenVlSystem(name="qwen", kind="qwen3_vl", path=str(parts / "qwen3_vl"), quantization="none")
    answerer = build_answerer(system, checkpoint_folder=Path("elsewhere"), device="cpu")
    assert isinstance(answerer, QwenVlAnswerer)
    assert answerer.description.kind == "qwen3_vl"


def test_the_scorer_reads_picture_files(parts: Path, tmp_path: Path) -> None:
    scorer = load_scorer(str(parts / "clip"), device="cpu")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    assert scorer.score(tmp_path / "red.png", ["red"]) == scorer.score(Image.new("RGB", (40, 40), "red"), ["red"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("newest", "no whole checkpoint"),
        ("no/such", "system ours, path: no/such does not exist"),
    ],
)
def test_a_missing_checkpoint_is_one_clear_line(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_answerer(CheckpointSystem(name="ours", kind="checkpoint", path=path), checkpoint_folder=tmp_path)
