"""Logits, loss, gradients and generation of the model against stock LLaVA in transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dataset.loading.collators import Example, PackedCollator, PaddedCollator
from dataset.sample import Message
from model.param_groups import set_trainable
from model.siglip_qwen.batch_layout import BatchLayout, with_layout
from model.siglip_qwen.modeling import ImageTokenMismatchError, VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build, inputs_for_stock, repeats_images_by_sample, stock, stock_supports_final_norm

Batch = Callable[..., dict[str, torch.Tensor]]


def logits(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits of all positions that are not padding: [positions, V]."""
    with torch.no_grad():
        unpadded: torch.Tensor = model(**inputs).logits[inputs["attention_mask"].bool()]
    return unpadded


IMAGES = {"one": (1,), "several": (3,), "none": (0,), "padded batch": (1, 0, 2), "padded text": (0, 0)}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES.keys())
@pytest.mark.parametrize("pad", ["right", "left"])
def test_logits_equal_stock_llava(model: VisionLanguageModel, batch: Batch, images: tuple[int, ...], pad: str) -> None:
    inputs = batch(*images, pad=pad)
    torch.testing.assert_close(logits(model, inputs), logits(stock(model), inputs_for_stock(inputs)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [-5, 2, -1, -2, "last_hidden_state"])
def test_every_feature_layer_equals_stock_llava(make: Build, batch: Batch, layer: int | str) -> None:
    model, inputs = make(vision_feature_layer=layer), batch(1, 2)
    if layer == "last_hidden_state" and not stock_supports_final_norm(model):
        pytest.skip("the LLaVA of this transformers cannot read features after the final norm")
    torch.testing.assert_close(logits(model, inputs), logits(stock(model), inputs), atol=1e-5, rtol=0)


def test_a_qwen2_with_an_untied_lm_head_equals_stock_llava(make: Build, batch: Batch, qwen2: Path) -> None:
    model, inputs = make(language=str(qwen2)), batch(1, 2)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    torch.testing.assert_close(logits(model, inputs), logits(stock(model), inputs), atol=1e-5, rtol=0)


def test_the_state_dict_has_the_keys_of_stock_llava(model: VisionLanguageModel) -> None:
    assert model.state_dict().keys() == stock(model).state_dict().keys()


def test_other_images_and_another_order_give_other_logits(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(2)
    swapped = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert (logits(model, inputs)[-1] - logits(model, swapped)[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("decoding", [{"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 4}], ids=["greedy", "beams"])
@pytest.mark.parametrize("images", [(1, 0, 1), (1, 0, 2)], ids=["one image", "several images"])
def test_generation_equals_stock_llava(model: VisionLanguageModel, batch: Batch, decoding: dict[str, int], images: tuple[int, ...]) -> None:
    inputs, llava = batch(*images, pad="left"), stock(model)
    if decoding["num_beams"] > 1 and max(images) > 1 and not repeats_images_by_sample(llava, inputs):
        pytest.skip("the LLaVA of this transformers gives the beams of a sample the images of another one")
    options = {"max_new_tokens": 6, "do_sample": False, **decoding}
    torch.testing.assert_close(model.generate(**inputs, **options), llava.generate(**inputs, **options))


def test_beams_see_the_images_of_their_own_sample_in_order(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(2, 1, pad="left")
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "output_scores": True, "return_dict_in_generate": True}
    together = model.generate(**inputs, **options)
    rows = [slice(0, 2), slice(2, 3)]
    for row, pixels in enumerate(rows):
        is_token = inputs["attention_mask"][row].bool()
        alone = {"input_ids": inputs["input_ids"][row][is_token][None], "pixel_values": inputs["pixel_values"][pixels]}
        single = model.generate(**alone, **options)
        torch.testing.assert_close(single.sequences[0, -5:], together.sequences[row, -5:])
        torch.testing.assert_close(single.sequences_scores[0], together.sequences_scores[row], atol=1e-5, rtol=0)


def test_the_beams_of_a_sample_begin_with_the_same_prompt(model: VisionLanguageModel, batch: Batch) -> None:
    assert repeats_images_by_sample(model, batch(2, 1, 0, 3, pad="left"))


def test_generation_without_a_cache_keeps_the_images(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(1, 2, pad="left")
    options = {"max_new_tokens": 4, "do_sample": False}
    torch.testing.assert_close(model.generate(**inputs, **options, use_cache=False), model.generate(**inputs, **options))


def test_cached_features_give_the_results_of_their_pixels(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(2, 1, pad="left")
    pixels = inputs.pop("pixel_values")
    expected = logits(model, {**inputs, "pixel_values": pixels})
    features = model.encode_images(pixels)
    torch.testing.assert_close(logits(model, {**inputs, "image_features": features}), expected)
    projected = {"image": BaseModelOutputWithPooling(pooler_output=model.project(features).tokens.split(model.project(features).counts))}
    torch.testing.assert_close(logits(model, {**inputs, "mm_encoder_outputs": projected}), expected)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    beams = model.generate(**inputs, pixel_values=pixels, **options)
    torch.testing.assert_close(model.generate(**inputs, image_features=features, **options), beams)
    torch.testing.assert_close(model.generate(**inputs, mm_encoder_outputs=projected, **options), beams)
    assert len(projected["image"].pooler_output) == 3, "the caller's features are not changed"


def test_cached_features_skip_the_vision_encoder_and_a_batch_without_images_still_reaches_the_connector(
    make: Build, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    monkeypatch.setattr(model.model.vision_tower, "embeddings", None)
    model.model.multi_modal_projector.requires_grad_(True)
    inputs = with_labels(batch(0, 0))
    inputs.pop("pixel_values")
    model(**inputs, image_features=torch.empty(0, 36, model.config.vision_config.hidden_size)).loss.backward()
    gradients = [weight.grad for weight in model.model.multi_modal_projector.parameters()]
    assert [None if gradient is None else float(gradient.abs().sum()) for gradient in gradients] == [0.0] * 4


def test_images_passed_in_two_forms_are_an_error(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(1)
    with pytest.raises(ValueError, match="one of pixel_values, image_features"):
        model(**inputs, image_features=model.encode_images(inputs["pixel_values"]))


def test_dropping_the_first_patch_takes_one_image_token_less(make: Build, batch: Batch, model: VisionLanguageModel) -> None:
    pixels = batch(2)["pixel_values"]
    features = make(drop_first_patch=True).encode_images(pixels)
    torch.testing.assert_close(features, model.encode_images(pixels)[:, 1:])


@pytest.mark.parametrize("images", [(1, 3), (1, 1), (0, 2)])
def test_a_sample_with_too_many_or_too_few_image_tokens_is_named(model: VisionLanguageModel, batch: Batch, images: tuple[int, int]) -> None:
    inputs = {**batch(*images), "pixel_values": batch(1, 2)["pixel_values"]}
    if images == (1, 3):
        message = "sample second: 108 image tokens"
    else:
        message = "sample second or an earlier one: (36|72|36) image embeddings have no image token"
    with pytest.raises(ImageTokenMismatchError, match=message):
        model(**inputs, layout=BatchLayout(["first", "second"]))


def test_a_row_with_an_incomplete_image_is_named(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(1, 1, 1)
    inputs["input_ids"][1, 8] = 200
    with pytest.raises(ImageTokenMismatchError, match="sample b: 35 image tokens"):
        model(**inputs, layout=BatchLayout(["a", "b", "c"]))


def test_image_tokens_without_images_are_an_error(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(0, 1)
    inputs["pixel_values"] = inputs["pixel_values"][:0]
    with pytest.raises(ImageTokenMismatchError, match="sample in row 1: 36 image tokens"):
        model(**inputs)
    with pytest.raises(ImageTokenMismatchError, match="36 image tokens"):
        model.generate(**inputs, max_new_tokens=1)


def with_labels(inputs: dict[str, torch.Tensor], tail: int = 4) -> dict[str, torch.Tensor]:
    """The batch with labels: the last `tail` tokens of each row are supervised."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
        labels[row, length - tail : length] = inputs["input_ids"][row, length - tail : length]
    return {**inputs, "labels": labels}


def test_the_loss_is_the_mean_over_supervised_tokens(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = with_labels(batch(1, 2))
    torch.testing.assert_close(model(**inputs).loss, stock(model)(**inputs).loss, atol=1e-5, rtol=0)


def test_the_loss_of_a_step_does_not_depend_on_its_micro_batches(model: VisionLanguageModel, batch: Batch) -> None:
    full_batch = with_labels(batch(1, 1, 1, 1))
    full_batch["labels"][0] = -100
    full_batch["labels"][0, 47] = 7
    num_items = (full_batch["labels"] != -100).sum()
    micro_batches = [{key: value[rows] for key, value in full_batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    losses = [model(**micro_batch, num_items_in_batch=num_items).loss for micro_batch in micro_batches]
    torch.testing.assert_close(sum(losses), model(**full_batch).loss, atol=1e-5, rtol=0)


def test_the_lm_head_runs_at_supervised_positions_only(model: VisionLanguageModel, batch: Batch) -> None:
    rows: list[torch.Size] = []
    hook = model.lm_head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[:-1]))
    output = model(**with_labels(batch(1, 2), tail=3))
    hook.remove()
    assert rows == [(6,)]
    assert output.logits is None


def test_a_batch_with_nothing_supervised_has_loss_zero(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(1)
    assert model(**inputs, labels=torch.full_like(inputs["input_ids"], -100)).loss == 0


def test_logits_to_keep_is_a_count_positions_or_a_mask(model: VisionLanguageModel, batch: Batch) -> None:
    inputs = batch(1, 2)
    expected = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, expected[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([0, 5])).logits, expected[:, [0, 5]])
    mask = torch.rand(inputs["input_ids"].shape) < 0.2
    torch.testing.assert_close(model(**inputs, logits_to_keep=mask).logits, expected[mask])


def test_a_batch_without_images_gives_the_connector_zero_gradients(make: Build, batch: Batch) -> None:
    model = make()
    set_trainable(model, ["connector"])
    inputs = with_labels(batch(0, 0))
    loss = model(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), stock(model)(**inputs_for_stock(inputs)).loss, atol=1e-5, rtol=0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.model.multi_modal_projector.parameters())


def test_a_frozen_vision_tower_stays_in_eval_mode_and_outside_autograd(make: Build, batch: Batch) -> None:
    model = make().requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    model.train()
    assert model.model.language_model.training
    assert not any(module.training for module in model.model.vision_tower.modules())
    model(**with_labels(batch(1))).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    assert all(parameter.grad is not None for parameter in model.model.multi_modal_projector.parameters())


def test_one_batch_can_be_overfitted_to_near_zero(make: Build, processor: Processor) -> None:
    question = [Message("user", "<image>What is this?")]
    samples = []
    for i, answer in enumerate(["a red circle", "两个绿色的三角形", "2"]):
        encoded = processor.encode(question, answer, 1)
        assert encoded is not None
        samples.append(Example(f"s{i}", encoded, {"pixel_values": torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(i))}))
    model, inputs = make(), with_layout(PaddedCollator(pad_id=0)(samples))
    set_trainable(model, ["connector", "language"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for _ in range(40):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Only the images tell the three answers apart: without them the first token of each answer would cost log(3) nats.
    assert model(**inputs).loss < 0.02


def examples(processor: Processor) -> list[Example]:
    """Samples of different lengths: several turns, two images, no image, Chinese."""
    generator = torch.Generator().manual_seed(3)
    texts = [
        ([Message("user", "<image>\nWhat color is the circle?")], "red", 1),
        ([Message("user", "<image><image> 这幅图像中有什么？")], "图中有一个红色的圆形。", 2),
        ([Message("user", "How many?"), Message("assistant", "2"), Message("user", "yes or no?")], "no", 0),
        ([Message("user", "Describe the picture. <image>")], "A white cross at the bottom.", 1),
    ]
    samples = []
    for i, (messages, target, images) in enumerate(texts):
        encoded = processor.encode(messages, target, images)
        assert encoded is not None
        samples.append(Example(f"s{i}", encoded, {"pixel_values": torch.randn(images, 3, 96, 96, generator=generator)}))
    return samples


def loss_and_gradients(model: VisionLanguageModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch and the gradients of all trainable parameters by name."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_and_padded_batches_give_the_same_loss_and_gradients(make: Build, processor: Processor) -> None:
    model = make()
    set_trainable(model, ["connector", "language"])
    samples = examples(processor)
    padded = loss_and_gradients(model, with_layout(PaddedCollator(pad_id=0)(samples)))
    packed = loss_and_gradients(model, with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(samples)))
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in packed[1].values()) > 1e-2


def test_a_mismatch_in_a_packed_row_names_the_sample(model: VisionLanguageModel, processor: Processor) -> None:
    row = with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor)))
    with pytest.raises(ImageTokenMismatchError, match="sample s3: 36 image tokens"):
        model(**{**row, "pixel_values": row["pixel_values"][:3]})


def test_a_packed_row_with_an_attention_mask_is_an_error(model: VisionLanguageModel, processor: Processor) -> None:
    row = with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor)))
    with pytest.raises(ValueError, match="position_ids that restart"):
        model(**row, attention_mask=torch.ones_like(row["input_ids"]))
