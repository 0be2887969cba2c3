"""Replayed decoding steps give the same candidates as `generate` of transformers.

A CPU has no CUDA graphs. `Recorded` simulates one: it repeats the same operations on the same memory, with all Python control flow as
it was during the capture, and refuses operations that copy a value to the host.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from answering.answerer_factory import check_decoding
from answering.config import CheckpointSystem, DecodingConfig, OpenAiSystem
from answering.decoding import cuda_graphs as module
from answering.decoding.beam_search import beam_search
from answering.decoding.cuda_graphs import CudaGraphCache, StepFunction
from answering.decoding.decoding_rules import DecodingRules
from answering.decoding.sampling import collect, decode_steps
from answering.protocol import Request
from answering.systems.family_answerer import FamilyAnswerer
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import SiglipQwenConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.stock_generate import NUM_NEW_TOKENS, assert_equal, plain, stock_greedy

HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations that synchronise with the host; they cannot be captured in a CUDA graph."""


class Recorded(TorchDispatchMode):
    """Records all operations in its context, with the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.name() in HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        output = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, output))
        return output

    def replay(self) -> None:
        for func, args, kwargs, output in self.operations:
            input_storages = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for old, new in zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True):
                # Views and tensors changed in place already have their new values.
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in input_storages:
                    old.copy_(new)


def record(run: StepFunction) -> StepFunction:
    with Recorded() as recorded:
        result = run()

    def replay() -> torch.Tensor:
        recorded.replay()
        return result

    return replay


@pytest.fixture
def passes(model: VisionLanguageModel) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the input_ids of the model's forward passes."""
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    yield shapes
    hook.remove()


def test_replayed_beams_equal_those_of_stock_generate_over_several_batches(
    model: VisionLanguageModel,
    answerer: FamilyAnswerer,
    requests: list[Request],
    early_ends: tuple[int, ...],
    passes: list[tuple[int, ...]],
) -> None:
    graph_cache = CudaGraphCache(model, record)
    for batch_requests, ends in ((requests, answerer.end_ids), (requests, early_ends), (requests[2:4], answerer.end_ids)):
        batch = answerer.collate([answerer.encode(request) for request in batch_requests])
        passes.clear()
        generated = beam_search(model, batch, 3, DecodingRules(NUM_NEW_TOKENS, ends), graph_cache=graph_cache)
        # The prompts, and in the first batch two steps that are not replayed: one eager step and one for the capture.
        first = ends == answerer.end_ids and batch_requests is requests
        assert passes == [tuple(batch.input_ids.shape), *[(5, 3)] * (2 if first else 0)]
        assert_equal(generated, plain(model, batch, ends, 3))


def test_replayed_greedy_answers_equal_those_of_stock_generate(
    model: VisionLanguageModel, answerer: FamilyAnswerer, requests: list[Request], early_ends: tuple[int, ...]
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    generated = collect(
        decode_steps(model, batch, 1, DecodingRules(NUM_NEW_TOKENS, early_ends), graph_cache=CudaGraphCache(model, record)),
        len(requests),
        1,
    )
    assert_equal(generated, stock_greedy(model, batch, early_ends))


def test_a_runner_is_reused_for_batches_that_fit_without_much_waste(model: VisionLanguageModel) -> None:
    graph_cache = CudaGraphCache(model, record)

    def runner(rows: int, min_capacity: int, k: int = 5) -> module.CudaGraphRunner:
        return graph_cache.runner(torch.zeros(rows, 7, dtype=torch.long), min_capacity, k)

    first = runner(8, 130)
    assert (first.rows, first.capacity) == (8, 256)
    assert runner(8, 256) is first and runner(2, 100) is first
    assert runner(1, 100) is not first, "seven of eight rows would be unused"
    assert runner(8, 130).capacity == 256
    assert runner(8, 257).capacity == 384
    assert runner(9, 257).rows == 9
    assert runner(9, 257, k=4).k == 4


def refused(_: StepFunction) -> StepFunction:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def wrong(run: StepFunction) -> StepFunction:
    result = run() * 1.1
    return lambda: result


FAILURES = [
    (refused, r"a decoding step cannot be captured \(operation not permitted when stream is capturing\)"),
    (wrong, "a replay differs by 10"),
]


@pytest.mark.parametrize(("broken", "reason"), FAILURES, ids=["refused", "wrong"])
def test_with_auto_a_failed_capture_is_logged_once_and_the_candidates_are_right(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], broken: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    answerer, captures = FamilyAnswerer(model, processor), list[int]()

    def counted(run: StepFunction) -> StepFunction:
        captures.append(1)
        replay: StepFunction = broken(run)
        return replay

    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, counted), None
    decoding = DecodingConfig(num_candidates=3, max_new_tokens=NUM_NEW_TOKENS, batch_size=2)
    assert decoding.cuda_graphs == "auto" and answerer.cuda_graphs_error is None
    generated = answerer.answer(requests, decoding)
    (message,) = caplog.messages
    assert re.match(rf"decoding continues without CUDA graphs, more slowly: {reason}.*decoding\.cuda_graphs=false", message)
    assert len(captures) == 1, "a failed capture must not be tried again in the next batch"
    assert re.match(reason, str(answerer.cuda_graphs_error))
    for answer, expected in zip(generated, FamilyAnswerer(model, processor).answer(requests, decoding), strict=True):
        assert [candidate.text for candidate in answer.candidates] == [candidate.text for candidate in expected.candidates]
        assert [candidate.log_prob for candidate in answer.candidates] == pytest.approx(
            [candidate.log_prob for candidate in expected.candidates], abs=1e-4
        )


@pytest.mark.parametrize(("broken", "reason"), FAILURES, ids=["refused", "wrong"])
def test_with_true_a_failed_capture_is_an_error(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], broken: Any, reason: str
) -> None:
    answerer = FamilyAnswerer(model, processor)
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, broken), None
    for _ in range(2):
        with pytest.raises(TesseraError, match=rf"decoding\.cuda_graphs: {reason}.*; with auto instead of true") as caught:
            answerer.answer(requests, DecodingConfig(num_candidates=3, max_new_tokens=NUM_NEW_TOKENS, cuda_graphs=True))
        assert "\n" not in str(caught.value)


def test_with_true_a_model_that_cannot_use_graphs_is_an_error(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], parts: Path
) -> None:
    required = DecodingConfig(num_candidates=2, max_new_tokens=2, cuda_graphs=True)
    answerer = FamilyAnswerer(model, processor)
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but the model is on cpu; set it to auto or false"):
        answerer.answer(requests[1:2], required)
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, record), None
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match="runs under autocast"):
        answerer.answer(requests[1:2], required)
    config = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=None, quantization="nf4")
    quantised = FamilyAnswerer(build(config, image_token_id=processor.image_token_id), processor)
    with pytest.raises(UsageError, match="the language model is quantised"):
        quantised.answer(requests[1:2], required)


def test_graphs_are_checked_before_loading_and_for_our_own_systems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    required, far = DecodingConfig(cuda_graphs=True), OpenAiSystem(name="far", kind="openai", model="m")
    ours = CheckpointSystem(name="ours", kind="checkpoint")
    check_decoding(DecodingConfig(), [ours])
    check_decoding(required, [far])
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but there is no CUDA device"):
        check_decoding(required, [far, ours])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    check_decoding(required, [ours])
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but system small is quantised to nf4"):
        check_decoding(required, [CheckpointSystem(name="small", kind="checkpoint", quantization="nf4")])


def test_tokens_with_probability_0_do_not_count_as_a_difference(model: VisionLanguageModel) -> None:
    runner = CudaGraphCache(model, lambda run: run).runner(torch.zeros(1, 2, dtype=torch.long), 10, 1)
    values = torch.tensor([[[-torch.inf, -1.0, -2.0]]])
    runner._run = lambda: values  # type: ignore[method-assign]
    assert runner._capture_or_fallback()().equal(values)


def test_a_step_that_synchronises_with_the_host_cannot_be_captured() -> None:
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        record(lambda: torch.ones(1) * torch.ones(1).item())


def test_the_setting_disables_replay_and_a_cpu_has_no_graphs(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], passes: list[tuple[int, ...]]
) -> None:
    answerer = FamilyAnswerer(model, processor)
    assert answerer.graph_cache is None
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, record), None
    decoding = DecodingConfig(num_candidates=2, max_new_tokens=6, batch_size=5)
    answerer.answer(requests, decoding)
    replayed = len(passes)
    passes.clear()
    answerer.answer(requests, DecodingConfig(num_candidates=2, max_new_tokens=6, batch_size=5, cuda_graphs=False))
    assert (replayed, len(passes)) == (3, 6)
