"""Approximate search over many pictures: a graph (HNSW, Malkov and Yashunin 2018) whose recall is measured before it is used.

Vectors in the graph are rounded to 8 bits; the best that it finds are compared again in full precision, so that scores are exact.
Rows that came after the graph was built are compared one by one, until the next time that it takes them in.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.search.clip_encoder import ClipEncoder
from serving.search.lancedb_table import ImageTable

RECALL_K = 10
"""Recall is measured at this many results."""
NUM_PROBE_IMAGES = 48
"""Stored pictures that recall is measured with."""
EF_VALUES = (40, 80, 160, 320, 640)
"""How far the graph may be searched (`ef`); the first that reaches the recall is taken."""
MAX_ROWS_PER_PARTITION = 1_000_000
"""Pictures in one graph; beyond it the graph is divided."""

_MEASUREMENTS_TABLE = "graphs"


@dataclass(frozen=True, slots=True)
class AnnMeasurement:
    """How the approximate search was measured: with so many pictures in it, at `ef`, it found these shares of the true ten
    best for questions by picture and by text. ef 0: the wanted recall was not reached, so the search stays exact."""

    table: str
    images: int
    ef: int
    by_image: float
    by_text: float

    def text(self) -> str:
        """One line for people."""
        recall = f"recall of the ten best {self.by_image:.3f} by picture, {self.by_text:.3f} by text"
        if self.ef:
            return f"approximate search over {self.images:,} pictures: {recall} (ef {self.ef})"
        return f"exact search over {self.images:,} pictures: the approximate one did not reach the recall asked for ({recall})"


def load_measurement(table: ImageTable) -> AnnMeasurement | None:
    """What was measured last for a table; None where it has no graph."""
    if _MEASUREMENTS_TABLE not in table.connection.list_tables().tables:
        return None
    rows = table.connection.open_table(_MEASUREMENTS_TABLE).search().to_arrow().to_pylist()
    return next((AnnMeasurement(**_with_new_keys(row)) for row in rows if row["table"] == table.name), None)


def _with_new_keys(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an index that was built under schema version 1."""
    return {{"pictures": "images", "by_picture": "by_image"}.get(key, key): value for key, value in row.items()}


def refresh(table: ImageTable, texts: np.ndarray, exact_search_limit: int, recall: float) -> AnnMeasurement | None:
    """Build the graph or bring it up to date, and measure it; with at most `exact_up_to` pictures, do without.

    texts: vectors [n, width] of questions. recall: least share of the ten best. Returns what was measured.
    """
    table.optimize()
    if len(table) <= exact_search_limit:
        _save_measurement(table, None)
        return None
    table.build_ann_index(1 + len(table) // MAX_ROWS_PER_PARTITION)
    graph = measure_recall(table, texts, recall)
    _save_measurement(table, graph)
    return graph


def measure_recall(table: ImageTable, texts: np.ndarray, recall: float) -> AnnMeasurement:
    """Recall at the first width that reaches `recall` for pictures and for texts alike; at the last one where none does."""
    images = _probe_image_vectors(table)
    exact_results = [table.nearest(vector, RECALL_K) for vector in images], [table.nearest(vector, RECALL_K) for vector in texts]
    for ef in EF_VALUES:
        by_image = _recall(table, images, exact_results[0], ef)
        by_text = _recall(table, texts, exact_results[1], ef)
        if min(by_image, by_text) >= recall:
            return AnnMeasurement(table.name, len(table), ef, by_image, by_text)
    return AnnMeasurement(table.name, len(table), 0, by_image, by_text)


@functools.cache
def probe_texts() -> tuple[str, ...]:
    """English and Chinese texts to measure with."""
    texts = yaml.safe_load((Path(__file__).parent / "recall_queries.yaml").read_text(encoding="utf-8"))
    return tuple(texts["en"] + texts["zh"])


def probe_vectors(encoder: ClipEncoder) -> np.ndarray:
    """Vectors [n, width] of `probe_texts`."""
    return encoder.texts(probe_texts())


def _recall(table: ImageTable, vectors: Sequence[np.ndarray] | np.ndarray, exact_results: Sequence[Sequence[object]], ef: int) -> float:
    recalls = []
    for vector, best in zip(vectors, exact_results, strict=True):
        # What is as near as the last of the true best is as good, whichever of several equal pictures it is.
        worst = best[-1].score - 1e-6  # type: ignore[attr-defined]
        recalls.append(sum(found.score >= worst for found in table.nearest(vector, RECALL_K, ef)) / len(best))
    return float(np.mean(recalls))


def _probe_image_vectors(table: ImageTable) -> list[np.ndarray]:
    """Stored vectors, moved a little, so that each is not simply its own nearest."""
    ids = sorted(table.entries())
    rng = np.random.default_rng(0)
    rows = table.rows([ids[i] for i in rng.choice(len(ids), min(NUM_PROBE_IMAGES, len(ids)), replace=False)])
    perturbed = [row.vector + 0.3 * rng.normal(size=row.vector.shape).astype(np.float32) / np.sqrt(row.vector.size) for row in rows]
    return [vector / np.linalg.norm(vector) for vector in perturbed]


def _save_measurement(table: ImageTable, graph: AnnMeasurement | None) -> None:
    if graph is not None:
        table.connection.create_table(_MEASUREMENTS_TABLE, [asdict(graph)], mode="overwrite")
    elif _MEASUREMENTS_TABLE in table.connection.list_tables().tables:
        table.connection.drop_table(_MEASUREMENTS_TABLE)
