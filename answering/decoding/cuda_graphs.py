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

Run = Callable[[], torch.Tensor]
Record = Callable[[Run], Run]
"""Records what a function does to tensors that stay; what it gives repeats that and returns the same tensor."""

PLACES_STEP = 128
"""Caches have a multiple of this many places, so that batches of similar prompts share a frame."""
WASTE = 4
"""A frame serves batches of down to one question for so many of its rows."""
WARM_UP = 2
"""Runs before a recording, in which libraries set up what they may not set up while recording."""
TOLERANCE = 0.02
"""Largest difference between a replay and the step itself, relative to the largest value."""

Setting = bool | Literal["auto"]
"""decoding.cuda_graphs: true wants every step replayed, `auto` those that can be, false none."""


class Room(DynamicLayer):
    """Keys and values of a layer [rows, heads, capacity, size] with room for all tokens to come: adding some copies no others.

    rows: None for those that come. taken: int64 places that the next tokens take; None while a prompt fills the first ones.
    """

    is_initialized: bool

    def __init__(self, capacity: int, rows: int | None = None):
        super().__init__()
        self.capacity, self.rows, self.filled = capacity, rows, 0
        self.taken: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            rows, new = (key_states.shape[0], key_states.new_empty) if self.rows is None else (self.rows, key_states.new_zeros)
            self.keys, self.values = (new(rows, x.shape[1], self.capacity, x.shape[3]) for x in (key_states, value_states))
            self.is_initialized = True
        if self.taken is not None:
            return self.keys.index_copy_(2, self.taken, key_states), self.values.index_copy_(2, self.taken, value_states)
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        keys, values = self.keys[: len(key_states)], self.values[: len(value_states)]
        keys[:, :, start : self.filled], values[:, :, start : self.filled] = key_states, value_states
        return keys[:, :, : self.filled], values[:, :, : self.filled]

    def get_seq_length(self, *_: Any) -> int:
        return self.filled


def log_probabilities(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: Cache, **arguments: Any
) -> torch.Tensor:
    """A forward pass: [n, tokens, v] float32."""
    output = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True, **arguments)
    return torch.log_softmax(output.logits.to(input_ids.device, torch.float32), dim=-1)


class Frame:
    """Tensors that stay, for batches of up to `rows` questions. position_ids: of the first of them, for its axes and device;
    give_up: is told why steps cannot be replayed, and may raise."""

    def __init__(
        self,
        model: Any,
        rows: int,
        capacity: int,
        k: int,
        position_ids: torch.Tensor,
        record: Record,
        give_up: Callable[[str], None],
    ):
        self.model, self.rows, self.capacity, self.k = model, rows, capacity, k
        self._record, self._give_up = record, give_up
        new = partial(torch.zeros, device=position_ids.device)
        self.cache = Cache(layer_class_to_replicate=partial(Room, capacity, rows))
        self._tokens = new(rows, k, dtype=torch.long)
        self._positions = new(*position_ids.shape[:-2], rows, k, dtype=torch.long)
        self._seen = new(rows, 1, k, capacity, dtype=torch.bool)
        self._taken = new(k, dtype=torch.long)
        self._replay: Run | None = None
        self.clear()

    def clear(self) -> None:
        """Ready for the next prompts."""
        for layer in self.cache.layers:
            layer.filled, layer.taken = 0, None
        # Rows that stand for no question see something, too: what they compute must be finite, since it stays in the cache.
        self._seen.zero_()
        self._seen[..., 0] = True

    def step(self, rows: torch.Tensor, tokens: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """rows: [m] int64, where the questions stand; tokens [m, k], seen [m, k, places] with the tokens themselves last,
        positions [..., m, k] -> [m, k, v] float32."""
        places = seen.shape[2]
        self._tokens[rows], self._positions[..., rows, :] = tokens, positions
        self._seen[rows, 0, :, :places] = seen
        torch.arange(places - self.k, places, out=self._taken)
        for layer in self.cache.layers:
            layer.taken = self._taken
        if self._replay is None:
            self._replay = self._recorded()
        return self._replay()[rows]

    def _run(self) -> torch.Tensor:
        return log_probabilities(self.model, self._tokens, self._seen, self._positions, self.cache, logits_to_keep=0)

    def _recorded(self) -> Run:
        """The recording; where there can be none and `give_up` lets it, the step itself. What is computed now is computed again."""
        wanted = self._run()
        try:
            replay = self._record(self._run)
            found = replay()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up(f"a step cannot be recorded ({str(error).splitlines()[0]})")
            return self._run
        off = _largest(torch.where(found == wanted, 0, found - wanted)) / _largest(wanted[wanted.isfinite()])
        if not off <= TOLERANCE:
            self._give_up(f"a replay is off by {off:.1%} of the largest value")
            return self._run
        return replay


class Frames:
    """The newest frame of a model. Requests come sorted by length, so the next batch mostly fits it. record: how.

    lost: why steps are no longer replayed; None as long as they can be.
    """

    def __init__(self, model: Any, record: Record):
        self._model, self._record = model, record
        self._newest: Frame | None = None
        self._required = False
        self.lost: str | None = None

    def under(self, setting: Setting) -> "Frames | None":
        """These frames where the setting wants them and they can be had. Raises TesseraError where it insists and they cannot."""
        self._required = setting is True
        if self._required and self.lost is not None:
            self._give_up(self.lost)
        return self if setting and self.lost is None else None

    def _give_up(self, why: str) -> None:
        """From now on no step is replayed. Raises TesseraError where each must be."""
        self.lost, self._newest = why, None
        if self._required:
            raise TesseraError(f"decoding.cuda_graphs: {why}; with auto in the place of true decoding goes on without CUDA graphs")
        # Not a Python warning, which the commands leave out.
        _LOG.warning("decoding goes on without CUDA graphs, slower: %s; decoding.cuda_graphs=false turns them off", why)

    def frame(self, position_ids: torch.Tensor, room: int, k: int) -> Frame:
        """A frame for prompts with these position_ids [..., n, t] and `room` places, cleared; the one before is no longer of use."""
        rows = position_ids.shape[-2]
        newest = self._newest
        if newest is not None and newest.k == k and newest.capacity >= room and rows <= newest.rows <= WASTE * rows:
            newest.clear()
            return newest
        # Before another is made, its memory is given up.
        self._newest = newest = None
        capacity = math.ceil(room / PLACES_STEP) * PLACES_STEP
        self._newest = Frame(self._model, rows, capacity, k, position_ids, self._record, self._give_up)
        return self._newest


def record_on_cuda(run: Run) -> Run:
    """A CUDA graph of `run`."""
    beside, current = torch.cuda.Stream(), torch.cuda.current_stream()
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            run()
    current.wait_stream(beside)
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
