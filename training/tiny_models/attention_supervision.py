"""Where to look: in pre-training, two attention heads learn which part of a written scene an answer stands in.

From answers alone a small model stays for thousands of steps where it knows which places a scene has, but not which of them
belongs to the thing that is asked about: until a head looks there, nothing rewards reading, and until reading works, nothing
rewards looking. Shown where to look, it learns both in a few hundred steps.
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
"""In `mentioned` and the looks: no thing."""

LOOKUP_TARGETS = ("first_look", "second_look")
"""One for each thing that an exchange looks up; head 0 learns the first, head 1 the second."""

AttentionTargets = dict[str, list[int]]
"""One number a token: `mentioned`, the thing that it speaks of, and for each of LOOKS the thing to look at before the next one."""

_LAYER = 3
"""The heads' layer: those below find out what is asked and what stands where, the ones above say it."""


def attention_targets(
    processor: Processor, encoded: EncodedSample, exchanges: Sequence[Exchange], things: Sequence[Thing], spans: Sequence[tuple[int, int]]
) -> AttentionTargets:
    """What every token of a conversation about a written scene speaks of and looks at.

    things: the scene's; spans: where the scene's text, which opens the first question, mentions each (characters).
    """
    size = len(encoded)
    found: AttentionTargets = {name: [NO_OBJECT] * size for name in ("mentioned", *LOOKUP_TARGETS)}
    tokens = processor.tokenizer(exchanges[0].question, add_special_tokens=False, return_offsets_mapping=True)
    first = next(
        position for position in range(size) if encoded.input_ids[position : position + len(tokens["input_ids"])] == tokens["input_ids"]
    )
    for position, (start, end) in enumerate(tokens["offset_mapping"], first):
        for number, (opens, closes) in enumerate(spans):
            if start < closes and end > opens:
                found["mentioned"][position] = number
    for (start, end), exchange in zip(answer_spans(encoded.labels), exchanges, strict=False):
        for name, thing in zip(LOOKUP_TARGETS, exchange.evidence, strict=False):
            # The token before an answer's foretells its first; the end token needs no look.
            found[name][start - 1 : end - 2] = [things.index(thing)] * (end - 1 - start)
    return found


def answer_spans(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of supervised tokens: one an answer."""
    edges = [position for position in range(len(labels) + 1) if _supervised(labels, position - 1) != _supervised(labels, position)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _supervised(labels: Sequence[int], position: int) -> bool:
    return 0 <= position < len(labels) and labels[position] != IGNORE_INDEX


def forward_with_attention_loss(model: Qwen3ForCausalLM, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states [n, t, width] of a batch, and the mean loss of the looks: how little of the heads' attention goes where the
    things asked about are mentioned, in nats."""
    body = model.model
    embedded = body.embed_tokens(batch["input_ids"])
    positions = torch.arange(embedded.shape[1], device=embedded.device).unsqueeze(0)
    mask = create_causal_mask(
        config=body.config, inputs_embeds=embedded, attention_mask=batch["attention_mask"], past_key_values=None, position_ids=positions
    )
    position_embeddings = body.rotary_emb(embedded, positions)
    hidden, attention_loss = embedded, embedded.new_zeros(())
    for number, layer in enumerate(cast("list[Qwen3DecoderLayer]", body.layers)):
        if number == _LAYER:
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
    heads_per_key = queries.shape[2] // keys.shape[2]
    total, count = hidden.new_zeros(()), 0
    for head, name in enumerate(LOOKUP_TARGETS):
        rows, query_positions = torch.nonzero(batch[name] != NO_OBJECT, as_tuple=True)
        scores = (queries[:, :, head] @ keys[:, :, head // heads_per_key].mT)[rows, query_positions].float() * attention.scaling
        is_future = torch.arange(scores.shape[1], device=scores.device) > query_positions[:, None]
        wanted = batch["mentioned"][rows] == batch[name][rows, query_positions][:, None]
        logs = scores.masked_fill(is_future, -torch.inf).log_softmax(-1)
        total = total - logs.masked_fill(~wanted, -torch.inf).logsumexp(-1).sum()
        count += len(rows)
    return total / max(1, count)


def _apply_rotary(heads: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions on [n, t, heads, size]."""
    cos, sin = (part.unsqueeze(2) for part in position_embeddings)
    rotated: torch.Tensor = heads * cos + rotate_half(heads) * sin
    return rotated
