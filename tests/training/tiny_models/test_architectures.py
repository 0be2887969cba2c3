"""The tiny models: a deterministic tokenizer, standard model folders, a small size."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, Qwen2Tokenizer, Qwen3ForCausalLM

from dataset.synthetic.scene import HELD_OUT
from dataset.synthetic.scene_facts import Noun
from dataset.synthetic.vocabulary import noun_phrase
from tests.conftest import CORPUS
from training.tiny_models.architectures import TINY_MODELS, VOCABULARY, build_tiny_model, build_tokenizer, image_processor, save_tiny_model
from training.tiny_models.data.tokenizer_corpus import SHORT_ANSWER_PROMPTS, tokenizer_corpus


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(tokenizer_corpus())


def fingerprint() -> str:
    """A hash of the tokenizer trained on the scenes' texts."""
    return hashlib.sha256(build_tokenizer(tokenizer_corpus()).backend_tokenizer.to_str().encode()).hexdigest()


@pytest.mark.slow
def test_another_process_trains_the_same_tokenizer() -> None:
    script = "from tests.training.tiny_models.test_architectures import fingerprint; print(fingerprint())"
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == fingerprint()


def test_the_tokenizer_fits_the_models_and_knows_the_control_tokens(tokenizer: Qwen2Tokenizer) -> None:
    assert len(tokenizer) <= VOCABULARY
    for token in ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|endoftext|>"):
        assert tokenizer.encode(token, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(token)]


def test_any_text_round_trips_through_the_tokenizer(tokenizer: Qwen2Tokenizer) -> None:
    for text in ("Is the green ring above the 7? Ω≈ç 🙂", "图中有没有绿色的圆环？鑫", *SHORT_ANSWER_PROMPTS.values()):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_held_out_combination_is_tokenized_into_whole_words(tokenizer: Qwen2Tokenizer) -> None:
    for color, shape in HELD_OUT:
        assert len(tokenizer.encode(" " + noun_phrase(Noun(color, shape), "en"), add_special_tokens=False)) == 2
        assert len(tokenizer.encode(noun_phrase(Noun(color, shape), "zh"), add_special_tokens=False)) == 3


def test_a_models_weights_depend_on_its_seed_and_not_on_the_other_models(tokenizer: Qwen2Tokenizer) -> None:
    first = build_tiny_model("qwen3", tokenizer, seed=0).state_dict()
    build_tiny_model("siglip", tokenizer, seed=0)
    again, other = build_tiny_model("qwen3", tokenizer, seed=0).state_dict(), build_tiny_model("qwen3", tokenizer, seed=1).state_dict()
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_the_models_are_standard_folders_of_at_most_34_megabytes(parts: Path) -> None:
    for model_name in TINY_MODELS:
        model = AutoModel.from_pretrained(parts / model_name)
        assert model.config.model_type.replace("-", "") == model_name
        assert next(model.parameters()).dtype == torch.bfloat16
        if model_name != "resnet":
            AutoTokenizer.from_pretrained(parts / model_name)
    assert sum(path.stat().st_size for path in parts.rglob("*") if path.is_file()) <= 34_000_000


@pytest.mark.parametrize("name", ["blip2", "gpt2"])
def test_a_tokenizer_without_a_chat_template_is_the_same_once_it_is_loaded(tokenizer: Qwen2Tokenizer, parts: Path, name: str) -> None:
    """Qwen's own class would split ` 7` in two, which these models have as one token."""
    loaded = AutoTokenizer.from_pretrained(parts / name)
    trained = build_tokenizer(CORPUS)
    for text in (" 7", " yes", "Question: 图中有几个绿色的物体？ Short answer:"):
        assert loaded(text).input_ids == trained(text).input_ids
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)


def test_a_saved_model_loads_with_the_same_weights(tokenizer: Qwen2Tokenizer, tmp_path: Path) -> None:
    model = build_tiny_model("qwen3", tokenizer, seed=3)
    save_tiny_model(tmp_path, "qwen3", model, tokenizer)
    loaded = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_a_language_model_has_no_image_processor() -> None:
    with pytest.raises(ValueError, match="qwen3 has no image processor"):
        image_processor("qwen3")
