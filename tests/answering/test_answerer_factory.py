"""Systems and scorers are loaded from their configuration, or a one-line error says why not."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from PIL import Image
from transformers import LlavaForConditionalGeneration

from answering.answerer_factory import ScorerCache, build_answerer, build_untuned, check_system, load_scorer
from answering.config import Blip2System, CheckpointSystem, DecodingConfig, QwenVlSystem
from answering.protocol import Answer
from answering.systems.family_answerer import FamilyAnswerer
from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.hub import llava_export
from model.kernels.rms_norm import FusedRMSNorm
from model.qwen_vl.processor import QwenVlProcessor
from model.siglip_qwen import assembly, checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.conftest import make_request, noise_image
from tests.model.conftest import stock_supports_final_norm

REQUEST = make_request("a", "What color?", Image.new("RGB", (60, 60), "red"))


@pytest.fixture(scope="module")
def checkpoints(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two complete checkpoints and a later, incomplete one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=4, lora_alpha=8))
    torch.manual_seed(0)
    model = configure_trainable(assembly.build(config, image_token_id=processor.image_token_id), config, ("connector", "lora"))
    for step in (1, 2, 3):
        torch.nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name), std=0.1 * step)
        path = folder / f"checkpoint-{step}"
        checkpoint.save(model, path)
        processor.save(path)
        if step < 3:
            write_manifest(path)
    return folder


def test_latest_is_the_latest_complete_checkpoint(checkpoints: Path) -> None:
    latest = build_answerer(CheckpointSystem(name="ours", kind="checkpoint"), checkpoint_folder=checkpoints, device="cpu")
    assert isinstance(latest, FamilyAnswerer)
    assert latest.description.settings["path"] == str(checkpoints / "checkpoint-2")
    # The path may be the checkpoint folder of another run.
    elsewhere = CheckpointSystem(name="other", kind="checkpoint", path=str(checkpoints))
    another = build_answerer(elsewhere, checkpoint_folder=Path("elsewhere"), device="cpu")
    assert another.description.settings["path"] == str(checkpoints / "checkpoint-2")
    decoding = DecodingConfig(num_candidates=3, max_new_tokens=4)
    (answer,) = latest.answer([REQUEST], decoding)
    named = CheckpointSystem(name="ours", kind="checkpoint", path=str(checkpoints / "checkpoint-2"))
    assert build_answerer(named, checkpoint_folder=Path("elsewhere"), device="cpu").answer([REQUEST], decoding) == [answer]
    other = CheckpointSystem(name="ours", kind="checkpoint", path=str(checkpoints / "checkpoint-1"))
    assert build_answerer(other, checkpoint_folder=checkpoints, device="cpu").answer([REQUEST], decoding) != [answer]


@pytest.mark.parametrize(
    ("changes", "asked", "identified_by"),
    [
        ({}, "\nOne word.", "One word."),
        ({"short_answer_prompt": None}, "", None),
        ({"short_answer_prompt": "Briefly!"}, "\nBriefly!", "Briefly!"),
    ],
)
def test_a_checkpoint_is_asked_with_the_prompt_that_it_records_unless_the_system_says_otherwise(
    checkpoints: Path, tmp_path: Path, changes: dict[str, Any], asked: str, identified_by: str | None
) -> None:
    path = shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2")
    processor = Processor.load(path)
    processor.prompts = {"vqa": {"en": "One word."}}
    processor.save(path)
    write_manifest(path)
    system = CheckpointSystem(name="ours", kind="checkpoint", path=str(path), **changes)
    for build in (build_answerer, build_untuned):
        answerer = build(system, checkpoint_folder=tmp_path, device="cpu")  # type: ignore[operator]
        assert isinstance(answerer, FamilyAnswerer)
        assert f"What color?{asked}<|im_end|>" in answerer.encode(REQUEST).text
        assert answerer.description.settings["short_answer_prompt"] == identified_by


def test_a_checkpoint_without_prompts_is_asked_the_question_alone(checkpoints: Path) -> None:
    answerer = build_answerer(CheckpointSystem(name="ours", kind="checkpoint"), checkpoint_folder=checkpoints, device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    assert "What color?<|im_end|>" in answerer.encode(REQUEST).text
    # The settings of earlier versions: answers that were saved then are found again.
    assert answerer.description.settings.keys() == {
        *("path", "form", "quantization", "short_answer_prompt", "short_answer_prompt_zh", "clean_answers"),
    }
    assert answerer.description.settings["short_answer_prompt"] is None


def test_a_checkpoint_with_merged_adapters_answers_as_one_with_the_modules_of_peft(checkpoints: Path, processor: Processor) -> None:
    path = checkpoints / "checkpoint-2"
    fused = build_answerer(CheckpointSystem(name="ours", kind="checkpoint", path=str(path)), checkpoint_folder=checkpoints, device="cpu")
    plain = FamilyAnswerer(checkpoint.load(path, trainable=True), processor)
    assert isinstance(fused, FamilyAnswerer)
    kinds = [{type(module) for module in answerer.model.modules()} for answerer in (fused, plain)]
    assert [FusedRMSNorm in kind for kind in kinds] == [True, False]
    assert [PeftLinear in kind for kind in kinds] == [False, True]
    decoding = DecodingConfig(num_candidates=3, max_new_tokens=4)
    for one, other in zip(
        *(answerer.answer([REQUEST, make_request("b", "How many?")], decoding) for answerer in (fused, plain)), strict=True
    ):
        assert [candidate.raw for candidate in one.candidates] == [candidate.raw for candidate in other.candidates]
        assert [c.log_prob for c in one.candidates] == pytest.approx([c.log_prob for c in other.candidates], abs=1e-4)


def test_a_checkpoint_answers_in_4_bit(checkpoints: Path) -> None:
    system = CheckpointSystem(name="ours", kind="checkpoint", quantization="nf4")
    answerer = build_answerer(system, checkpoint_folder=checkpoints, device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    assert "Linear4bit" in {type(module).__name__ for module in answerer.model.modules()}
    (answer,) = answerer.answer([REQUEST], DecodingConfig(num_candidates=2, max_new_tokens=2))
    assert answer.error is None


@pytest.mark.parametrize("form", ["merged", "llava"])
@pytest.mark.parametrize("system_prompt", [None, "Be short."])
def test_an_exported_checkpoint_answers_as_the_checkpoint_itself(
    checkpoints: Path, processor: Processor, tmp_path: Path, form: llava_export.ExportFormat, system_prompt: str | None
) -> None:
    folder = shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint")
    prompted = copy.copy(processor)
    prompted.system_prompt = system_prompt
    prompted.save(folder)
    write_manifest(folder)
    llava_export.export(folder, tmp_path / form, form, prompted)
    decoding = DecodingConfig(num_candidates=3, max_new_tokens=4, no_repeat_ngram_size=1, repetition_penalty=1.3)
    requests = [REQUEST, make_request("b", "这是什么？", noise_image(1), noise_image(2)), make_request("c", "How many?")]

    def answers(path: Path, expected: str) -> list[Answer]:
        system = CheckpointSystem(name="ours", kind="checkpoint", path=str(path))
        answerer = build_answerer(system, checkpoint_folder=Path("elsewhere"), device="cpu")
        assert (answerer.description.kind, answerer.description.settings["form"]) == ("checkpoint", expected)
        return answerer.answer(requests, decoding)

    for one, other in zip(answers(folder, "adapter"), answers(tmp_path / form, form), strict=True):
        assert (one.error, one.prompt) == (other.error, other.prompt)
        assert [candidate.raw for candidate in one.candidates] == [candidate.raw for candidate in other.candidates]
        assert [c.log_prob for c in one.candidates] == pytest.approx([c.log_prob for c in other.candidates], abs=1e-3)


@pytest.mark.parametrize("form", ["merged", "llava"])
def test_only_the_language_model_of_an_export_is_quantised(
    checkpoints: Path, processor: Processor, tmp_path: Path, form: llava_export.ExportFormat
) -> None:
    llava_export.export(checkpoints / "checkpoint-1", tmp_path / form, form, processor)
    system = CheckpointSystem(name="ours", kind="checkpoint", path=str(tmp_path / form), quantization="nf4")
    answerer = build_answerer(system, checkpoint_folder=Path("elsewhere"), device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    quantised = {name for name, module in answerer.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantised
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert answerer.answer([REQUEST], DecodingConfig(num_candidates=2, max_new_tokens=2))[0].error is None


def test_a_llava_model_without_a_chat_template_is_a_one_line_error(checkpoints: Path, processor: Processor, tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    llava_export.export(checkpoints / "checkpoint-1", folder, "llava", processor)
    (folder / "chat_template.jinja").unlink()
    write_manifest(folder)
    with pytest.raises(UsageError, match=r"has no chat template, which says how this LLaVA was asked in training"):
        build_answerer(CheckpointSystem(name="ours", kind="checkpoint", path=str(folder)), checkpoint_folder=tmp_path, device="cpu")


def test_an_export_that_an_older_transformers_would_load_differently_is_an_error(
    checkpoints: Path, processor: Processor, model: VisionLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llava_export.export(checkpoints / "checkpoint-1", tmp_path / "llava", "llava", processor)
    path = tmp_path / "llava" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["vision_config"]["tie_last_hidden_states"] = True
    path.write_text(json.dumps({**config, "vision_feature_layer": -1}), encoding="utf-8")
    write_manifest(path.parent)
    system = CheckpointSystem(name="ours", kind="checkpoint", path=str(path.parent))
    from_pretrained = LlavaForConditionalGeneration.from_pretrained

    def older(*args: Any, **options: Any) -> Any:
        llava, report = from_pretrained(*args, **options)
        original_config = copy.deepcopy(llava.config)
        llava.config.vision_config.tie_last_hidden_states = False
        llava.config = original_config
        return llava, report

    if stock_supports_final_norm(model):
        build_answerer(system, checkpoint_folder=tmp_path, device="cpu")
        monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", older)
    with pytest.raises(UsageError, match=r"tie_last_hidden_states.*a newer one is needed"):
        build_answerer(system, checkpoint_folder=tmp_path, device="cpu")


def test_a_qwen_model_is_loaded_by_its_kind(parts: Path) -> None:
    system = QwenVlSystem(name="qwen", kind="qwen3_vl", path=str(parts / "qwen3_vl"), quantization="none")
    answerer = build_answerer(system, checkpoint_folder=Path("elsewhere"), device="cpu")
    assert isinstance(answerer, FamilyAnswerer)
    assert isinstance(answerer.processor, QwenVlProcessor)
    assert answerer.description.kind == "qwen3_vl"


def test_the_scorer_reads_image_files(parts: Path, tmp_path: Path) -> None:
    scorer = load_scorer(str(parts / "clip"), device="cpu")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    assert scorer.score(tmp_path / "red.png", ["red"]) == scorer.score(Image.new("RGB", (40, 40), "red"), ["red"])


def test_a_shared_scorer_is_loaded_once(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer_cache = ScorerCache()
    first = scorer_cache.load(str(parts / "clip"))
    monkeypatch.chdir(parts)
    assert scorer_cache.load("./clip/", key="search.clip") is first
    assert scorer_cache.load("siglip") is not first
    with pytest.raises(UsageError, match=r"search\.clip: .*none"):
        scorer_cache.load("none", key="search.clip")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("latest", "no complete checkpoint"),
        ("no/such", "system ours, path: no/such does not exist"),
    ],
)
def test_a_missing_checkpoint_is_a_one_line_error(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_answerer(CheckpointSystem(name="ours", kind="checkpoint", path=path), checkpoint_folder=tmp_path)


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (CheckpointSystem(name="a", kind="checkpoint", path="no/such"), r"eval\.systems\.1\.path: no/such does not exist"),
        (QwenVlSystem(name="a", kind="qwen3_vl", path="./no/such"), r"eval\.systems\.1\.path: \./no/such does not exist"),
        (Blip2System(name="a", kind="blip2", path="a/hub-name", adapter=Path("gone")), r"eval\.systems\.1\.adapter: gone does not exist"),
    ],
)
def test_missing_files_of_a_system_are_reported_before_anything_is_loaded(system: CheckpointSystem, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_system(system, "eval.systems.1.")
    check_system(CheckpointSystem(name="a", kind="checkpoint"))
    check_system(QwenVlSystem(name="a", kind="qwen3_vl", path="Qwen/Qwen3-VL-4B-Instruct"))
