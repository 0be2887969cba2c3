"""Collects what the streams of all ranks have counted: records that were dropped, samples by source and split, shares of a mix."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from atomic_io import write_json
from dataset.loading.source_mix import describe_shares
from dataset.streaming.sample_reader import StreamPlan
from dataset.streaming.stream_report import StreamReport
from training.streaming.stream_loader import StreamLoader

REPORT_FILE = "stream_report.json"
"""The report, next to the checkpoints: as far as the sources were read, then of all their records."""


class StreamProgress:
    """What is counted while a stage is streamed.

    Args:
        loader: This rank's batches.
        plan: What is read.
        folder: Checkpoint folder of the run.
        print_once: Prints a line on rank 0.
    """

    def __init__(self, loader: StreamLoader, plan: StreamPlan, folder: Path, print_once: Callable[[str], None]):
        self._loader, self._plan, self._folder, self._print_once = loader, plan, folder, print_once
        self._shares: np.ndarray | None = None
        self._named: set[tuple[str, str]] = set()
        # Of a resumed run, what was printed before is not printed again.
        self._is_complete = self._has_ended(list(loader.states.values()))

    def collect(self) -> None:
        """Print each reason for dropping records once, and the whole report when every source was read to its end for the first time.

        A collective operation: every rank must call it.
        """
        group = self._loader.layout.group
        own = [{"reader": state["reader"], "left_out": state["left_out"]} for state in self._loader.own_states().values()]
        states = [state for gathered in group.gather(own) for state in gathered]
        if not group.is_main_process or not states:
            return
        first, *others = (StreamReport.load(state["reader"]["report"]) for state in states)
        report = first.merged(others)
        if self._plan.weighted:
            taken = np.sum([state["reader"]["taken"] for state in states], axis=0)
            self._shares = taken / max(taken.sum(), 1)
            for source, share in zip(report.sources, self._shares.tolist(), strict=True):
                source.training_share = share
        write_json(self._folder / REPORT_FILE, report.to_json())
        for source in report.sources:
            for reason in source.dropped:
                if (source.name, reason) not in self._named:
                    self._named.add((source.name, reason))
                    self._print_once(f"data: {source.name}: dropped, {reason} ({source.examples[reason][0]})")
        if not self._is_complete and self._has_ended(states):
            self._is_complete = True
            left_out = sum(state["left_out"] for state in states)
            why = "nothing to supervise within model.max_length, or images that the model does not take"
            self._print_once(
                f"data: every source was read to its end\n{report.table()}" + (f"\n{left_out:,} left out: {why}" if left_out else "")
            )

    def save(self, folder: Path) -> None:
        """Write this rank's part of the streams' state to the trainer folder of a checkpoint, and print the shares of the mix."""
        self._loader.save(folder)
        if self._shares is not None:
            self._print_once(f"mix: {describe_shares(self._plan.names, self._shares)} of the samples read so far")

    def _has_ended(self, states: list[dict]) -> bool:  # type: ignore[type-arg]
        return len(states) == self._loader.layout.streams and all(all(state["reader"]["report"]["ended"]) for state in states)
