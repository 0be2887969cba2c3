"""Latency and recall of the image search index, on synthetic embeddings. Shapes: N vectors, D embedding dimension."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from errors import UsageError
from progress import Progress
from serving.search.ann_index import RECALL_K, AnnMeasurement, measure_recall
from serving.search.clip_encoder import EmbeddingModel
from serving.search.lancedb_table import ImageRow, ImageTable, open_table

NUM_CLUSTERS = 2000
"""Number of clusters of similar images that the vectors are sampled from."""
WRITE_BATCH_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of single queries, in milliseconds."""

    median: float
    p95: float
    slowest: float

    def __str__(self) -> str:
        return f"median {self.median:.1f} ms, 95 % within {self.p95:.1f} ms, slowest {self.slowest:.1f} ms"


@dataclass(frozen=True, slots=True)
class SearchSpeed:
    """Measurements of an index.

    Args:
        write_seconds: time to write all vectors.
        build_seconds: time to build the graph (approximate index).
        exact: latency of exact search for the ten nearest vectors.
        approximate: latency of graph search; None if the graph does not reach the recall.
        graph: measurement that chose the search depth (`ef`).
        recall: recall of graph search, on other queries than those that chose `ef`.
    """

    write_seconds: float
    build_seconds: float
    exact: Latency
    approximate: Latency | None
    graph: AnnMeasurement
    recall: float


def measure_search(uri: str, vectors: int, embedding_dim: int, num_queries: int, recall: float) -> SearchSpeed:
    """Fill an index and run exact and approximate queries on it.

    Args:
        uri: empty folder of the index.
        vectors: number of vectors.
        embedding_dim: dimension of a vector.
        num_queries: number of queries of each kind.
        recall: least recall of approximate search.

    Raises:
        UsageError: there are fewer vectors than results of a query.
    """
    if vectors < RECALL_K:
        raise UsageError(f"--vectors {vectors}: expected at least {RECALL_K}")
    sample_vectors = _vector_sampler(embedding_dim)
    table = open_table(uri, EmbeddingModel("made up", "0" * 16, embedding_dim), create=True)
    begin = time.perf_counter()
    _fill(table, sample_vectors, vectors)
    table.optimize()
    write_seconds, begin = time.perf_counter() - begin, time.perf_counter()
    table.build_ann_index(1)
    build_seconds = time.perf_counter() - begin
    graph = measure_recall(table, sample_vectors(num_queries), recall)
    queries = sample_vectors(num_queries)
    exact, exact_ids = _time_queries(table, queries, None)
    if not graph.ef:
        return SearchSpeed(write_seconds, build_seconds, exact, None, graph, 0.0)
    approximate, approximate_ids = _time_queries(table, queries, graph.ef)
    measured_recall = float(np.mean([len(a & b) / RECALL_K for a, b in zip(exact_ids, approximate_ids, strict=True)]))
    return SearchSpeed(write_seconds, build_seconds, exact, approximate, graph, measured_recall)


def _fill(table: ImageTable, sample_vectors: Callable[[int], np.ndarray], count: int) -> None:
    with Progress("writing vectors", count, "vectors") as progress:
        for start in range(0, count, WRITE_BATCH_SIZE):
            batch = sample_vectors(min(WRITE_BATCH_SIZE, count - start))
            ids = (hashlib.sha256(str(start + i).encode()).hexdigest() for i in range(len(batch)))
            table.put([ImageRow(id, 1, {f"/{id[:12]}.jpg": 0}, None, vector) for id, vector in zip(ids, batch, strict=True)])
            progress.update(len(batch))


def _time_queries(table: ImageTable, queries: np.ndarray, ef: int | None) -> tuple[Latency, list[set[str]]]:
    # The first query opens files and is not counted.
    table.nearest(queries[0], RECALL_K, ef)
    seconds, nearest_ids = [], []
    for query in queries:
        begin = time.perf_counter()
        best = table.nearest(query, RECALL_K, ef)
        seconds.append(time.perf_counter() - begin)
        nearest_ids.append({row.id for row in best})
    return Latency(*(np.percentile(seconds, (50, 95, 100)) * 1000).tolist()), nearest_ids


def _vector_sampler(embedding_dim: int) -> Callable[[int], np.ndarray]:
    """Samples unit vectors [N, D] float32 with the geometry of CLIP embeddings: clusters in a narrow cone, mean cosine about 0.5."""
    rng = np.random.default_rng(0)
    axis, cluster_centers = rng.normal(size=embedding_dim), rng.normal(size=(NUM_CLUSTERS, embedding_dim))
    axis *= np.sqrt(2 * embedding_dim) / np.linalg.norm(axis)

    def sample_vectors(count: int) -> np.ndarray:
        samples = axis + cluster_centers[rng.integers(0, NUM_CLUSTERS, count)] + rng.normal(size=(count, embedding_dim))
        return np.asarray(samples / np.linalg.norm(samples, axis=1, keepdims=True), dtype=np.float32)

    return sample_vectors
