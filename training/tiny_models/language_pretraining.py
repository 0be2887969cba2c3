"""Supervised pre-training of Qwen3 on scenes as text and of Qwen3-VL on rendered images: cross-entropy on the answers.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel, Qwen2Tokenizer, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

from dataset.loading.encoded_sample import IGNORE_INDEX
from model.siglip_qwen.processor import Processor
from training.tiny_models.architectures import IMAGE_SIZE, image_processor
from training.tiny_models.attention_supervision import answer_spans, forward_with_attention_loss
from training.tiny_models.data.dialogues import MAX_LENGTH
from training.tiny_models.data.pretraining_batches import (
    Batch,
    ConversationBatches,
    ImageConversationBatches,
    SceneBatches,
    TextConversationBatches,
    qwen_patches,
    to_device,
)
from training.tiny_models.pretraining_loop import Task

_IMAGE_TOKEN = "<|image_pad|>"
_MEASURED_BATCHES, _MEASURED_SIZE = 8, 64
_GROUPS = 2
"""Number of groups of similar length into which a batch is split."""

ATTENTION_LOSS_WEIGHT = 0.3
"""Weight of the attention loss; the answers' cross-entropy has weight 1."""

ForwardFunction = Callable[[PreTrainedModel, Batch], tuple[torch.Tensor, torch.Tensor | None]]
"""Returns the last hidden states [B, T, D] of a batch and an auxiliary loss (a scalar), None without one."""


def qwen3_task(model: Qwen3ForCausalLM, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of Qwen3: conversations about scenes given as text."""
    processor = Processor(tokenizer, None, image_token=_IMAGE_TOKEN, tokens_per_image=1, max_length=MAX_LENGTH)
    return conversation_task(
        model, TextConversationBatches(**vars(scenes), processor=processor), forward_with_attention_loss, ATTENTION_LOSS_WEIGHT
    )


def qwen3_vl_task(model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, scenes: SceneBatches) -> Task:
    """The pre-training task of Qwen3-VL: conversations about rendered images."""
    images = image_processor("qwen3_vl")
    side = IMAGE_SIZE // (images.patch_size * images.merge_size)
    processor = Processor(tokenizer, images, image_token=_IMAGE_TOKEN, tokens_per_image=side**2, max_length=MAX_LENGTH)

    def forward(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, None]:
        patches, grid = qwen_patches(batch["images"], images)
        last_hidden: torch.Tensor = model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=(batch["input_ids"] == processor.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state
        return last_hidden, None

    return conversation_task(model, ImageConversationBatches(**vars(scenes), processor=processor), forward)


def conversation_task(
    model: PreTrainedModel,
    data: ConversationBatches,
    forward: ForwardFunction,
    auxiliary_weight: float = 1.0,
    auxiliary_head: nn.Module | None = None,
) -> Task:
    """The task of answering: mean loss in nats over the supervised tokens, metrics on short questions only.

    Args:
        model: the model, on the device on which it is trained.
        data: its conversations.
        forward: its forward pass, up to the language model's head.
        auxiliary_weight: weight of the auxiliary loss; the answers' cross-entropy has weight 1.
        auxiliary_head: as in Task.
    """
    head = model.get_output_embeddings()

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        total, count = torch.zeros((), device=model.device), 0
        for group in split_by_length(batch):
            supervised = group["labels"][:, 1:] != IGNORE_INDEX
            last_hidden, auxiliary_loss = forward(model, group)
            # Logits are computed at supervised positions only.
            logits = head(last_hidden[:, :-1][supervised]).float()
            total = total + functional.cross_entropy(logits, group["labels"][:, 1:][supervised], reduction="sum")
            if auxiliary_loss is not None:
                total = total + auxiliary_weight * len(logits) * auxiliary_loss
            count += len(logits)
        return total / count

    @torch.inference_mode()
    def measure(model: PreTrainedModel) -> dict[str, float]:
        """Perplexity of the answer tokens, and the exact-match accuracy of greedy decoding, each answer given the right earlier answers."""
        questions = dataclasses.replace(data, size=_MEASURED_SIZE, only_questions=True)
        nats, tokens, num_correct, answers = 0.0, 0, 0, 0
        for batch_index in range(_MEASURED_BATCHES):
            batch = to_device(questions(batch_index, "validation"), model.device)
            logits, labels = head(forward(model, batch)[0][:, :-1]).float(), batch["labels"][:, 1:]
            nats += float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
            tokens += int((labels != IGNORE_INDEX).sum())
            hits = (logits.argmax(-1) == labels).tolist()
            for row, correct in zip(labels.tolist(), hits, strict=True):
                spans = answer_spans(row)
                answers += len(spans)
                num_correct += sum(all(correct[start:end]) for start, end in spans)
        return {"perplexity": math.exp(nats / tokens), "accuracy": num_correct / answers}

    return Task(model, data, loss, measure, auxiliary_head)


def split_by_length(batch: Batch) -> Iterator[Batch]:
    """Split a batch into groups of similar length, each padded to its own longest row; padding is a third of the work otherwise."""
    width = batch["attention_mask"].shape[1]
    # Up to the last token that is read: the first ones may be masked, where a conversation is read without its image.
    lengths = width - batch["attention_mask"].flip(1).argmax(1)
    for rows in lengths.argsort().chunk(_GROUPS):
        longest = int(lengths[rows].max())
        yield {name: value[rows, :longest] if value.shape[1:] == (width,) else value[rows] for name, value in batch.items()}
