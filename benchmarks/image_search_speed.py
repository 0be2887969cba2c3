"""How fast pictures are found among many, and how many of the true best: vectors that are made up, the search as it is."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UsageError
from progress import Progress
from serving.search.ann_index import RECALL_K, AnnMeasurement, measure_recall
from serving.search.clip_encoder import EmbeddingModel
from serving.search.lancedb_table import ImageRow, ImageTable, open_table

NUM_CLUSTERS = 2000
"""Groups of like pictures that the vectors belong to."""
WRITE_BATCH_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one question each, questions apart."""

    median: float
    p95: float
    slowest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """From seconds of each question."""
        median, p95, slowest = np.percentile(seconds, (50, 95, 100)) * 1000
        return cls(float(median), float(p95), float(slowest))

    def text(self) -> str:
        """For people."""
        return f"median {self.median:.1f} ms, 95 % within {self.p95:.1f} ms, slowest {self.slowest:.1f} ms"


@dataclass(frozen=True, slots=True)
class SearchSpeed:
    """written, built: seconds; exact, approximate: of the ten best of a question; recall: of other questions than those that
    chose how far the graph is searched."""

    write_seconds: float
    build_seconds: float
    exact: Latency
    approximate: Latency | None
    graph: AnnMeasurement
    recall: float


def measure_search(uri: str, vectors: int, embedding_dim: int, num_queries: int, recall: float, seed: int = 0) -> SearchSpeed:
    """Fill an index in the empty folder `place` with `vectors` of `width` numbers and put `questions` to it, both ways.

    Raises UsageError when there are fewer vectors than results.
    """
    if vectors < RECALL_K:
        raise UsageError(f"--vectors {vectors}: at least {RECALL_K} are needed")
    sample_vectors = _vector_sampler(embedding_dim, seed)
    table = open_table(uri, EmbeddingModel("made up", "0" * 16, embedding_dim), create=True)
    begin = time.perf_counter()
    _fill(table, sample_vectors, vectors)
    table.optimize()
    write_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    table.build_ann_index(1)
    build_seconds = time.perf_counter() - begin
    graph = measure_recall(table, sample_vectors(num_queries), recall)
    queries = sample_vectors(num_queries)
    exact, true = _time_queries(table, queries, None)
    if not graph.ef:
        return SearchSpeed(write_seconds, build_seconds, exact, None, graph, 0.0)
    approximate, found = _time_queries(table, queries, graph.ef)
    measured_recall = np.mean([len(one & other) / RECALL_K for one, other in zip(true, found, strict=True)])
    return SearchSpeed(write_seconds, build_seconds, exact, approximate, graph, float(measured_recall))


def _fill(table: ImageTable, sample_vectors: Callable[[int], np.ndarray], count: int) -> None:
    with Progress("writing vectors", count, "vectors") as progress:
        for start in range(0, count, WRITE_BATCH_SIZE):
            part = sample_vectors(min(WRITE_BATCH_SIZE, count - start))
            ids = (hashlib.sha256(str(start + i).encode()).hexdigest() for i in range(len(part)))
            table.put([ImageRow(id, 1, {f"/{id[:12]}.jpg": 0}, None, vector) for id, vector in zip(ids, part, strict=True)])
            progress.update(len(part))


def _time_queries(table: ImageTable, queries: np.ndarray, ef: int | None) -> tuple[Latency, list[set[str]]]:
    # The first question opens files; it is not what a service is asked again and again.
    table.nearest(queries[0], RECALL_K, ef)
    seconds, found = [], []
    for query in queries:
        begin = time.perf_counter()
        best = table.nearest(query, RECALL_K, ef)
        seconds.append(time.perf_counter() - begin)
        found.append({one.id for one in best})
    return Latency.of(seconds), found


def _vector_sampler(embedding_dim: int, seed: int) -> Callable[[int], np.ndarray]:
    """Draws unit vectors [n, width] float32 that lie as CLIP's do: in a narrow cone, in groups (their mean cosine is about
    one half)."""
    rng = np.random.default_rng(seed)
    axis, cluster_centers = rng.normal(size=embedding_dim), rng.normal(size=(NUM_CLUSTERS, embedding_dim))
    axis *= np.sqrt(2 * embedding_dim) / np.linalg.norm(axis)

    def sample_vectors(count: int) -> np.ndarray:
        samples = axis + cluster_centers[rng.integers(0, NUM_CLUSTERS, count)] + rng.normal(size=(count, embedding_dim))
        return np.asarray(samples / np.linalg.norm(samples, axis=1, keepdims=True), dtype=np.float32)

    return sample_vectors
