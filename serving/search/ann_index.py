"""Approximate nearest-neighbour (ANN) search with HNSW (Malkov and Yashunin 2018), whose recall is measured before it is used.

The index stores vectors quantised to 8 bits; its results are re-scored in full precision, so that scores are exact.
Rows added after the index was built are searched exhaustively until the next `refresh` adds them to it.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from serving.search.lancedb_table import ImageTable, SearchHit

RECALL_K = 10
"""Recall is measured at this k."""
NUM_PROBE_IMAGES = 48
"""Number of stored images used as queries to measure the recall."""
EF_VALUES = (40, 80, 160, 320, 640)
"""Search widths of HNSW (`ef`) to try; the first that reaches the recall is used."""
MAX_ROWS_PER_PARTITION = 1_000_000
"""Largest number of images in one HNSW graph; a larger index is partitioned."""

_MEASUREMENTS_TABLE = "graphs"
"""Table of the measurements in the database."""


@dataclass(frozen=True, slots=True)
class AnnMeasurement:
    """The measured recall of the approximate search.

    Args:
        table: name of the table.
        images: number of images when it was measured.
        ef: search width; 0: no width reached the required recall, so the search stays exact.
        by_image, by_text: recall at 10 of searches by an image and by a text, 0..1.
    """

    table: str
    images: int
    ef: int
    by_image: float
    by_text: float

    def text(self) -> str:
        """The measurement in one line."""
        recall = f"recall at 10 is {self.by_image:.3f} by image, {self.by_text:.3f} by text"
        if self.ef:
            return f"approximate search over {self.images:,} images: {recall} (ef {self.ef})"
        return f"exact search over {self.images:,} images: the approximate search did not reach the required recall ({recall})"


def load_measurement(table: ImageTable) -> AnnMeasurement | None:
    """The last measurement for a table; None if it has no ANN index."""
    if _MEASUREMENTS_TABLE not in table.connection.list_tables().tables:
        return None
    rows = table.connection.open_table(_MEASUREMENTS_TABLE).search().to_arrow().to_pylist()
    # Schema version 1 had other names.
    renamed = {"pictures": "images", "by_picture": "by_image"}
    own = (AnnMeasurement(**{renamed.get(key, key): value for key, value in row.items()}) for row in rows if row["table"] == table.name)
    return next(own, None)


def refresh(table: ImageTable, texts: np.ndarray, exact_search_limit: int, recall: float) -> AnnMeasurement | None:
    """Build or update the ANN index and measure its recall.

    Args:
        table: the table to index.
        texts: text vectors used as queries [n, embedding_dim].
        exact_search_limit: largest number of images that are searched exactly, without an ANN index.
        recall: required recall at 10.

    Returns:
        The measurement; None if the search is exact.
    """
    table.optimize()
    if len(table) <= exact_search_limit:
        if _MEASUREMENTS_TABLE in table.connection.list_tables().tables:
            table.connection.drop_table(_MEASUREMENTS_TABLE)
        return None
    table.build_ann_index(1 + len(table) // MAX_ROWS_PER_PARTITION)
    measurement = measure_recall(table, texts, recall)
    table.connection.create_table(_MEASUREMENTS_TABLE, [asdict(measurement)], mode="overwrite")
    return measurement


def measure_recall(table: ImageTable, texts: np.ndarray, recall: float) -> AnnMeasurement:
    """Measure at the first `ef` that reaches `recall` for images and for texts; if none does, at the last one, reported as ef 0."""
    images = _probe_image_vectors(table)
    exact_results = [[table.nearest(vector, RECALL_K) for vector in vectors] for vectors in (images, texts)]
    for ef in EF_VALUES:
        by_image = _recall(table, images, exact_results[0], ef)
        by_text = _recall(table, texts, exact_results[1], ef)
        if min(by_image, by_text) >= recall:
            return AnnMeasurement(table.name, len(table), ef, by_image, by_text)
    return AnnMeasurement(table.name, len(table), 0, by_image, by_text)


@functools.cache
def probe_texts() -> tuple[str, ...]:
    """English and Chinese queries to measure the recall with."""
    texts = yaml.safe_load((Path(__file__).parent / "recall_queries.yaml").read_text(encoding="utf-8"))
    return tuple(texts["en"] + texts["zh"])


def _recall(table: ImageTable, vectors: Sequence[np.ndarray] | np.ndarray, exact_results: Sequence[Sequence[SearchHit]], ef: int) -> float:
    recalls = []
    for vector, best in zip(vectors, exact_results, strict=True):
        # A hit counts if its score reaches that of the last exact result: equal images are interchangeable.
        worst = best[-1].score - 1e-6
        recalls.append(sum(hit.score >= worst for hit in table.nearest(vector, RECALL_K, ef)) / len(best))
    return float(np.mean(recalls))


def _probe_image_vectors(table: ImageTable) -> list[np.ndarray]:
    """Stored vectors with added noise, so that the nearest neighbour of a query is not simply itself."""
    ids = sorted(table.entries())
    rng = np.random.default_rng(0)
    rows = table.rows([ids[i] for i in rng.choice(len(ids), min(NUM_PROBE_IMAGES, len(ids)), replace=False)])
    perturbed = [row.vector + 0.3 * rng.normal(size=row.vector.shape).astype(np.float32) / np.sqrt(row.vector.size) for row in rows]
    return [vector / np.linalg.norm(vector) for vector in perturbed]
