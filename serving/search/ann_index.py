"""Approximate search over many pictures: a graph (HNSW, Malkov and Yashunin 2018) whose recall is measured before it is used.

Vectors in the graph are rounded to 8 bits; the best that it finds are compared again in full precision, so that scores are exact.
Rows that came after the graph was built are compared one by one, until the next time that it takes them in.
"""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from serving.search.clip_encoder import Encoder
from serving.search.lancedb_table import PictureTable

K = 10
"""Recall is measured at this many results."""
PICTURES = 48
"""Stored pictures that recall is measured with."""
WIDTHS = (40, 80, 160, 320, 640)
"""How far the graph may be searched (`ef`); the first that reaches the recall is taken."""
PARTITION = 1_000_000
"""Pictures in one graph; beyond it the graph is divided."""

_TABLE = "graphs"


@dataclass(frozen=True, slots=True)
class Graph:
    """How the approximate search was measured: with so many pictures in it, at `ef`, it found these shares of the true ten
    best for questions by picture and by text. ef 0: the wanted recall was not reached, so the search stays exact."""

    table: str
    pictures: int
    ef: int
    by_picture: float
    by_text: float

    def text(self) -> str:
        """One line for people."""
        recall = f"recall of the ten best {self.by_picture:.3f} by picture, {self.by_text:.3f} by text"
        if self.ef:
            return f"approximate search over {self.pictures:,} pictures: {recall} (ef {self.ef})"
        return f"exact search over {self.pictures:,} pictures: the approximate one did not reach the recall asked for ({recall})"


def stated(table: PictureTable) -> Graph | None:
    """What was measured last for a table; None where it has no graph."""
    if _TABLE not in table.connection.list_tables().tables:
        return None
    rows = table.connection.open_table(_TABLE).search().to_arrow().to_pylist()
    return next((Graph(**row) for row in rows if row["table"] == table.name), None)


def refresh(table: PictureTable, texts: np.ndarray, exact_up_to: int, recall: float) -> Graph | None:
    """Build the graph or bring it up to date, and measure it; with at most `exact_up_to` pictures, do without.

    texts: vectors [n, width] of questions. recall: least share of the ten best. Returns what was measured.
    """
    table.tidy()
    if len(table) <= exact_up_to:
        _state(table, None)
        return None
    table.build_graph(1 + len(table) // PARTITION)
    graph = measure(table, texts, recall)
    _state(table, graph)
    return graph


def measure(table: PictureTable, texts: np.ndarray, recall: float) -> Graph:
    """Recall at the first width that reaches `recall` for pictures and for texts alike; at the last one where none does."""
    pictures = _some_vectors(table)
    true = [table.nearest(vector, K) for vector in pictures], [table.nearest(vector, K) for vector in texts]
    for ef in WIDTHS:
        by_picture = _recall(table, pictures, true[0], ef)
        by_text = _recall(table, texts, true[1], ef)
        if min(by_picture, by_text) >= recall:
            return Graph(table.name, len(table), ef, by_picture, by_text)
    return Graph(table.name, len(table), 0, by_picture, by_text)


@functools.cache
def probe_texts() -> tuple[str, ...]:
    """English and Chinese texts to measure with."""
    texts = yaml.safe_load((Path(__file__).parent / "recall_queries.yaml").read_text(encoding="utf-8"))
    return tuple(texts["en"] + texts["zh"])


def probe_vectors(encoder: Encoder) -> np.ndarray:
    """Vectors [n, width] of `probe_texts`."""
    return encoder.texts(probe_texts())


def _recall(table: PictureTable, vectors: Sequence[np.ndarray] | np.ndarray, true: Sequence[Sequence[object]], ef: int) -> float:
    shares = []
    for vector, best in zip(vectors, true, strict=True):
        # What is as near as the last of the true best is as good, whichever of several equal pictures it is.
        worst = best[-1].score - 1e-6  # type: ignore[attr-defined]
        shares.append(sum(found.score >= worst for found in table.nearest(vector, K, ef)) / len(best))
    return float(np.mean(shares))


def _some_vectors(table: PictureTable) -> list[np.ndarray]:
    """Stored vectors, moved a little, so that each is not simply its own nearest."""
    ids = sorted(table.entries())
    rng = np.random.default_rng(0)
    rows = table.rows([ids[i] for i in rng.choice(len(ids), min(PICTURES, len(ids)), replace=False)])
    moved = [row.vector + 0.3 * rng.normal(size=row.vector.shape).astype(np.float32) / np.sqrt(row.vector.size) for row in rows]
    return [vector / np.linalg.norm(vector) for vector in moved]


def _state(table: PictureTable, graph: Graph | None) -> None:
    if graph is not None:
        table.connection.create_table(_TABLE, [asdict(graph)], mode="overwrite")
    elif _TABLE in table.connection.list_tables().tables:
        table.connection.drop_table(_TABLE)
