"""The loss of each small model, a mean over supervised tokens, as transformers' own class computes it, or as a plain transcription does."""

import math
from typing import Any

import torch
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration

from dataset.loading.encoded_sample import IGNORE_INDEX
from model.param_groups import unwrapped
from tests.model.families.conftest import Case


def stock_loss(case: Case, model: Any) -> torch.Tensor:
    """With the layers of `model`, adapters included."""
    loss: torch.Tensor = {"blip2": _blip2, "llava": _llava, "resnet_gpt2": _resnet_gpt2}[case.name.rpartition("_")[0]](case, model)
    return loss


def _blip2(case: Case, model: Any) -> torch.Tensor:
    """The stock class finds the image by the id of a token that no text has."""
    batch, inner = case.batch, unwrapped(model)
    placeholder = case.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    inner.config.image_token_index = placeholder
    inputs = {
        "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == case.processor.image_token_id, placeholder),
        "attention_mask": batch["attention_mask"],
        "pixel_values": batch["pixel_values"],
    }
    labels = batch["labels"][:, 1:].contiguous() if "decoder_input_ids" in batch else batch["labels"]
    loss: torch.Tensor = Blip2ForConditionalGeneration.forward(inner, **inputs, labels=labels).loss
    return loss


def _llava(case: Case, model: Any) -> torch.Tensor:
    names = ("input_ids", "attention_mask", "pixel_values", "labels")
    loss: torch.Tensor = model(**{name: case.batch[name] for name in names}).loss
    return loss


def _position(row: int, column: int, width: int) -> list[float]:
    """The position of a cell of the image's grid: sines and cosines of its row, then of its column."""
    angles = [[place / 100 ** (i / (width // 4)) for i in range(width // 4)] for place in (row, column)]
    return [function(angle) for axis in angles for function in (math.sin, math.cos) for angle in axis]


def _resnet_gpt2(case: Case, model: Any) -> torch.Tensor:
    """As the early system is described: every text token attends to the image, both are joined, normed and read by GPT-2's head."""
    batch, part = case.batch, model.connector
    maps = model.vision(pixel_values=batch["pixel_values"]).last_hidden_state
    features = maps.flatten(2).mean(-1)[:, None] if case.settings().features == "vector" else maps.flatten(2).mT
    image = part.projection[3](functional.gelu(part.projection[0](features)))
    if case.settings().features == "grid":
        cells = [(row, column) for row in range(maps.shape[2]) for column in range(maps.shape[3])]
        image = image + 0.5 * torch.tensor([_position(*cell, image.shape[-1]) for cell in cells])
    text = model.language.transformer(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    heads, width = part.attention.num_heads, text.shape[-1]
    query, key, value = (
        functional.linear(states, weight, bias).unflatten(-1, (heads, width // heads)).transpose(1, 2)
        for states, weight, bias in zip(
            (text, image, image), part.attention.in_proj_weight.chunk(3), part.attention.in_proj_bias.chunk(3), strict=True
        )
    )
    weights = ((query @ key.mT) / (width // heads) ** 0.5).softmax(-1)
    attended = part.attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
    joined = part.norm(functional.gelu(part.join[0](torch.cat((text, attended), -1))))
    logits = functional.linear(joined, model.language.transformer.wte.weight)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE_INDEX)
