"""Packed attention. torch's variable-length attention needs CUDA; a CPU implementation with the same interface replaces it."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dataset.loading.collators import PackedCollator
from model.kernels import varlen_attention
from model.lora import enable_gradient_checkpointing
from model.param_groups import set_trainable
from model.siglip_qwen.batch_layout import with_layout
from model.siglip_qwen.processor import Processor
from tests.model.conftest import Build
from tests.model.siglip_qwen.test_modeling import examples, loss_and_gradients


def varlen_attn_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    _: torch.Tensor,
    longest: int,
    __: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.attention.varlen.varlen_attn, one segment at a time: [tokens, heads, head size] -> the same shape."""
    assert key.shape == value.shape
    assert enable_gqa or query.shape == key.shape
    assert starts.dtype == torch.int32
    assert window_size[1] == 0
    outputs = []
    bounds = starts.tolist()
    for start, end in pairwise(bounds):
        assert end - start <= longest
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        positions = torch.arange(end - start)
        distance = positions[:, None] - positions
        mask = (distance >= 0) & ((distance <= window_size[0]) if window_size[0] >= 0 else True)
        outputs.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture(params=[True, False], ids=["enable_gqa", "repeated keys"])
def varlen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enables the variable-length path, with and without torch's support of grouped-query attention."""
    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_attn_on_cpu)
    monkeypatch.setattr(varlen_attention, "HAS_WINDOW_SIZE", True)
    monkeypatch.setattr(varlen_attention, "HAS_ENABLE_GQA", request.param)
    monkeypatch.setattr(varlen_attention, "can_use_varlen", lambda _: True)


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_variable_length_path_gives_the_loss_and_gradients_of_sdpa(
    make: Build, processor: Processor, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    model = make().train()
    set_trainable(model, ["connector", "language"])
    if checkpointing:
        enable_gradient_checkpointing(model)
    row = with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor)))
    with monkeypatch.context() as without_varlen:
        without_varlen.setattr(varlen_attention, "can_use_varlen", lambda _: False)
        expected = loss_and_gradients(model, row)
    calls: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs)
        return varlen_attn_on_cpu(*args, **kwargs)

    monkeypatch.setattr(varlen_attention, "varlen_attn", counted)
    varlen_result = loss_and_gradients(model, row)
    torch.testing.assert_close(varlen_result, expected, atol=1e-5, rtol=0)
    assert len(calls) == model.config.text_config.num_hidden_layers * (2 if checkpointing else 1)


@pytest.mark.usefixtures("varlen")
def test_packed_rows_do_not_change_later_generation(make: Build, batch: Any, processor: Processor) -> None:
    model, inputs = make(), batch(1, 2, pad="left")
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
    before = model.generate(**inputs, **options), model(**inputs).logits
    model(**with_layout(PackedCollator(pad_id=0, capacity=400, max_length=180)(examples(processor))))
    assert model.config.text_config._attn_implementation == varlen_attention.ATTENTION_NAME
    torch.testing.assert_close((model.generate(**inputs, **options), model(**inputs).logits), before)


@pytest.mark.usefixtures("varlen")
def test_a_sliding_window_equals_that_of_sdpa() -> None:
    query, key, value = (torch.randn(1, heads, 9, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    positions = torch.arange(9)
    mask = (positions[:, None] >= positions) & (positions[:, None] - positions < 3)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    cu_seqlens = torch.tensor([0, 9], dtype=torch.int32)
    output, _ = varlen_attention.packed_attention_forward(
        torch.nn.Identity(), query, key, value, None, sliding_window=3, cu_seqlens=cu_seqlens, max_length=9
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_cu_seqlens_has_one_shape_for_different_numbers_of_segments() -> None:
    embeddings, shapes = torch.zeros(1, 70, 8), set()
    for segments in ([0, 70], [0, 1, 69, 70], list(range(64))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varlen_attention, "can_use_varlen", lambda _: True)
            model: Any = SimpleNamespace(config=SimpleNamespace(_attn_implementation=varlen_attention.ATTENTION_NAME))
            cu_seqlens = varlen_attention.packed_attention_kwargs(model, embeddings, torch.tensor(segments), 70)["cu_seqlens"]
        assert cu_seqlens[: len(segments)].tolist() == segments
        assert set(cu_seqlens[len(segments) :].tolist()) <= {segments[-1]}
        shapes.add(cu_seqlens.shape)
    assert shapes == {(varlen_attention.SEGMENT_MULTIPLE,)}


def test_older_torch_gets_is_causal_and_has_no_sliding_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "HAS_WINDOW_SIZE", False)
    assert varlen_attention._causal_options(None) == {"is_causal": True}
    with pytest.raises(ValueError, match=r"train.batching=padded"):
        varlen_attention._causal_options(4)


def test_variable_length_attention_is_not_used_on_a_cpu() -> None:
    assert not varlen_attention.can_use_varlen(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("tokens", [1, 5, varlen_attention.GROUPED_QUERY_LIMIT + 1])
def test_a_decode_step_does_not_repeat_the_keys_of_the_cache(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    random = partial(torch.randn, generator=torch.Generator().manual_seed(tokens))
    query, key, value = random(2, 6, tokens, 8), random(2, 2, 70, 8), random(2, 2, 70, 8)
    mask = (random(2, 1, tokens, 70) > 0).index_fill(3, torch.tensor([0]), True)
    layer: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    key_heads: list[int] = []
    original = functional.scaled_dot_product_attention

    def recorded(query: torch.Tensor, key: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        key_heads.append(key.shape[1])
        return original(query, key, *rest, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", recorded)
    output, _ = varlen_attention.packed_attention_forward(layer, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(output, expected)
    assert key_heads == [2 if tokens <= varlen_attention.GROUPED_QUERY_LIMIT else 6]
