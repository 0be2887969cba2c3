"""How long a system took to answer, over interrupted runs and several ranks."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answering.model_fingerprint import comparable, digest
from atomic_io import write_json
from process_group import ProcessGroup
from renamed_keys import with_old_keys


@dataclass(frozen=True, slots=True)
class Timing:
    """Number of questions, the seconds they took, and why decoding ran without CUDA graphs."""

    questions: int = 0
    seconds: float = 0.0
    cuda_graphs_error: str | None = None

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(self.questions + other.questions, self.seconds + other.seconds, other.cuda_graphs_error or self.cuda_graphs_error)

    @property
    def rate(self) -> float | None:
        """Questions per second; None if nothing was measured."""
        return self.questions / self.seconds if self.seconds > 0 else None


class Stopwatch:
    """Measures answering time, saved next to the predictions file so that it accumulates over interrupted runs.

    With several ranks the time of the slowest counts, and it is saved only at the end: an interrupted run's measurements are lost.
    """

    def __init__(self, path: Path, model: dict[str, Any], process_group: ProcessGroup):
        self.path, self.model, self.process_group = path, digest(comparable(model)), process_group
        self.before, self.new = Timing(), Timing()
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if saved.get("model") in (self.model, digest(with_old_keys("eval", model))):
            self.before = Timing(saved["questions"], saved["seconds"], saved.get("without_cuda_graphs"))

    @property
    def total(self) -> Timing:
        """Sum of the saved and the new measurements."""
        return self.before + self.new

    def add(self, questions: int, seconds: float, cuda_graphs_error: str | None) -> None:
        """Add questions and the seconds they took; cuda_graphs_error: why decoding ran without CUDA graphs."""
        self.new += Timing(questions, seconds, cuda_graphs_error)
        if self.process_group.world_size == 1:
            self._save()

    def gather(self) -> None:
        """Combine the measurements of all ranks. Collective: every rank must call it."""
        timings = self.process_group.gather(self.new)
        self.new = sum(timings, Timing())
        self.new = dataclasses.replace(self.new, seconds=max(timing.seconds for timing in timings))
        if self.process_group.is_main_process and self.new.questions:
            self._save()

    def _save(self) -> None:
        total = self.total
        reason = {} if total.cuda_graphs_error is None else {"without_cuda_graphs": total.cuda_graphs_error}
        write_json(self.path, {"model": self.model, "questions": total.questions, "seconds": total.seconds, **reason})
