"""Attention supervision: in pre-training, two attention heads of Qwen3 learn to attend to the objects that an answer depends on.

With the loss on the answers alone, a small model stays on a plateau for thousands of steps: it knows which positions occur in a
scene text, but not which of them belongs to the object in question. Reading the right span is only rewarded once a head attends
to it, and attending to it is only rewarded once its content is read. Supervised attention teaches both in a few hundred steps.

Shapes: B batch, T tokens, D hidden size, H attention heads, N head size.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from transformers import Qwen3ForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, apply_rotary_pos_emb

from dataset.loading.encoded_sample import IGNORE_INDEX, EncodedSample
from dataset.synthetic.scene import Thing
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


def attention_targets(encoded: EncodedSample, exchanges: Sequence[Exchange], things: Sequence[Thing]) -> AttentionTargets:
    """Attention targets of the answers of one conversation about the scene with these objects; no token mentions an object yet."""
    targets = {name: [NO_OBJECT] * len(encoded) for name in ("mentioned", *LOOKUP_TARGETS)}
    for (start, end), exchange in zip(answer_spans(encoded.labels), exchanges, strict=False):
        for name, thing in zip(LOOKUP_TARGETS, exchange.evidence, strict=False):
            # Each position predicts the next token, so targets are shifted by one; predicting the end token needs no attention.
            targets[name][start - 1 : end - 2] = [things.index(thing)] * (end - 1 - start)
    return targets


def answer_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Token spans [start, end) of consecutive supervised labels, one per answer."""
    is_supervised = [False, *(label != IGNORE_INDEX for label in labels), False]
    edges = [position for position, (before, after) in enumerate(pairwise(is_supervised)) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


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
    queries, keys = attention.q_norm(attention.q_proj(normed).view(shape)), attention.k_norm(attention.k_proj(normed).view(shape))
    queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings, unsqueeze_dim=2)
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
