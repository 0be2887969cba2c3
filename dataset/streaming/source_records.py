"""The records of one source as one of several streams reads them: pass after pass, every record in exactly one stream."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dataset import sources
from dataset.config import DataConfig
from dataset.source_config import Source
from dataset.sources.record import ParsedRecord

MANY_FILES = 4
"""With at least this many files for each stream, streams share a source by files, else by records."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of the data a stream reads. index: number of the stream; count: streams of the run."""

    index: int = 0
    count: int = 1


class Position(NamedTuple):
    """Where a record is: pass over the source, file in the order of that pass, record of the file; all counted from 0."""

    epoch: int = 0
    file: int = 0
    record: int = 0


class SourceRecords:
    """The records of a source that a stream reads. The order of the files differs from pass to pass, that within a file does not.

    Args:
        source: The source.
        config: The data configuration.
        number: Index of the source in data.sources.
        share: Of the stream.
    """

    def __init__(self, source: Source, config: DataConfig, number: int, share: Share):
        self._config, self._share, self._seed = config, share, (config.seed, number)
        # The first records of a source are those of its files in their own order.
        self._files = source.parts() if source.limit is None else [source]
        self._by_file = len(self._files) % share.count == 0 or len(self._files) >= MANY_FILES * share.count

    def read(self, start: Position) -> Iterator[tuple[Position, ParsedRecord]]:
        """The records of a pass from a position on, each with its own position.

        All records of a file are parsed, also those of other streams: some formats reject a record for one that came before.
        """
        files = self._files_of_pass(start.epoch)
        for number in range(start.file, len(files)):
            items = enumerate(sources.read(files[number], self._config, name_files=len(self._files) > 1))
            for record, item in itertools.islice(items, start.record if number == start.file else 0, None):
                if self._by_file or (record + number) % self._share.count == self._share.index:
                    yield Position(start.epoch, number, record), item

    def find(self, positions: set[Position]) -> dict[Position, ParsedRecord]:
        """The records at some positions."""
        found: dict[Position, ParsedRecord] = {}
        for epoch, file in sorted({(position.epoch, position.file) for position in positions}):
            wanted = {position for position in positions if position[:2] == (epoch, file)}
            last = max(wanted)
            for position, item in self.read(Position(epoch, file)):
                if position in wanted:
                    found[position] = item
                if position >= last:
                    break
        return found

    def _files_of_pass(self, epoch: int) -> list[Source]:
        order = np.random.default_rng((*self._seed, epoch)).permutation(len(self._files))
        files = [self._files[i] for i in order]
        return files[self._share.index :: self._share.count] if self._by_file else files
