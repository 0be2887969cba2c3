"""Supervised pre-training of Qwen3 on scenes as text and of Qwen3-VL on rendered images: cross-entropy on the answers.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from transformers import PreTrainedModel, Qwen2Tokenizer, Qwen2VLImageProcessorPil, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

from dataset.loading.encoded_sample import IGNORE_INDEX
from model.siglip_qwen.processor import Processor
from training.tiny_models.attention_supervision import answer_spans, forward_with_attention_loss
from training.tiny_models.data.pretraining_batches import Batch, ImageConversationBatches, TextConversationBatches
from training.tiny_models.data.scene_pixels import qwen_patches
from training.tiny_models.pretraining_loop import Task

MAX_LENGTH = 384
_IMAGE_TOKEN = "<|image_pad|>"
_MEASURED_BATCHES, _MEASURED_SIZE = 8, 64
_GROUPS = 2
"""Number of groups of similar length into which a batch is split."""

ATTENTION_LOSS_WEIGHT = 0.3
"""Weight of the attention loss; the answers' cross-entropy has weight 1."""

HiddenStatesFunction = Callable[[PreTrainedModel, Batch], tuple[torch.Tensor, torch.Tensor | None]]
"""Returns the last hidden states [B, T, D] of a batch and the loss of attention supervision (a scalar), None without it."""


def qwen3_task(model: Qwen3ForCausalLM, tokenizer: Qwen2Tokenizer, seed: int, batch_size: int, num_easy_batches: int = 0) -> Task:
    """The pre-training task of Qwen3: conversations about scenes given as text.

    Args:
        model: the model, on the device on which it is trained.
        tokenizer: its tokenizer.
        seed: seed of the scenes.
        batch_size: conversations per batch.
        num_easy_batches: number of first batches whose scenes have few objects.
    """
    processor = Processor(tokenizer, None, image_token=_IMAGE_TOKEN, tokens_per_image=1, max_length=MAX_LENGTH)
    data = TextConversationBatches(seed, batch_size, processor, num_easy_batches=num_easy_batches)

    return _conversation_task(model, data, forward_with_attention_loss)


def qwen3_vl_task(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    image_processor: Qwen2VLImageProcessorPil,
    seed: int,
    batch_size: int,
    image_size: int,
) -> Task:
    """The pre-training task of Qwen3-VL: conversations about rendered images.

    Args:
        model: the model, on the device on which it is trained.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        seed: seed of the scenes.
        batch_size: conversations per batch.
        image_size: width and height of the images in pixels.
    """
    side = image_size // (image_processor.patch_size * image_processor.merge_size)
    processor = Processor(tokenizer, image_processor, image_token=_IMAGE_TOKEN, tokens_per_image=side**2, max_length=MAX_LENGTH)
    data = ImageConversationBatches(seed, batch_size, processor)

    def hidden_states(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, None]:
        patches, grid = qwen_patches(batch["images"], image_processor)
        last_hidden: torch.Tensor = model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=(batch["input_ids"] == processor.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state
        return last_hidden, None

    return _conversation_task(model, data, hidden_states)


def _conversation_task(
    model: PreTrainedModel, data: TextConversationBatches | ImageConversationBatches, hidden_states: HiddenStatesFunction
) -> Task:
    """Train on the conversations of `data`; the metrics are measured on its short questions only."""

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return conversation_loss(model, hidden_states, batch)

    @torch.inference_mode()
    def measure(model: PreTrainedModel) -> dict[str, float]:
        return _measure(model, hidden_states, dataclasses.replace(data, size=_MEASURED_SIZE, only_questions=True))

    return Task(model, data, loss, measure)


def conversation_loss(model: PreTrainedModel, hidden_states: HiddenStatesFunction, batch: Batch) -> torch.Tensor:
    """Mean loss in nats over the batch's supervised tokens; logits are computed at supervised positions only."""
    total, count = torch.zeros((), device=model.device), 0
    for group in split_by_length(batch):
        supervised = group["labels"][:, 1:] != IGNORE_INDEX
        last_hidden, attention_loss = hidden_states(model, group)
        logits = model.lm_head(last_hidden[:, :-1][supervised]).float()
        total = total + functional.cross_entropy(logits, group["labels"][:, 1:][supervised], reduction="sum")
        if attention_loss is not None:
            total = total + ATTENTION_LOSS_WEIGHT * len(logits) * attention_loss
        count += len(logits)
    return total / count


def split_by_length(batch: Batch) -> Iterator[Batch]:
    """Split a batch into groups of similar length, each padded to its own longest row; padding is a third of the work otherwise."""
    width = batch["attention_mask"].shape[1]
    # Up to the last token that is read: the first ones may be masked, where a conversation is read without its image.
    lengths = width - batch["attention_mask"].flip(1).argmax(1)
    for rows in lengths.argsort().chunk(_GROUPS):
        longest = int(lengths[rows].max())
        yield {name: value[rows, :longest] if value.shape[1:] == (width,) else value[rows] for name, value in batch.items()}


def _measure(
    model: PreTrainedModel, hidden_states: HiddenStatesFunction, data: TextConversationBatches | ImageConversationBatches
) -> dict[str, float]:
    """Perplexity of the answer tokens, and the exact-match accuracy of greedy decoding, each answer given the right earlier answers."""
    nats, tokens, num_correct, answers = 0.0, 0, 0, 0
    for batch_index in range(_MEASURED_BATCHES):
        batch = {name: value.to(model.device) for name, value in data(batch_index, "validation").items()}
        logits, labels = model.lm_head(hidden_states(model, batch)[0][:, :-1]).float(), batch["labels"][:, 1:]
        nats += float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
        tokens += int((labels != IGNORE_INDEX).sum())
        hits = (logits.argmax(-1) == labels).tolist()
        for row, correct in zip(labels.tolist(), hits, strict=True):
            spans = answer_spans(row)
            answers += len(spans)
            num_correct += sum(all(correct[start:end]) for start, end in spans)
    return {"perplexity": math.exp(nats / tokens), "accuracy": num_correct / answers}
