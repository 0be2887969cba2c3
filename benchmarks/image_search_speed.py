"""How fast pictures are found among many, and how many of the true best: vectors that are made up, the search as it is."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UsageError
from progress import Progress
from serving.search.ann_index import Graph, K, measure
from serving.search.clip_encoder import Maker
from serving.search.lancedb_table import PictureTable, Row, open_table

THEMES = 2000
"""Groups of like pictures that the vectors belong to."""
WRITTEN_TOGETHER = 4096


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one question each, questions apart."""

    median: float
    p95: float
    worst: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        """From seconds of each question."""
        median, p95, worst = np.percentile(seconds, (50, 95, 100)) * 1000
        return cls(float(median), float(p95), float(worst))

    def text(self) -> str:
        """For people."""
        return f"median {self.median:.1f} ms, 95 % within {self.p95:.1f} ms, slowest {self.worst:.1f} ms"


@dataclass(frozen=True, slots=True)
class Measured:
    """written, built: seconds; exact, approximate: of the ten best of a question; recall: of other questions than those that
    chose how far the graph is searched."""

    written: float
    built: float
    exact: Times
    approximate: Times | None
    graph: Graph
    recall: float


def measure_search(place: str, vectors: int, width: int, questions: int, recall: float, seed: int = 0) -> Measured:
    """Fill an index in the empty folder `place` with `vectors` of `width` numbers and put `questions` to it, both ways.

    Raises UsageError when there are fewer vectors than results.
    """
    if vectors < K:
        raise UsageError(f"--vectors {vectors}: at least {K} are needed")
    draw = _drawer(width, seed)
    table = open_table(place, Maker("made up", "0" * 16, width), create=True)
    begin = time.perf_counter()
    _fill(table, draw, vectors)
    table.tidy()
    written, begin = time.perf_counter() - begin, time.perf_counter()
    table.build_graph(1)
    built = time.perf_counter() - begin
    graph = measure(table, draw(questions), recall)
    asked = draw(questions)
    exact, true = _asked(table, asked, None)
    if not graph.ef:
        return Measured(written, built, exact, None, graph, 0.0)
    approximate, found = _asked(table, asked, graph.ef)
    share = np.mean([len(one & other) / K for one, other in zip(true, found, strict=True)])
    return Measured(written, built, exact, approximate, graph, float(share))


def _fill(table: PictureTable, draw: Callable[[int], np.ndarray], count: int) -> None:
    with Progress("writing vectors", count, "vectors") as progress:
        for start in range(0, count, WRITTEN_TOGETHER):
            part = draw(min(WRITTEN_TOGETHER, count - start))
            ids = (hashlib.sha256(str(start + i).encode()).hexdigest() for i in range(len(part)))
            table.put([Row(id, 1, {f"/{id[:12]}.jpg": 0}, None, vector) for id, vector in zip(ids, part, strict=True)])
            progress.update(len(part))


def _asked(table: PictureTable, asked: np.ndarray, ef: int | None) -> tuple[Times, list[set[str]]]:
    # The first question opens files; it is not what a service is asked again and again.
    table.nearest(asked[0], K, ef)
    seconds, found = [], []
    for question in asked:
        begin = time.perf_counter()
        best = table.nearest(question, K, ef)
        seconds.append(time.perf_counter() - begin)
        found.append({one.id for one in best})
    return Times.of(seconds), found


def _drawer(width: int, seed: int) -> Callable[[int], np.ndarray]:
    """Draws unit vectors [n, width] float32 that lie as CLIP's do: in a narrow cone, in groups (their mean cosine is about
    one half)."""
    rng = np.random.default_rng(seed)
    axis, themes = rng.normal(size=width), rng.normal(size=(THEMES, width))
    axis *= np.sqrt(2 * width) / np.linalg.norm(axis)

    def draw(count: int) -> np.ndarray:
        drawn = axis + themes[rng.integers(0, THEMES, count)] + rng.normal(size=(count, width))
        return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=np.float32)

    return draw
