"""Steps of decoding recorded once as a CUDA graph and replayed: one launch in the place of a thousand.

A replay repeats the same operations on the same memory. So a frame holds everything that a step reads and writes in tensors
that stay: cache, tokens, mask, positions, and the places in the cache that the new tokens take. What differs from step to step
is copied into them. In: prompts and tokens. Out: log-probabilities, those of the same step without a recording.

Legend: n rows of a frame (m that are read), k candidates a question, c places of the cache, v vocabulary.
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
"""Records what a function does to tensors that stay; what it gives repeats that and returns the same tensor."""

CAPACITY_MULTIPLE = 128
"""Caches have a multiple of this many places, so that batches of similar prompts share a frame."""
MAX_ROWS_RATIO = 4
"""A frame serves batches of down to one question for so many of its rows."""
WARMUP_STEPS = 2
"""Runs before a recording, in which libraries set up what they may not set up while recording."""
TOLERANCE = 0.02
"""Largest difference between a replay and the step itself, relative to the largest value."""

Setting = bool | Literal["auto"]
"""decoding.cuda_graphs: true wants every step replayed, `auto` those that can be, false none."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer [rows, heads, capacity, size] with room for all tokens to come: adding some copies no others.

    rows: None for those that come. taken: int64 places that the next tokens take; None while a prompt fills the first ones.
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


def log_probabilities(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Cache, **arguments: Any
) -> torch.Tensor:
    """A forward pass: [n, tokens, v] float32."""
    output = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True, **arguments)
    return torch.log_softmax(output.logits.to(input_ids.device, torch.float32), dim=-1)


class CudaGraphRunner:
    """Tensors that stay, for batches of up to `rows` questions. position_ids: of the first of them, for its axes and device;
    give_up: is told why steps cannot be replayed, and may raise."""

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
        """Ready for the next prompts."""
        for layer in self.cache.layers:
            layer.length, layer.cache_position = 0, None
        # Rows that stand for no question see something, too: what they compute must be finite, since it stays in the cache.
        self._mask.zero_()
        self._mask[..., 0] = True

    def step(self, rows: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """rows: [m] int64, where the questions stand; tokens [m, k], seen [m, k, places] with the tokens themselves last,
        positions [..., m, k] -> [m, k, v] float32."""
        num_slots = mask.shape[2]
        self._tokens[rows], self._positions[..., rows, :] = tokens, positions
        self._mask[rows, 0, :, :num_slots] = mask
        torch.arange(num_slots - self.k, num_slots, out=self._cache_position)
        for layer in self.cache.layers:
            layer.cache_position = self._cache_position
        if self._replay is None:
            self._replay = self._capture_or_fallback()
        return self._replay()[rows]

    def _run(self) -> torch.Tensor:
        return log_probabilities(self.model, self._tokens, self._mask, self._positions, self.cache, logits_to_keep=0)

    def _capture_or_fallback(self) -> StepFunction:
        """The recording; where there can be none and `give_up` lets it, the step itself. What is computed now is computed again."""
        expected = self._run()
        try:
            replay = self._capture(self._run)
            replayed = replay()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._disable(f"a step cannot be recorded ({str(error).splitlines()[0]})")
            return self._run
        relative_error = _largest(torch.where(replayed == expected, 0, replayed - expected)) / _largest(expected[expected.isfinite()])
        if not relative_error <= TOLERANCE:
            self._disable(f"a replay is off by {relative_error:.1%} of the largest value")
            return self._run
        return replay


class CudaGraphCache:
    """The newest frame of a model. Requests come sorted by length, so the next batch mostly fits it. record: how.

    lost: why steps are no longer replayed; None as long as they can be.
    """

    def __init__(self, model: Any, capture: Capture):
        self._model, self._capture = model, capture
        self._latest: CudaGraphRunner | None = None
        self._required = False
        self.disabled_reason: str | None = None

    def if_enabled(self, setting: Setting) -> "CudaGraphCache | None":
        """These frames where the setting wants them and they can be had. Raises TesseraError where it insists and they cannot."""
        self._required = setting is True
        if self._required and self.disabled_reason is not None:
            self._disable(self.disabled_reason)
        return self if setting and self.disabled_reason is None else None

    def _disable(self, why: str) -> None:
        """From now on no step is replayed. Raises TesseraError where each must be."""
        self.disabled_reason, self._latest = why, None
        if self._required:
            raise TesseraError(f"decoding.cuda_graphs: {why}; with auto in the place of true decoding goes on without CUDA graphs")
        # Not a Python warning, which the commands leave out.
        _LOG.warning("decoding goes on without CUDA graphs, slower: %s; decoding.cuda_graphs=false turns them off", why)

    def runner(self, position_ids: torch.Tensor, min_capacity: int, k: int) -> CudaGraphRunner:
        """A frame for prompts with these position_ids [..., n, t] and `room` places, cleared; the one before is no longer of use."""
        rows = position_ids.shape[-2]
        latest = self._latest
        if latest is not None and latest.k == k and latest.capacity >= min_capacity and rows <= latest.rows <= MAX_ROWS_RATIO * rows:
            latest.clear()
            return latest
        # Before another is made, its memory is given up.
        self._latest = latest = None
        capacity = math.ceil(min_capacity / CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        self._latest = CudaGraphRunner(self._model, rows, capacity, k, position_ids, self._capture, self._disable)
        return self._latest


def capture_cuda_graph(run: StepFunction) -> StepFunction:
    """A CUDA graph of `run`."""
    side_stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    side_stream.wait_stream(current)
    with torch.cuda.stream(side_stream):
        for _ in range(WARMUP_STEPS):
            run()
    current.wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # What other threads ask of the device meanwhile, such as a search's CLIP in the service, is none of the recording's business.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def _largest(values: torch.Tensor) -> float:
    """Largest size of a value; NaN where one is NaN."""
    return float(values.abs().max())
