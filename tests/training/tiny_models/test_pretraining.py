"""Pre-training: batches match those of inference, losses match those of the stock models, runs resume bit for bit."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
    SiglipModel,
)

from answering.config import QwenVlSystem
from answering.prompts import PromptPolicy
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer
from dataset.loading.encoded_sample import IGNORE_INDEX
from dataset.sample import Language, Message
from dataset.synthetic.scene import Scene, SceneSplit, generate_scene, split_of
from dataset.synthetic.scene_renderer import render
from errors import TesseraError
from model.qwen_vl.processor import QwenVlProcessor
from model.siglip_qwen.processor import Processor
from training.tiny_models import mixed_precision, warm_start
from training.tiny_models.architectures import build_tiny_model, build_tokenizer, image_processor
from training.tiny_models.attention_supervision import LOOKUP_TARGETS, NO_OBJECT
from training.tiny_models.contrastive_pretraining import clip_task, siglip_task
from training.tiny_models.data.clip_captions import ClipBatches
from training.tiny_models.data.dialogues import Exchange, encode
from training.tiny_models.data.pretraining_batches import (
    Batch,
    ImageConversationBatches,
    SceneBatches,
    TextConversationBatches,
    add_vision_tokens,
    minimal_pair,
    pixel_values,
    qwen_patches,
    render_images,
)
from training.tiny_models.data.tokenizer_corpus import SEED, SHORT_ANSWER_PROMPTS, tokenizer_corpus
from training.tiny_models.language_pretraining import qwen3_task, qwen3_vl_task, split_by_length
from training.tiny_models.patch_classification import VISION_FEATURE_LAYER, PatchClassifier
from training.tiny_models.pretraining_loop import Recipe, Task, fit
from visual.clip_scorer import ClipScorer

PLACEHOLDER = "<|image_pad|>"


@pytest.fixture(scope="module")
def tokenizer() -> Qwen2Tokenizer:
    return build_tokenizer(tokenizer_corpus())


def rendered(count: int) -> list[Image.Image]:
    return [render(generate_scene(1, "train", index)) for index in range(count)]


def tasks(tokenizer: Qwen2Tokenizer, size: int) -> dict[str, Task]:
    """The tasks of all four models, untrained."""
    models = {model_name: build_tiny_model(model_name, tokenizer, 0) for model_name in ("siglip", "clip", "qwen3", "qwen3_vl")}
    return {
        "siglip": siglip_task(models["siglip"], tokenizer, SceneBatches(1, size)),
        "clip": clip_task(models["clip"], tokenizer, SceneBatches(1, size)),
        "qwen3": qwen3_task(models["qwen3"], tokenizer, SceneBatches(1, size)),
        "qwen3_vl": qwen3_vl_task(models["qwen3_vl"], tokenizer, SceneBatches(1, size)),
    }


@pytest.mark.parametrize("model_name", ["siglip", "clip"])
def test_pixel_values_match_the_image_processor(model_name: str) -> None:
    processor = image_processor(model_name)
    expected = processor(images=rendered(3), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values(render_images([generate_scene(1, "train", i) for i in range(3)]), processor), expected)


def test_qwen_patches_match_the_image_processor() -> None:
    processor = image_processor("qwen3_vl")
    expected = processor(images=rendered(3), return_tensors="pt")
    patches, grid = qwen_patches(render_images([generate_scene(1, "train", i) for i in range(3)]), processor)
    torch.testing.assert_close(patches, expected["pixel_values"])
    assert torch.equal(grid, expected["image_grid_thw"])


def test_a_batch_depends_on_its_index_and_shares_no_scene_with_the_next(tokenizer: Qwen2Tokenizer) -> None:
    data = tasks(tokenizer, 4)["siglip"].data
    first, again, second = data(0, "train"), data(0, "train"), data(1, "train")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["images"], second["images"])


def test_pre_training_uses_other_scenes_than_the_demo() -> None:
    assert not any(generate_scene(seed, "train", 0).things == generate_scene(SEED + 1, "train", 0).things for seed in range(20))


def test_clip_batches_tokenize_texts_as_the_scorer_does(tokenizer: Qwen2Tokenizer) -> None:
    model = build_tiny_model("clip", tokenizer, 0)
    scorer = ClipScorer(model, tokenizer, image_processor("clip"), Image.open)
    data = ClipBatches(1, 3, tokenizer, model.config.text_config.max_position_embeddings, model.config.text_config.eos_token_id)
    batch = data(0, "train")
    texts = [tokenizer.decode(row[mask.bool()][:-1]) for row, mask in zip(batch["statement_ids"], batch["statement_mask"], strict=True)]
    encoded = scorer.tokenize(texts)
    assert torch.equal(batch["statement_ids"], encoded["input_ids"])
    assert torch.equal(batch["statement_mask"], encoded["attention_mask"])


def test_siglips_loss_is_the_stock_models_plus_patch_classification(tokenizer: Qwen2Tokenizer) -> None:
    task = tasks(tokenizer, 6)["siglip"]
    batch = task.data(0, "train")
    pixels = pixel_values(batch["images"], image_processor("siglip"))
    stock = task.model(input_ids=batch["input_ids"], pixel_values=pixels, return_loss=True).loss
    patches = task.model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states[VISION_FEATURE_LAYER]
    assert isinstance(task.auxiliary_head, PatchClassifier)
    torch.testing.assert_close(task.loss(task.model, batch), stock + task.auxiliary_head.loss(patches, batch["names"]))


def test_exactly_the_answers_and_their_end_tokens_are_supervised(tokenizer: Qwen2Tokenizer) -> None:
    processor = Processor(tokenizer, None, image_token=PLACEHOLDER, tokens_per_image=1, max_length=192)
    batch = TextConversationBatches(1, 8, processor)(0, "train")
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        rest = tokenizer.decode(ids[mask.bool()])
        answers = tokenizer.decode(labels[labels != IGNORE_INDEX]).split("<|im_end|>")[:-1]
        assert rest.count(processor.template_parts.header) == len(answers)
        for answer in answers:
            _, _, rest = rest.partition(processor.template_parts.header)
            assert rest.startswith(f"{answer}<|im_end|>")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_qwen3_vl_is_trained_with_the_prompt_of_inference(tokenizer: Qwen2Tokenizer, language: Language) -> None:
    images = image_processor("qwen3_vl")
    processor = Processor(tokenizer, images, image_token=PLACEHOLDER, tokens_per_image=9, max_length=192)
    system = QwenVlSystem(name="baseline", kind="qwen3_vl", path="unused", quantization="none")
    policy, own = PromptPolicy.from_config(system), QwenVlProcessor(tokenizer, images, max_length=192)
    answerer = FamilyAnswerer(build_tiny_model("qwen3_vl", tokenizer, 0), own, policy)
    prompt = answerer.encode(Request("1", (rendered(1)[0],), (Message("user", "<image>\nHow many 星形?"),), "vqa", language))
    exchange = Exchange(f"<image>\nHow many 星形?\n{SHORT_ANSWER_PROMPTS[language]}", "2")
    encoded = add_vision_tokens(encode(processor, [exchange], num_images=1), processor)
    assert encoded.input_ids[: len(prompt.ids)] == prompt.ids
    assert all(label == IGNORE_INDEX for label in encoded.labels[: len(prompt.ids)])
    assert tokenizer.decode(encoded.input_ids[len(prompt.ids) :]) == "2<|im_end|>"


def test_most_image_questions_have_the_short_answer_prompt(tokenizer: Qwen2Tokenizer) -> None:
    processor = Processor(tokenizer, image_processor("qwen3_vl"), image_token=PLACEHOLDER, tokens_per_image=9, max_length=192)
    batch = ImageConversationBatches(1, 60, processor, only_questions=True)(0, "train")
    texts = [tokenizer.decode(ids) for ids in batch["input_ids"]]
    with_answer_prompt = sum(any(suffix in text for suffix in SHORT_ANSWER_PROMPTS.values()) for text in texts)
    assert 0.5 * 60 < with_answer_prompt < 0.9 * 60


def test_splitting_by_length_changes_neither_tokens_nor_loss(tokenizer: Qwen2Tokenizer) -> None:
    task = tasks(tokenizer, 8)["qwen3"]
    batch = task.data(0, "train")
    groups = list(split_by_length(batch))
    assert sum(group["input_ids"].numel() for group in groups) < batch["input_ids"].numel()
    assert sum(int(group["attention_mask"].sum()) for group in groups) == int(batch["attention_mask"].sum())

    logits = task.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    # Without attention targets, only the cross-entropy of the answers remains.
    batch |= {name: torch.full_like(batch[name], NO_OBJECT) for name in LOOKUP_TARGETS}
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(task.loss(task.model, batch), expected)


@pytest.mark.parametrize("model_name", ["siglip", "clip", "qwen3", "qwen3_vl"])
def test_a_few_steps_on_one_batch_lower_the_loss(tokenizer: Qwen2Tokenizer, model_name: str) -> None:
    task = tasks(tokenizer, 4)[model_name]
    batch = task.data(0, "train")
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = task.loss(task.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    without_gradient = [name for name, parameter in task.model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without_gradient


def test_clip_starts_from_siglips_layers(tokenizer: Qwen2Tokenizer) -> None:
    clip, siglip = build_tiny_model("clip", tokenizer, 0), build_tiny_model("siglip", tokenizer, 1)
    assert isinstance(clip, CLIPModel) and isinstance(siglip, SiglipModel)
    warm_start.clip_from_siglip(clip, siglip)
    hidden = torch.randn(1, 5, 128)
    torch.testing.assert_close(
        clip.vision_model.encoder.layers[0].self_attn.q_proj(hidden), siglip.vision_model.encoder.layers[0].self_attn.q_proj(hidden)
    )
    positions = clip.vision_model.embeddings.position_embedding.weight[1:]
    assert torch.equal(positions, siglip.vision_model.embeddings.position_embedding.weight)


def test_qwen3_vl_starts_with_qwen3s_logits_and_siglips_patch_embeddings(tokenizer: Qwen2Tokenizer) -> None:
    model, language, siglip = (build_tiny_model(name, tokenizer, seed).eval() for seed, name in enumerate(("qwen3_vl", "qwen3", "siglip")))
    assert isinstance(model, Qwen3VLForConditionalGeneration)
    assert isinstance(language, Qwen3ForCausalLM) and isinstance(siglip, SiglipModel)
    warm_start.qwen3_vl_from_models(model, language, siglip)
    ids = torch.tensor([tokenizer.encode("How many rings are there?")])
    torch.testing.assert_close(model(input_ids=ids).logits, language(input_ids=ids).logits)
    values = render_images([generate_scene(1, "train", 0)]).float()
    patches, _ = qwen_patches(values, image_processor("qwen3_vl"))
    normalised = pixel_values(values, image_processor("qwen3_vl"))
    expected = siglip.vision_model.embeddings.patch_embedding(normalised).flatten(2).transpose(1, 2)[0]
    # Qwen3-VL orders patches by merged blocks of 2 x 2, SigLIP by rows.
    order = torch.arange(36).view(3, 2, 3, 2).permute(0, 2, 1, 3).flatten()
    torch.testing.assert_close(model.model.visual.patch_embed(patches), expected[order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_name", ["siglip", "qwen3", "qwen3_vl"])
def test_bf16_changes_the_loss_by_rounding_only(tokenizer: Qwen2Tokenizer, model_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks(tokenizer, 4)[model_name]
    batch = task.data(0, "train")
    exact = task.loss(task.model, batch).item()
    monkeypatch.setattr(mixed_precision, "has_bf16_matmul", lambda _: True)
    with mixed_precision.mixed_precision(task.model, compiled=False), mixed_precision.autocast(task.model.device):
        assert task.model.config._attn_implementation != "sdpa"
        rounded = task.loss(task.model, batch)
    assert rounded.item() == pytest.approx(exact, rel=0.02)
    assert rounded.item() != exact
    assert task.loss(task.model, batch).item() == exact


def test_attention_runs_in_fp32_under_autocast() -> None:
    query, key, value = (torch.randn(2, 4, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = mixed_precision.fp32_sdpa_attention_forward(torch.nn.Module(), query, key, value, None)
    assert output.dtype == torch.float32
    expected = torch.nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_easy_batches_have_fewer_objects_and_share_no_scene_with_others(tokenizer: Qwen2Tokenizer) -> None:
    processor = Processor(tokenizer, None, image_token=PLACEHOLDER, tokens_per_image=1, max_length=384)
    plain, easy = TextConversationBatches(1, 40, processor), TextConversationBatches(1, 40, processor, num_easy_batches=2)

    def mean_objects(scenes: list[Scene]) -> float:
        return sum(len(scene.things) for scene in scenes) / len(scenes)

    assert mean_objects(easy.scenes(1, "train")) < mean_objects(plain.scenes(1, "train")) - 0.5
    assert easy.scenes(2, "train") == plain.scenes(2, "train")
    assert easy.scenes(0, "validation") == plain.scenes(0, "validation")
    names = [scene.name for batch_index in range(4) for scene in easy.scenes(batch_index, "train")]
    assert len(set(names)) == len(names)


def test_a_minimal_pair_differs_in_one_object_and_stays_in_the_training_split() -> None:
    changed: Counter[str] = Counter()
    for index in range(300):
        scene = generate_scene(1, "train", index)
        other = minimal_pair(scene)
        ((before, after),) = [pair for pair in zip(scene.things, other.things, strict=True) if pair[0] != pair[1]]
        (field,) = [name for name in ("row", "column", "color", "shape", "digit") if getattr(before, name) != getattr(after, name)]
        changed[field] += 1
        assert not any(thing.held_out for thing in other.things)
        assert split_of(other.layout) == "train"
        assert (after.digit is None) == (after.shape != "sign")
    assert set(changed) == {"color", "shape", "digit"}
    assert min(changed.values()) > 30


def test_the_texts_around_a_turn_are_one_token_each(tokenizer: Qwen2Tokenizer) -> None:
    assert [len(tokenizer.encode(text)) for text in ("user", "assistant", "\n\n")] == [1, 1, 1]


class _Toy(torch.nn.Module):
    """A model with one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
        self.device = torch.device("cpu")


def toy_task(stop_at: int | None = None) -> Task:
    def data(batch_index: int, split: SceneSplit) -> Batch:
        if batch_index == stop_at:
            raise KeyboardInterrupt
        assert split == "train"
        return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(batch_index))}

    model: PreTrainedModel = _Toy()  # type: ignore[assignment]
    auxiliary_head = torch.nn.Linear(1, 1)

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return torch.nn.functional.mse_loss(auxiliary_head(model.layer(batch["x"])).squeeze(-1), batch["x"].sum(-1))

    return Task(model, data, loss, lambda _: {}, auxiliary_head)


RECIPE = Recipe(steps=30, batch_size=8, learning_rate=0.05, warmup=5)


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted = toy_task()
    fit(uninterrupted, RECIPE, tmp_path / "uninterrupted.pt", "toy", workers=0, save_every=10)
    interrupted = toy_task(stop_at=17)
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, RECIPE, tmp_path / "state.pt", "toy", workers=0, save_every=10)
    resumed = toy_task()
    fit(resumed, RECIPE, tmp_path / "state.pt", "toy", workers=0, save_every=10)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))


def test_the_state_of_another_recipe_is_ignored(tmp_path: Path) -> None:
    fit(toy_task(), RECIPE, tmp_path / "state.pt", "toy", workers=0, save_every=10)
    other = Recipe(steps=20, batch_size=8, learning_rate=0.05, warmup=5)
    fresh, with_old_state = toy_task(), toy_task()
    fit(fresh, other, tmp_path / "none.pt", "toy", workers=0)
    fit(with_old_state, other, tmp_path / "state.pt", "toy", workers=0)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), with_old_state.model.parameters(), strict=True))


def test_the_learning_rate_warms_up_and_then_decays() -> None:
    rates = [RECIPE.learning_rate_at(step) for step in range(RECIPE.steps)]
    assert rates[0] == pytest.approx(0.05 / 5)
    assert max(rates) == rates[4]
    assert rates[-1] < 0.05 * max(rates)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    task = toy_task()
    broken = Task(task.model, task.data, lambda model, batch: task.loss(model, batch) * float("nan"), task.measure)
    with pytest.raises(TesseraError, match="the loss is nan at step 0"):
        fit(broken, RECIPE, tmp_path / "state.pt", "toy", workers=0)


def test_metrics_are_fractions_on_layouts_that_were_never_trained_on(tokenizer: Qwen2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tiny_models.contrastive_pretraining.RECALL_POOL_SIZE", 8)
    monkeypatch.setattr("training.tiny_models.language_pretraining._MEASURED_SIZE", 2)
    monkeypatch.setattr("training.tiny_models.language_pretraining._MEASURED_BATCHES", 1)
    for task in tasks(tokenizer, 4).values():
        metrics = task.measure(task.model)
        assert metrics
        assert all(0 <= value <= 1 for name, value in metrics.items() if name != "perplexity")
        assert metrics.get("perplexity", 500) > 100
