"""Models of every family train as transformers' own classes with PEFT do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodingError
from dataset.sample import Message
from errors import UsageError
from model.param_groups import param_group_of, trainable_param_groups, unwrapped
from tests.model.families.conftest import Case
from tests.model.families.stock_loss import stock_loss


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("everything", [False, True], ids=["default groups", "all weights"])
def test_loss_and_gradients_are_those_of_the_stock_class(case: Case, everything: bool) -> None:
    model = case.model(*(("vision", "connector", "language") if everything else case.groups))
    num_items = int(case.supervised().sum())
    loss = case.family.loss(model, case.batch, num_items)
    loss.backward()
    ours = gradients(model)
    stock = stock_loss(case, model)
    stock.backward()
    theirs = gradients(model)
    torch.testing.assert_close(loss, stock, atol=1e-5, rtol=1e-6)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys() and ours.keys() <= trained
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * max(1.0, float(gradient.abs().max())), rtol=1e-5)
    assert any(gradient.abs().sum() > 0 for gradient in ours.values())


def test_the_loss_of_a_batch_is_the_sum_of_that_of_its_samples(case: Case) -> None:
    """Padding and the images of other samples change nothing."""
    model = case.model()
    alone = 0.0
    for example in case.examples:
        alone += float(case.family.loss(model, case.processor.normalize(case.collate([example])), 1).detach())
    assert alone == pytest.approx(float(case.family.loss(model, case.batch, 1).detach()), rel=1e-5)


def test_supervised_tokens_are_the_answers_with_their_end(case: Case) -> None:
    kept = case.batch["labels"][case.batch["labels"] != IGNORE_INDEX]
    end = case.processor.tokenizer.decode([case.processor.end_of_turn_id])
    text = case.processor.tokenizer.decode(kept).replace(" ", "")
    assert text == f"red{end}no{end}2ofthem{end}"


def test_prompts_of_training_and_of_asking_are_the_same_tokens(case: Case) -> None:
    for (question, _, num_images), example in zip(case.samples, case.examples, strict=True):
        prompt = case.processor.prompt([Message("user", question)], num_images, task="vqa")
        labels = example.encoded.labels
        first_answer = next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        assert example.encoded.input_ids[:first_answer] == prompt


def test_only_the_named_groups_change(case: Case) -> None:
    for group in case.settings().groups:
        model = case.model(group).train()
        assert set(trainable_param_groups(model)) == {group}
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        case.family.loss(model, case.batch, 5).backward()
        optimizer.step()
        paths = unwrapped(model).group_paths
        changed = {param_group_of(name, paths) for name, p in model.named_parameters() if not torch.equal(parameters[name], p)}
        assert changed == {group}
        assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())


def test_a_batch_is_overfitted(case: Case) -> None:
    model = case.model("connector", "language")
    # The head of ResNet and GPT-2 is frozen, and the norm before it has to grow.
    learning_rate = 1e-2 if case.name.startswith("resnet") else 3e-3
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    losses: list[float] = []
    while len(losses) < 300 and (not losses or losses[-1] > 0.05 * losses[0]):
        loss = case.family.loss(model, case.batch, int(case.supervised().sum()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] <= 0.05 * losses[0]


def test_four_bit_weights_train_on_a_cpu(case: Case) -> None:
    if not case.has_lora:
        pytest.skip("nothing is quantised")
    model = case.model("lora", quantization="nf4")
    kinds = {name: type(module).__name__ for name, module in unwrapped(model).named_modules()}
    four_bit = {name for name, kind in kinds.items() if kind == "Linear4bit"}
    assert four_bit and all("language_model" in name for name in four_bit)
    loss = case.family.loss(model, case.batch, 5)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(gradient.abs().sum() > 0 for name, gradient in gradients(model).items() if "lora_" in name)


def test_gpt2s_first_three_tensors_stay_frozen(cases: Callable[[str], Case]) -> None:
    model = cases("resnet_gpt2_vector").model("vision", "connector", "language")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    first_three = [f"language.{name}" for name, _ in model.language.named_parameters()][:3]
    assert frozen == set(first_three)
    assert first_three == ["language.transformer.wte.weight", "language.transformer.wpe.weight", "language.transformer.h.0.ln_1.weight"]


def test_more_images_than_a_family_takes_are_one_sentence(cases: Callable[[str], Case]) -> None:
    for name in ("blip2_opt", "resnet_gpt2_vector"):
        with pytest.raises(EncodingError, match="the model takes one image per question, this one has 2"):
            cases(name).processor.encode([Message("user", "<image><image>\nWhat?")], "red", 2)


def test_layers_that_a_language_model_does_not_have_are_named(cases: Callable[[str], Case]) -> None:
    case = cases("blip2_opt")
    lora: Any = type(case.settings().lora)(target_modules=("query",))
    with pytest.raises(UsageError, match=r"model\.lora\.target_modules: the language model has no layer query; it has fc1, fc2, k_proj"):
        case.model("lora", lora=lora)
    assert any(".q.lora_A" in name for name, _ in cases("blip2_t5").model("lora").named_parameters())


def test_the_original_trains_on_the_prompt_and_answers_without_the_image(cases: Callable[[str], Case]) -> None:
    case = cases("resnet_gpt2_vector")
    original = case.family.processor(case.settings(generation="original"))
    encoded = original.encode([Message("user", "<image>\nWhat color?")], "red", 1, task="vqa")
    assert encoded is not None and encoded.labels == encoded.input_ids
    inputs = {name: case.batch[name][:1] for name in ("input_ids", "attention_mask")}
    for generation, depends in (("fused", True), ("original", False)):
        model = case.model(generation=generation).eval()
        logits = []
        for pixels in (case.batch["pixel_values"][:1], case.batch["pixel_values"][1:2]):
            cache = DynamicCache(config=model.language.config)
            logits.append(model(**inputs, pixel_values=pixels, past_key_values=cache, use_cache=True).logits)
        assert torch.equal(*logits) is not depends
        # In training the image is read in both.
        first, second = (model(**inputs, pixel_values=case.batch["pixel_values"][i : i + 1]).logits for i in range(2))
        assert not torch.equal(first, second)
