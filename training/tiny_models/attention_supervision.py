"""Attention supervision: in pre-training, two attention heads of Qwen3 learn to attend to the objects that an answer depends on.

With the loss on the answers alone, a small model stays on a plateau for thousands of steps: it knows which positions occur in a
scene text, but not which of them belongs to the object in question. Reading the right span is only rewarded once a head attends
to it, and attending to it is only rewarded once its content is read. Supervised attention teaches both in a few hundred steps.

Shapes: B batch, T tokens, D hidden size, H attention heads, N head size.
"""

from collections.abc import Sequence
from typing import cast

import torch
from transformers import Qwen3ForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, rotate_half

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.synthetic.scene import Thing
from model.siglip_qwen.processor import Processor
from training.tiny_models.data.dialogues import Exchange

NO_OBJECT = -1
"""Value of an attention target at a token without an object."""

LOOKUP_TARGETS = ("first_look", "second_look")
"""Batch keys of the objects that an answer depends on: the first supervises head 0, the second head 1."""

AttentionTargets = dict[str, list[int]]
"""Object indices, one per token: under `mentioned` the object that the token mentions, under each key of LOOKUP_TARGETS the object
that the head has to attend to when it predicts the next token. NO_OBJECT elsewhere."""

_LAYER = 3
"""Index of the supervised decoder layer: earlier layers encode the question and the scene, later ones produce the answer."""


def attention_targets(
    processor: Processor, encoded: EncodedSample, exchanges: Sequence[Exchange], things: Sequence[Thing], spans: Sequence[tuple[int, int]]
) -> AttentionTargets:
    """Attention targets of one conversation about a scene given as text.

    Args:
        processor: holds the tokenizer.
        encoded: the encoded conversation.
        exchanges: its questions and answers; the first question begins with the scene text.
        things: the scene's objects.
        spans: character span [start, end) of each object in the first question.
    """
    size = len(encoded)
    targets: AttentionTargets = {name: [NO_OBJECT] * size for name in ("mentioned", *LOOKUP_TARGETS)}
    tokens = processor.tokenizer(exchanges[0].question, add_special_tokens=False, return_offsets_mapping=True)
    first = next(
        position for position in range(size) if encoded.input_ids[position : position + len(tokens["input_ids"])] == tokens["input_ids"]
    )
    for position, (start, end) in enumerate(tokens["offset_mapping"], first):
        for object_index, (span_start, span_end) in enumerate(spans):
            if start < span_end and end > span_start:
                targets["mentioned"][position] = object_index
    for (start, end), exchange in zip(answer_spans(encoded.labels), exchanges, strict=False):
        for name, thing in zip(LOOKUP_TARGETS, exchange.evidence, strict=False):
            # Each position predicts the next token, so targets are shifted by one; predicting the end token needs no attention.
            targets[name][start - 1 : end - 2] = [things.index(thing)] * (end - 1 - start)
    return targets


def answer_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Token spans [start, end) of consecutive supervised labels, one per answer."""
    edges = [position for position in range(len(labels) + 1) if _supervised(labels, position - 1) != _supervised(labels, position)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _supervised(labels: Sequence[int], position: int) -> bool:
    return 0 <= position < len(labels) and labels[position] != IGNORE_INDEX


def forward_with_attention_loss(model: Qwen3ForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward pass with the loss of attention supervision.

    Returns: last hidden states [B, T, D]; the attention loss, the mean of -log(attention mass on the mentions of the target object)
        in nats over all supervised positions and heads.
    """
    body = model.model
    embedded = body.embed_tokens(batch["input_ids"])
    positions = torch.arange(embedded.shape[1], device=embedded.device).unsqueeze(0)
    mask = create_causal_mask(
        config=body.config, inputs_embeds=embedded, attention_mask=batch["attention_mask"], past_key_values=None, position_ids=positions
    )
    position_embeddings = body.rotary_emb(embedded, positions)
    hidden, attention_loss = embedded, embedded.new_zeros(())
    for layer_index, layer in enumerate(cast("list[Qwen3DecoderLayer]", body.layers)):
        if layer_index == _LAYER:
            attention_loss = _attention_loss(layer, hidden, position_embeddings, batch)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=position_embeddings, position_ids=positions, use_cache=False)
    return body.norm(hidden), attention_loss


def _attention_loss(
    layer: Qwen3DecoderLayer, hidden: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:2], -1, attention.head_dim)
    queries = _apply_rotary(attention.q_norm(attention.q_proj(normed).view(shape)), position_embeddings)
    keys = _apply_rotary(attention.k_norm(attention.k_proj(normed).view(shape)), position_embeddings)
    return lookup_loss(queries, keys, attention.scaling, batch)


def lookup_loss(queries: torch.Tensor, keys: torch.Tensor, scaling: float, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of -log(attention mass on the mentions of the target object) in nats over all supervised positions and heads.

    Args:
        queries: [B, T, H, N].
        keys: [B, T, key-value heads, N].
        scaling: of their products.
        batch: the attention targets.
    """
    heads_per_key = queries.shape[2] // keys.shape[2]
    total, count = queries.new_zeros(()), 0
    for head, name in enumerate(LOOKUP_TARGETS):
        rows, query_positions = torch.nonzero(batch[name] != NO_OBJECT, as_tuple=True)
        scores = (queries[:, :, head] @ keys[:, :, head // heads_per_key].mT)[rows, query_positions].float() * scaling
        is_future = torch.arange(scores.shape[1], device=scores.device) > query_positions[:, None]
        is_target = batch["mentioned"][rows] == batch[name][rows, query_positions][:, None]
        log_probs = scores.masked_fill(is_future, -torch.inf).log_softmax(-1)
        total = total - log_probs.masked_fill(~is_target, -torch.inf).logsumexp(-1).sum()
        count += len(rows)
    return total / max(1, count)


def _apply_rotary(heads: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply rotary position embeddings to queries or keys [B, T, H, N]."""
    cos, sin = (part.unsqueeze(2) for part in position_embeddings)
    rotated: torch.Tensor = heads * cos + rotate_half(heads) * sin
    return rotated
