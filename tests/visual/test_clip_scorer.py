"""Scores are the model's own logits; long texts are truncated, special tokens are plain text, images are encoded once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer, ChineseCLIPImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from dataset.loading.image_io import ImageError, open_image
from errors import UsageError
from visual.clip_scorer import ClipScorer, load

# By class, because the automatic choice of older transformers requires torchvision.
PROCESSORS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil, "chinese_clip": ChineseCLIPImageProcessorPil}

TEXTS = ["What color is the circle? red", "两个绿色的三角形", "a"]


def noise_image(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def scorer_of(folder: Path, **options: Any) -> ClipScorer:
    scorer = load(str(folder), open_image, device="cpu", dtype=torch.float32)
    return ClipScorer(scorer.model, scorer.tokenizer, scorer.image_processor, open_image, **options)


@pytest.fixture(scope="module")
def clip(parts: Path) -> ClipScorer:
    return scorer_of(parts / "clip")


@pytest.mark.parametrize("family", PROCESSORS)
def test_scores_are_the_models_own_logits(family: str, parts: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family) if family == "chinese_clip" else parts / family
    scorer = scorer_of(folder, batch_size=2)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = PROCESSORS[family].from_pretrained(folder)(images=[noise_image(1)], return_tensors="pt")["pixel_values"]
    padding: Any = "max_length" if family == "siglip" else True
    texts = [text + ("<|im_end|>" if family == "clip" else "") for text in TEXTS]
    max_positions = model.config.text_config.max_position_embeddings
    inputs = tokenizer(texts, padding=padding, max_length=max_positions if family == "siglip" else None, return_tensors="pt")
    input_names = ("input_ids",) if family == "siglip" else ("input_ids", "attention_mask")
    with torch.inference_mode():
        expected = model(pixel_values=pixels, **{name: inputs[name] for name in input_names}).logits_per_image[0].tolist()
    assert scorer.score(noise_image(1), TEXTS) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) == 3


def test_scores_in_a_batch_equal_scores_of_single_images(clip: ClipScorer) -> None:
    images, texts = [noise_image(1), noise_image(2), noise_image(1)], [TEXTS, [], TEXTS[::-1]]
    scores = clip.score_batch(images, texts)
    assert scores[1] == []
    assert scores[0] == pytest.approx(scores[2][::-1], abs=1e-4)
    assert scores[0] == pytest.approx(clip.score(noise_image(1), TEXTS), abs=1e-4)
    assert clip.score(noise_image(2), TEXTS) != pytest.approx(scores[0], abs=1e-3)
    assert clip.score_batch([], []) == []


def test_a_text_longer_than_the_context_keeps_its_end(clip: ClipScorer) -> None:
    max_positions = clip.model.config.text_config.max_position_embeddings
    ids = clip.tokenize(["red " * 500, "red"])["input_ids"]
    assert ids.shape == (2, max_positions)
    assert ids[0, -1] == clip.model.config.text_config.eos_token_id
    red, same, blue = clip.score(noise_image(1), ["What? " * 500 + "red", "What? " * 600 + "red", "What? " * 500 + "blue"])
    assert red == pytest.approx(same, abs=1e-4)
    assert red != pytest.approx(blue, abs=1e-4)


def test_truncation_keeps_the_special_tokens_at_both_ends(chinese_clip: Path) -> None:
    scorer = scorer_of(chinese_clip)
    (row,) = scorer.tokenize(["两" * 100 + "red"])["input_ids"].tolist()
    assert len(row) == 24
    assert scorer.tokenizer.convert_ids_to_tokens([row[0], *row[-2:]]) == ["[CLS]", "red", "[SEP]"]


def test_text_after_a_special_token_changes_the_score(clip: ClipScorer) -> None:
    """CLIP reads its feature at the first end token; an end token within the text would hide everything after it."""
    first, second = clip.score(noise_image(1), ["red <|im_end|> circle", "red <|im_end|> square"])
    assert first != pytest.approx(second, abs=1e-4)
    end = clip.model.config.text_config.eos_token_id
    assert (clip.tokenize(["red <|im_end|> circle", "blue"])["input_ids"] == end).sum(1).tolist() == [1, 1]


def test_probabilities_are_a_softmax_over_the_labels(clip: ClipScorer) -> None:
    probabilities = clip.probabilities(noise_image(1), TEXTS)
    assert sum(probabilities) == pytest.approx(1.0)
    assert probabilities == pytest.approx(torch.softmax(torch.tensor(clip.score(noise_image(1), TEXTS)), 0).tolist(), abs=1e-4)


def test_an_image_is_encoded_once_until_it_is_evicted_as_least_recently_used(parts: Path, tmp_path: Path) -> None:
    scorer = scorer_of(parts / "clip", cache_size=2)
    encoded: list[int] = []
    scorer.model.vision_model.register_forward_pre_hook(lambda *call: encoded.append(len(call[-1]["pixel_values"])), with_kwargs=True)
    path = tmp_path / "a.png"
    noise_image(1).save(path)
    scorer.score_batch([path, path, noise_image(2)], [["a"], ["b"], ["c"]])
    scorer.score(path, ["d"])
    assert encoded == [2]
    scorer.score(noise_image(3), ["a"])
    scorer.score(path, ["a"])
    assert encoded == [2, 1]
    scorer.score(noise_image(2), ["a"])
    assert encoded == [2, 1, 1]
    before = scorer.score(path, ["a"])
    noise_image(9).resize((90, 90)).save(path)
    assert scorer.score(path, ["a"]) != before


def test_errors_name_the_model_or_the_file(parts: Path, clip: ClipScorer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"rerank\.clip: .* is a qwen3 model; expected CLIP, Chinese-CLIP or SigLIP"):
        load(str(parts / "qwen3"), open_image, device="cpu", dtype=torch.float32)
    with pytest.raises(UsageError, match=r"rerank\.clip: cannot load no/such"):
        load("no/such", open_image, device="cpu", dtype=torch.float32)
    with pytest.raises(ImageError, match="there is no such file"):
        clip.score(tmp_path / "none.png", ["a"])


@pytest.mark.parametrize("family", PROCESSORS)
def test_the_prior_is_the_mean_score_over_the_background_images(family: str, parts: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family) if family == "chinese_clip" else parts / family
    scorer = scorer_of(folder)
    background = [noise_image(seed) for seed in range(2, 7)]
    ((scores, priors),) = scorer.score_with_priors([noise_image(1)], [TEXTS], [scorer.features(background).mean(axis=0)])
    assert scores == pytest.approx(scorer.score(noise_image(1), TEXTS), abs=1e-4)
    assert priors == pytest.approx(np.mean([scorer.score(image, TEXTS) for image in background], axis=0).tolist(), abs=1e-4)


def test_a_text_shared_by_several_images_is_encoded_once(parts: Path) -> None:
    scorer = scorer_of(parts / "clip")
    encoded: list[int] = []
    scorer.model.text_model.register_forward_pre_hook(lambda *call: encoded.append(len(call[-1]["input_ids"])), with_kwargs=True)
    scores = scorer.score_batch([noise_image(1), noise_image(2)], [["a", "red"], ["red", "a", "a"]])
    assert encoded == [2]
    assert scores[1][1] == pytest.approx(scores[1][2], abs=1e-5)
    assert scores[1][:2] == pytest.approx(scorer.score(noise_image(2), ["red", "a"]), abs=1e-4)


def test_two_threads_do_not_use_the_model_at_the_same_time(parts: Path) -> None:
    scorer = scorer_of(parts / "clip")
    inside, tried, entered = threading.Event(), threading.Event(), threading.Event()
    overlapped: list[bool] = []

    def main_thread_waits(*_: object) -> None:
        if not overlapped and threading.current_thread() is threading.main_thread():
            inside.set()
            assert tried.wait(60)
            overlapped.append(entered.wait(0.3))
        else:
            entered.set()

    def encode_in_other_thread() -> None:
        assert inside.wait(60)
        tried.set()
        scorer.encode_pixels(scorer.pixels([noise_image(1)]))

    for tower in (scorer.model.text_model, scorer.model.vision_model):
        tower.register_forward_pre_hook(main_thread_waits)
    thread = threading.Thread(target=encode_in_other_thread)
    thread.start()
    scorer.text_features(["a red circle"])
    thread.join()
    assert overlapped == [False] and entered.is_set()
