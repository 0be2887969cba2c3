"""Decoding steps captured once as a CUDA graph and replayed: one launch instead of about a thousand.

A replay repeats the same operations on the same memory. A runner therefore holds everything that a step reads and writes in
static tensors: KV cache, tokens, mask, position ids, and the cache positions of the new tokens. Values that differ between steps
are copied into them. The logits are those of the same step run eagerly, which the first replay is compared with.

Expected of it: small models, whose steps are bound by launches, decode several times as fast. Not measured on a GPU.

Shapes: N rows of a runner (M that are in use), K candidates per question, C cache positions, V vocabulary.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from errors import TesseraError

_LOG = logging.getLogger(__name__)

StepFunction = Callable[[], torch.Tensor]
Capture = Callable[[StepFunction], StepFunction]
"""Captures what a function does to static tensors; returns a function that replays it and returns the same tensor."""

CAPACITY_MULTIPLE = 128
"""Cache sizes are rounded up to a multiple of this many positions, so that batches with similar prompts share a runner."""
MAX_ROWS_RATIO = 4
"""A runner is reused for batches with at least 1 / MAX_ROWS_RATIO as many questions as it has rows."""
WARMUP_STEPS = 2
"""Eager steps before the capture, in which libraries allocate what they cannot allocate during it."""
TOLERANCE = 0.02
"""Largest allowed difference between a replay and the eager step, relative to the largest value."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer [N, heads, C, head size], allocated at full size: appending tokens copies nothing else.

    capacity: number of cache positions. rows: N; None takes it from the first update. cache_position: int64 positions of the next
    tokens; None while a prompt fills the first ones.
    """

    is_initialized: bool

    def __init__(self, capacity: int, rows: int | None = None):
        super().__init__()
        self.capacity, self.rows, self.length = capacity, rows, 0
        self.cache_position: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            rows, new = (key_states.shape[0], key_states.new_empty) if self.rows is None else (self.rows, key_states.new_zeros)
            self.keys, self.values = (new(rows, x.shape[1], self.capacity, x.shape[3]) for x in (key_states, value_states))
            self.is_initialized = True
        if self.cache_position is not None:
            return self.keys.index_copy_(2, self.cache_position, key_states), self.values.index_copy_(2, self.cache_position, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        keys, values = self.keys[: len(key_states)], self.values[: len(value_states)]
        keys[:, :, start : self.length], values[:, :, start : self.length] = key_states, value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def get_seq_length(self, *_: Any) -> int:
        return self.length


def next_token_logits(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Cache, **arguments: Any
) -> torch.Tensor:
    """Logits [n, tokens, V] float32 of one forward pass."""
    output = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True, **arguments)
    logits: torch.Tensor = output.logits.to(input_ids.device, torch.float32)
    return logits


class CudaGraphRunner:
    """Runs decoding steps on static tensors, for batches of up to `rows` questions.

    Args:
        model: the model.
        rows: N.
        capacity: C.
        k: K.
        position_ids: those of the first prompts; only their shape and device are used.
        capture: captures a step.
        on_failure: called with the reason if steps cannot be replayed; it may raise.
    """

    def __init__(
        self,
        model: Any,
        rows: int,
        capacity: int,
        k: int,
        position_ids: torch.Tensor,
        capture: Capture,
        on_failure: Callable[[str], None],
    ):
        self.model, self.rows, self.capacity, self.k = model, rows, capacity, k
        self._capture, self._disable = capture, on_failure
        new = partial(torch.zeros, device=position_ids.device)
        self.cache = Cache(layer_class_to_replicate=partial(PreallocatedLayer, capacity, rows))
        self._tokens = new(rows, k, dtype=torch.long)
        self._positions = new(*position_ids.shape[:-2], rows, k, dtype=torch.long)
        self._mask = new(rows, 1, k, capacity, dtype=torch.bool)
        self._cache_position = new(k, dtype=torch.long)
        self._replay: StepFunction | None = None
        self.clear()

    def clear(self) -> None:
        """Reset the cache for new prompts."""
        for layer in self.cache.layers:
            layer.length, layer.cache_position = 0, None
        # Unused rows attend to position 0: what they compute must be finite because it stays in the cache.
        self._mask.zero_()
        self._mask[..., 0] = True

    def step(self, rows: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits [M, K, V] float32 after one decoding step.

        Args:
            rows: [M] int64 row of each question.
            tokens: [M, K] int64.
            mask: [M, K, cache positions] bool, true where a token attends; the last K positions are those of the new tokens.
            positions: [..., M, K] position ids.
        """
        length = mask.shape[2]
        self._tokens[rows], self._positions[..., rows, :] = tokens, positions
        self._mask[rows, 0, :, :length] = mask
        torch.arange(length - self.k, length, out=self._cache_position)
        for layer in self.cache.layers:
            layer.cache_position = self._cache_position
        if self._replay is None:
            self._replay = self._capture_or_fallback()
        return self._replay()[rows]

    def _run(self) -> torch.Tensor:
        return next_token_logits(self.model, self._tokens, self._mask, self._positions, self.cache, logits_to_keep=0)

    def _capture_or_fallback(self) -> StepFunction:
        """The captured step; the eager step if capture fails and `on_failure` does not raise. Discards what it computes."""
        expected = self._run()
        try:
            replay = self._capture(self._run)
            replayed = replay()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._disable(f"a decoding step cannot be captured ({str(error).splitlines()[0]})")
            return self._run
        relative_error = _largest(torch.where(replayed == expected, 0, replayed - expected)) / _largest(expected[expected.isfinite()])
        if not relative_error <= TOLERANCE:
            self._disable(f"a replay differs by {relative_error:.1%} of the largest value")
            return self._run
        return replay


class CudaGraphCache:
    """Caches the latest runner of a model. Requests are sorted by length, so the next batch usually fits it.

    disabled_reason: why steps are no longer replayed; None as long as they can be.
    """

    def __init__(self, model: Any, capture: Capture):
        self._model, self._capture = model, capture
        self._latest: CudaGraphRunner | None = None
        self._required = False
        self.disabled_reason: str | None = None

    def if_enabled(self, setting: bool | Literal["auto"]) -> "CudaGraphCache | None":
        """This cache if the setting `decoding.cuda_graphs` is not false and replay has not failed, else None.

        Raises TesseraError if it failed and must work (true).
        """
        self._required = setting is True
        if self._required and self.disabled_reason is not None:
            self._disable(self.disabled_reason)
        return self if setting and self.disabled_reason is None else None

    def _disable(self, reason: str) -> None:
        """Replay no further steps. Raises TesseraError if `decoding.cuda_graphs` is true."""
        self.disabled_reason, self._latest = reason, None
        if self._required:
            raise TesseraError(f"decoding.cuda_graphs: {reason}; with auto instead of true, decoding continues without CUDA graphs")
        # A log message and not a Python warning, which the commands suppress.
        _LOG.warning("decoding continues without CUDA graphs, more slowly: %s; decoding.cuda_graphs=false turns them off", reason)

    def runner(self, position_ids: torch.Tensor, min_capacity: int, k: int) -> CudaGraphRunner:
        """A cleared runner for prompts with position_ids [..., n, t]. Runners returned earlier must not be used any more.

        position_ids: their shape gives the number of rows. min_capacity: cache positions needed. k: candidates per question.
        """
        rows = position_ids.shape[-2]
        latest = self._latest
        if latest is not None and latest.k == k and latest.capacity >= min_capacity and rows <= latest.rows <= MAX_ROWS_RATIO * rows:
            latest.clear()
            return latest
        # Free the memory of the old runner before the new one is allocated.
        self._latest = latest = None
        capacity = math.ceil(min_capacity / CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        self._latest = CudaGraphRunner(self._model, rows, capacity, k, position_ids, self._capture, self._disable)
        return self._latest


def capture_cuda_graph(run: StepFunction) -> StepFunction:
    """Capture `run` as a CUDA graph; returns its replay. Source: CUDA semantics, "CUDA Graphs", in PyTorch's documentation."""
    side_stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side_stream.wait_stream(current)
    with torch.cuda.stream(side_stream):
        for _ in range(WARMUP_STEPS):
            run()
    current.wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # Calls of other threads during the capture, such as the CLIP of the service's image search, must not invalidate it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def _largest(values: torch.Tensor) -> float:
    """Largest absolute value; NaN if any value is NaN."""
    return float(values.abs().max())
