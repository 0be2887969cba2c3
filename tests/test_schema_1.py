"""What was written under schema version 1, before keys had the names of transformers, PEFT and TRL, is read today.

The files in tests/schema_1 were made by the demo of that version.
"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import config as configuration
from answering.answerer_factory import check_system
from answering.batch_inference import BatchOptions, answer_folder
from answering.config import CheckpointSystem, DecodingConfig
from answering.model_fingerprint import digest
from answering.reply import Reranker
from answering.rerank.fitted_reranker import load_fitted
from errors import UsageError
from evaluation.prediction_files import read_predictions
from evaluation.questions import choose, with_shuffled_images
from evaluation.run.system_runner import _take_over_earlier_name
from model.processors.sample_processor import PROCESSOR_SETTINGS_FILE
from model.siglip_qwen import checkpoint
from model.siglip_qwen.processor import Processor
from renamed_keys import RENAMED, with_old_keys
from tests.evaluation.fakes import experiment, lines, mostly_right, questions, run, write_store
from tests.fakes import FakeAnswerer, always
from tests.pipeline import ROOT
from training.checkpointing.resume import RUN_STATE_FILE, config_settings, data_settings, machine_settings, read_run_state

FILES = Path(__file__).parent / "schema_1"
TINY = ROOT / "configs" / "tiny.yaml"
BELOW = {
    "model": {"alpha": "lora.alpha", "dropout": "lora.dropout", "dora": "lora.dora"},
    "eval": {"lead": "thresholds.lead", "shuffled_pictures": "thresholds.shuffled_pictures"},
}
"""Keys of nested mappings, by section."""
OF_SYSTEMS = {"api_key_variable", "max_side"}


@pytest.mark.parametrize(("section", "old", "new"), [(s, old, new) for s, keys in RENAMED.items() for old, new in keys.items()])
def test_an_old_key_is_an_unknown_key_that_is_answered_with_the_new_one(section: str, old: str, new: str) -> None:
    if (section, old) == ("train", "projector"):
        override = "train.learning_rate={projector: 1}"
    elif old in OF_SYSTEMS:
        override = f"eval.systems=[{{name: a, kind: openai, model: m, {old}: 1}}]"
    else:
        override = f"{section}.{BELOW.get(section, {}).get(old, old)}=1"
    with pytest.raises(UsageError, match=f"{old}: unknown key; it is called {new} now"):
        configuration.load(TINY, [override])


def test_the_old_name_of_the_latest_checkpoint_is_answered_with_the_new_one() -> None:
    with pytest.raises(UsageError, match="`newest` is called `latest` now"):
        check_system(CheckpointSystem(name="ours", kind="checkpoint", path="newest"))


def test_a_checkpoints_settings_are_read_under_todays_keys(tmp_path: Path) -> None:
    shutil.copy(FILES / "checkpoint_config.json", tmp_path / "config.json")
    assert checkpoint.settings(tmp_path) == configuration.load(TINY).model
    config = checkpoint.read_config(tmp_path)
    assert (config.vision_feature_layer, config.image_token_id) == (-2, 1312)


def test_another_feature_layer_than_the_default_is_kept(tmp_path: Path) -> None:
    raw = json.loads((FILES / "checkpoint_config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(raw | {"feature_layer": "last_hidden_state"}), encoding="utf-8")
    assert checkpoint.read_config(tmp_path).vision_feature_layer == "last_hidden_state"


def test_a_checkpoints_processor_is_read(processor: Processor, tmp_path: Path) -> None:
    processor.save(tmp_path)
    shutil.copy(FILES / "tessera_processor.json", tmp_path / PROCESSOR_SETTINGS_FILE)
    read = Processor.load(tmp_path)
    assert (read.image_token, read.max_length, read.tokens_per_image) == ("<|image_pad|>", 512, 36)


def test_a_run_continues_under_the_same_settings_with_other_names(tmp_path: Path) -> None:
    shutil.copy(FILES / "run_state.json", tmp_path / RUN_STATE_FILE)
    state = read_run_state(tmp_path)
    samples = tmp_path / "samples.parquet"
    samples.touch()
    machine = machine_settings(state.settings["train.num_processes"], packed=False, precision="fp32")
    today = {**config_settings(configuration.load(TINY)), **machine, **data_settings(samples)}
    differing = {key for key in today.keys() | state.settings.keys() if today.get(key) != state.settings.get(key)}
    assert differing == {"data (samples.parquet)"}
    assert state.history[0]["learning_rate/connector"] == pytest.approx(2e-3 / 3)


def test_predictions_are_read() -> None:
    ours, _, qwen, _ = read_predictions(FILES / "predictions.jsonl")
    assert (ours.decoding["num_candidates"], ours.decoding["strategy"]) == (5, "beam")
    assert qwen.model["max_image_side"] == 384
    assert ours.confidence == pytest.approx(0.97370349)
    assert ours.clip is not None and len(ours.clip) == len(ours.candidates)


def test_a_fitted_reranker_is_read() -> None:
    fitted = load_fitted(FILES / "fitted_reranker.json")
    assert fitted.plan.clip_score_form == "prior_corrected"
    assert fitted.plan.skipped_question_types == ("yes/no", "counting")
    assert fitted.plan.confidence is not None and fitted.plan.learned is not None
    assert fitted.settings["self_evaluation"] is False
    assert fitted.decoding["num_candidates"] == 5
    assert len(fitted.background_means["clip"]) == 4


def test_questions_that_were_answered_are_not_asked_again(tmp_path: Path) -> None:
    planned = experiment(write_store(tmp_path / "data", questions(3)), tmp_path / "out", controls=("shuffled_images",))
    summary = run(planned, FakeAnswerer(mostly_right)).record()
    folder = tmp_path / "out" / "predictions"
    (folder / "controls" / "shuffled_images.jsonl").rename(folder / "controls" / "shuffled_pictures.jsonl")
    for path in folder.rglob("*.jsonl"):
        path.write_text("".join(json.dumps(_of_schema_1(row, path, planned)) + "\n" for row in lines(path)), encoding="utf-8")
    again = FakeAnswerer(mostly_right)
    assert run(planned, again).record() == summary
    assert again.asked == []


def test_files_of_interrupted_ranks_are_taken_over_too(tmp_path: Path) -> None:
    (tmp_path / "shuffled_pictures.jsonl.part1").write_text("a line", encoding="utf-8")
    (tmp_path / "shuffled_images.timing.json").write_text("today's", encoding="utf-8")
    (tmp_path / "shuffled_pictures.timing.json").write_text("earlier", encoding="utf-8")
    _take_over_earlier_name(tmp_path / "shuffled_images.jsonl")
    assert (tmp_path / "shuffled_images.jsonl.part1").read_text(encoding="utf-8") == "a line"
    assert (tmp_path / "shuffled_images.timing.json").read_text(encoding="utf-8") == "today's"


def test_images_of_a_folder_that_were_answered_are_not_asked_again(tmp_path: Path) -> None:
    image, path = tmp_path / "images" / "a.png", tmp_path / "answers.jsonl"
    image.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(image)
    model = {"kind": "qwen3_vl", "path": "b", "max_image_side": 384}
    options = BatchOptions("Describe it.", "What color?", DecodingConfig(num_candidates=2, no_repeat_ngram_size=0), max_caption_tokens=9)
    answer_folder(FakeAnswerer(always(("red", -0.1))), None, image.parent, options, path, model)
    decoding = {"k": 2, "mode": "beam", "temperature": 1.0, "max_new_tokens": 16, "seed": 0, "batch_size": 16, "cuda_graphs": "auto"}
    asked = {"caption": "Describe it.", "question": "What color?", "decoding": decoding, "caption_tokens": 9}
    run_key = json.dumps([{"kind": "qwen3_vl", "path": "b", "max_side": 384}, asked, None])
    state = image.stat()
    key = hashlib.blake2b(f"{run_key}\0{image}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=12).hexdigest()
    (today,) = lines(path)
    path.write_text(json.dumps(today | {"key": key, "credibility": 0.5}) + "\n", encoding="utf-8")
    again = FakeAnswerer(always(("red", -0.1)))
    assert answer_folder(again, None, image.parent, options, path, model).reused == 1
    assert again.asked == []
    assert lines(path) == [today | {"confidence": 0.5}]
    without_loops = replace(options, decoding=DecodingConfig(num_candidates=2))
    assert answer_folder(again, None, image.parent, without_loops, path, model).reused == 0, "earlier captions could repeat themselves"


def test_the_identity_of_a_reranker_is_that_of_schema_1() -> None:
    fitted = load_fitted(FILES / "fitted_reranker.json")
    plan = json.loads((FILES / "fitted_reranker.json").read_text(encoding="utf-8"))["plan"]
    assert Reranker((), fitted.plan).earlier_identity == digest([], plan, False, None)


def _of_schema_1(row: dict[str, Any], path: Path, planned: Any) -> dict[str, Any]:
    """The prediction under the keys of schema version 1, and under the digest that was made of them."""
    asked = choose(planned.store, planned.settings.split, None)
    if path.parent.name == "controls":
        asked = with_shuffled_images(asked, planned.settings.seed)
    (question,) = (question for question in asked if question.sample_id == row["sample_id"])
    decoding, model = with_old_keys("decoding", row["decoding"]), with_old_keys("eval", row["model"])
    assert "k" in decoding
    return row | {"decoding": decoding, "model": model, "key": digest(model, decoding, question.sample_id, question.fingerprint)}
