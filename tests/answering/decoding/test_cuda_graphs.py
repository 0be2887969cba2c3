"""Replayed steps find the candidates of plain `generate`.

There is no CUDA graph on a CPU. `Recorded` repeats what one does: the same operations on the same memory, with whatever Python
decided while recording, and it refuses to hand a value to the host.
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
from answering.decoding.sampling import collect, decode_steps
from answering.protocol import Request
from answering.systems.siglip_qwen import CheckpointAnswerer
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import ModelConfig
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.processor import Processor
from tests.answering.plain import NUM_NEW_TOKENS, assert_equal, plain, stock_greedy

HOST = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations for which the host waits, which a CUDA graph refuses."""


class Recorded(TorchDispatchMode):
    """All operations inside, with the very tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.name() in HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func.name()}")
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.operations:
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for old, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                # What is a view, or was changed in place, has its new value already.
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in given:
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
    """Shapes of the ids that the model itself is given."""
    shapes: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    yield shapes
    hook.remove()


def test_replayed_beams_equal_those_of_plain_generate_batch_after_batch(
    model: VisionLanguageModel,
    answerer: CheckpointAnswerer,
    requests: list[Request],
    early_ends: tuple[int, ...],
    passes: list[tuple[int, ...]],
) -> None:
    graph_cache = CudaGraphCache(model, record)
    for asked, ends in ((requests, answerer.end_ids), (requests, early_ends), (requests[2:4], answerer.end_ids)):
        batch = answerer.collate([answerer.encode(request) for request in asked])
        passes.clear()
        found = beam_search(model, batch, 3, NUM_NEW_TOKENS, ends, graph_cache=graph_cache)
        # The prompts; only the first batch makes a step that is not replayed, once for itself and once to be recorded.
        first = ends == answerer.end_ids and asked is requests
        assert passes == [tuple(batch.input_ids.shape), *[(5, 3)] * (2 if first else 0)]
        assert_equal(found, plain(model, batch, ends, 3))


def test_replayed_greedy_answers_equal_plain_generate(
    model: VisionLanguageModel, answerer: CheckpointAnswerer, requests: list[Request], early_ends: tuple[int, ...]
) -> None:
    batch = answerer.collate([answerer.encode(request) for request in requests])
    found = collect(decode_steps(model, batch, 1, NUM_NEW_TOKENS, early_ends, graph_cache=CudaGraphCache(model, record)), len(requests), 1)
    assert_equal(found, stock_greedy(model, batch, early_ends))


def test_a_frame_serves_what_fits_and_does_not_waste_much(model: VisionLanguageModel) -> None:
    graph_cache = CudaGraphCache(model, record)

    def runner(rows: int, room: int, k: int = 5) -> module.CudaGraphRunner:
        return graph_cache.runner(torch.zeros(rows, 7, dtype=torch.long), room, k)

    first = runner(8, 130)
    assert (first.rows, first.capacity) == (8, 256)
    assert runner(8, 256) is first and runner(2, 100) is first
    assert runner(1, 100) is not first, "seven rows of eight would run for nothing"
    assert runner(8, 130).capacity == 256
    assert runner(8, 257).capacity == 384
    assert runner(9, 257).rows == 9
    assert runner(9, 257, k=4).k == 4


def refused(_: StepFunction) -> StepFunction:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def wrong(run: StepFunction) -> StepFunction:
    result = run() * 1.1
    return lambda: result


FAILURES = [(refused, r"a step cannot be recorded \(operation not permitted when stream is capturing\)"), (wrong, "a replay is off by 10")]


@pytest.mark.parametrize(("broken", "reason"), FAILURES, ids=["refused", "wrong"])
def test_with_auto_a_recording_that_fails_is_said_once_and_the_candidates_are_right(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], broken: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    answerer, recordings = CheckpointAnswerer(model, processor), list[int]()

    def counted(run: StepFunction) -> StepFunction:
        recordings.append(1)
        replay: StepFunction = broken(run)
        return replay

    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, counted), None
    decoding = DecodingConfig(num_candidates=3, max_new_tokens=NUM_NEW_TOKENS, batch_size=2)
    assert decoding.cuda_graphs == "auto" and answerer.cuda_graphs_error is None
    found = answerer.answer(requests, decoding)
    (said,) = caplog.messages
    assert re.match(rf"decoding goes on without CUDA graphs, slower: {reason}.*decoding\.cuda_graphs=false", said)
    assert len(recordings) == 1, "what has failed is not tried again in the next batch"
    assert re.match(reason, str(answerer.cuda_graphs_error))
    for answer, wanted in zip(found, CheckpointAnswerer(model, processor).answer(requests, decoding), strict=True):
        assert [one.text for one in answer.candidates] == [one.text for one in wanted.candidates]
        assert [one.log_prob for one in answer.candidates] == pytest.approx([one.log_prob for one in wanted.candidates], abs=1e-4)


@pytest.mark.parametrize(("broken", "reason"), FAILURES, ids=["refused", "wrong"])
def test_where_graphs_are_asked_for_a_recording_that_fails_is_an_error(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], broken: Any, reason: str
) -> None:
    answerer = CheckpointAnswerer(model, processor)
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, broken), None
    for _ in range(2):
        with pytest.raises(TesseraError, match=rf"decoding\.cuda_graphs: {reason}.*; with auto in the place of true") as caught:
            answerer.answer(requests, DecodingConfig(num_candidates=3, max_new_tokens=NUM_NEW_TOKENS, cuda_graphs=True))
        assert "\n" not in str(caught.value)


def test_graphs_cannot_be_asked_for_where_there_are_none(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], parts: Path
) -> None:
    wanted = DecodingConfig(num_candidates=2, max_new_tokens=2, cuda_graphs=True)
    answerer = CheckpointAnswerer(model, processor)
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but the model is on cpu; set it to auto or false"):
        answerer.answer(requests[1:2], wanted)
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, record), None
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UsageError, match="runs under autocast"):
        answerer.answer(requests[1:2], wanted)
    config = ModelConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=None, quantization="nf4")
    quantised = CheckpointAnswerer(build(config, image_token_id=processor.image_token_id), processor)
    with pytest.raises(UsageError, match="the language model is quantised"):
        quantised.answer(requests[1:2], wanted)


def test_before_anything_is_loaded_graphs_are_refused_for_our_own_systems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, far = DecodingConfig(cuda_graphs=True), OpenAiSystem(name="far", kind="openai", model="m")
    ours = CheckpointSystem(name="ours", kind="checkpoint")
    check_decoding(DecodingConfig(), [ours])
    check_decoding(wanted, [far])
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but there is no CUDA device"):
        check_decoding(wanted, [far, ours])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    check_decoding(wanted, [ours])
    with pytest.raises(UsageError, match=r"decoding\.cuda_graphs: true, but system small is quantised to nf4"):
        check_decoding(wanted, [CheckpointSystem(name="small", kind="checkpoint", quantization="nf4")])


def test_words_that_cannot_come_are_no_difference(model: VisionLanguageModel) -> None:
    runner = CudaGraphCache(model, lambda run: run).runner(torch.zeros(1, 2, dtype=torch.long), 10, 1)
    values = torch.tensor([[[-torch.inf, -1.0, -2.0]]])
    runner._run = lambda: values  # type: ignore[method-assign]
    assert runner._capture_or_fallback()().equal(values)


def test_a_step_for_which_the_host_waits_cannot_be_recorded() -> None:
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        record(lambda: torch.ones(1) * torch.ones(1).item())


def test_the_setting_turns_it_off_and_a_cpu_has_none(
    model: VisionLanguageModel, processor: Processor, requests: list[Request], passes: list[tuple[int, ...]]
) -> None:
    answerer = CheckpointAnswerer(model, processor)
    assert answerer.graph_cache is None
    answerer.graph_cache, answerer.cuda_graphs_unsupported = CudaGraphCache(model, record), None
    decoding = DecodingConfig(num_candidates=2, max_new_tokens=6, batch_size=5)
    answerer.answer(requests, decoding)
    replayed = len(passes)
    passes.clear()
    answerer.answer(requests, DecodingConfig(num_candidates=2, max_new_tokens=6, batch_size=5, cuda_graphs=False))
    assert (replayed, len(passes)) == (3, 6)
