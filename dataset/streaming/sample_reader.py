"""Reads the training samples of one stream: sources mixed by their sizes or weights, records checked and counted as they come.

In: a `StreamPlan` and the share of the stream. Out: training samples one at a time, and a state from which another reader goes on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dataset.config import DataConfig
from dataset.sample import Prompts
from dataset.sources.record import ParsedRecord, RejectedRecord
from dataset.streaming.checked_sample import CheckedSample, HeldOut, check_sample
from dataset.streaming.source_records import Position, Share, SourceRecords
from dataset.streaming.stream_report import StreamReport
from errors import TesseraError


@dataclass(frozen=True)
class StreamPlan:
    """What all streams of a run have in common.

    Args:
        config: Sources, limits and splits.
        names: Name of each source.
        sizes: How often the sources are read in relation to each other: their weights, or their numbers of records as far as these can be
            told without reading them.
        held_out: What is known of images that stand in several splits.
        prompts: The prompt that each kind of question mostly has among the first records of all sources.
    """

    config: DataConfig
    names: list[str]
    sizes: list[float]
    held_out: HeldOut
    prompts: Prompts

    @property
    def weighted(self) -> bool:
        """Whether weights decide: each source is then read again and again. Else an epoch has every sample once."""
        return self.config.weights is not None


class ReadSample(NamedTuple):
    """A training sample, the index of its source and its position there."""

    source: int
    position: Position
    checked: CheckedSample


class SampleReader:
    """The training samples of one stream, in the order in which they are read; an endless sequence of epochs.

    Args:
        plan: What all streams have in common.
        share: Of this stream.
        state: What `state` returned; None to begin.
    """

    def __init__(self, plan: StreamPlan, share: Share, state: dict[str, Any] | None = None):
        self._plan = plan
        self._records = [SourceRecords(source, plan.config, i, share) for i, source in enumerate(plan.config.sources)]
        count = len(self._records)
        state = state or {"positions": [Position()] * count, "taken": [0] * count, "ended": [False] * count, "report": None}
        self._positions = [Position(*position) for position in state["positions"]]
        self._taken, self._ended = list(state["taken"]), list(state["ended"])
        self._open: list[Iterator[tuple[Position, ParsedRecord]] | None] = [None] * count
        formats = [source.format for source in plan.config.sources]
        self.report = StreamReport.load(state["report"]) if state["report"] else StreamReport.empty(plan.names, formats)

    def state(self) -> dict[str, Any]:
        """Where the reader is, for JSON."""
        positions = [list(position) for position in self._positions]
        return {"positions": positions, "taken": self._taken[:], "ended": self._ended[:], "report": self.report.to_json()}

    def read(self) -> ReadSample | None:
        """The next training sample; None at the end of an epoch, after which the next one begins.

        Raises TesseraError when an annotation file cannot be read, or a whole pass has no training sample.
        """
        while not all(self._ended):
            # The source that is furthest behind.
            left = [i for i, ended in enumerate(self._ended) if not ended]
            source = min(left, key=lambda i: (self._taken[i] + 0.5) / self._plan.sizes[i])
            if (sample := self._next_of(source)) is not None:
                return sample
        self._check_useful(range(len(self._records)))
        self._positions = [Position(position.epoch + 1) for position in self._positions]
        self._taken, self._ended = [0] * len(self._taken), [False] * len(self._ended)
        return None

    def find(self, positions: set[tuple[int, Position]]) -> dict[tuple[int, Position], ReadSample]:
        """The samples at some positions, by source and position. Raises TesseraError for one that cannot be used any more."""
        found: dict[tuple[int, Position], ReadSample] = {}
        gone = "was read before the run was stopped, and cannot be used any more"
        for source, records in enumerate(self._records):
            for position, item in records.find({position for number, position in positions if number == source}).items():
                checked = self._checked(source, item)
                if isinstance(checked, RejectedRecord):
                    where = f"{self._plan.names[source]}, {checked.location}"
                    raise TesseraError(f"{where}: {gone}: {checked.detail}")
                found[source, position] = ReadSample(source, position, checked)
        if missing := positions - found.keys():
            source, position = min(missing)
            raise TesseraError(f"{self._plan.names[source]}, record {position.record} of file {position.file}: {gone}: it is not there")
        return found

    def _next_of(self, source: int) -> ReadSample | None:
        """The next record of a source; None if it is not a sample to train on, or the pass has ended."""
        iterator = self._open[source] or self._records[source].read(self._positions[source])
        self._open[source] = iterator
        if (entry := next(iterator, None)) is None:
            self._end_pass(source)
            return None
        position, item = entry
        self._positions[source] = position._replace(record=position.record + 1)
        checked = self._checked(source, item)
        if position.epoch == 0:
            self.report.count(source, item.location, checked, self._plan.config)
        if isinstance(checked, RejectedRecord) or checked.sample.split != "train":
            self._taken[source] += not self._plan.weighted
            return None
        self._taken[source] += 1
        return ReadSample(source, position, checked)

    def _checked(self, source: int, item: ParsedRecord) -> CheckedSample | RejectedRecord:
        if isinstance(item, RejectedRecord):
            return item
        plan = self._plan
        return check_sample(item, plan.config.sources[source], plan.names[source], plan.config, plan.held_out)

    def _end_pass(self, source: int) -> None:
        self._open[source] = None
        self.report.end(source)
        if self._plan.weighted:
            self._check_useful([source])
            self._positions[source] = Position(self._positions[source].epoch + 1)
        else:
            self._ended[source] = True

    def _check_useful(self, passed: Sequence[int]) -> None:
        """Raise TesseraError when none of some sources, which were read to their ends, has given a sample."""
        if not any(self.report.sources[source].training_samples for source in passed):
            named = ", ".join(self._plan.names[source] for source in passed)
            raise TesseraError(
                f"{named}: no training sample in the share of one of the streams; {self.report.merged([]).empty_message()}; with few "
                "samples, use fewer processes and train.dataloader_num_workers, or data.streaming: false"
            )
