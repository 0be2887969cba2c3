"""Beyond a size the search is approximate, with a recall that was measured, and exact again where it does not reach it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from serving.search import ann_index
from serving.search.ann_index import load_measurement, probe_vectors, refresh
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import ImageRow, ImageTable, SearchHit
from tests.serving.search.conftest import Opener

ROWS = 400


def vectors(count: int, embedding_dim: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, embedding_dim)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def put(table: ImageTable, found: np.ndarray, name: str) -> None:
    ids = [hashlib.sha256(f"{name} {i}".encode()).hexdigest() for i in range(len(found))]
    table.put([ImageRow(id, 1, {f"/{name}/{i}": 1}, None, vector) for i, (id, vector) in enumerate(zip(ids, found, strict=True))])


@pytest.fixture
def large(opener: Opener) -> ImageIndex:
    """An index of more pictures than it searches exactly."""
    index = opener(exact_search_limit=100)
    put(index.table, vectors(ROWS, index.encoder.embedding_model.embedding_dim, 0), "old")
    return index


def test_the_approximate_search_states_the_recall_that_it_has(large: ImageIndex) -> None:
    probes = probe_vectors(large.encoder)
    assert len(probes) == len(ann_index.probe_texts()) >= 32
    measured = refresh(large.table, probes, 100, 0.95)
    assert measured is not None
    assert measured == load_measurement(large.table)
    assert measured.images == ROWS
    assert measured.ef > 0
    assert min(measured.by_image, measured.by_text) >= 0.95
    shares = []
    for question in vectors(20, large.encoder.embedding_model.embedding_dim, 1):
        true, found = large.table.nearest(question, 10), large.table.nearest(question, 10, measured.ef)
        shares.append(len({one.id for one in true} & {one.id for one in found}) / 10)
        # Scores are those of full precision.
        by_id = {one.id: one.score for one in true}
        assert all(one.score == pytest.approx(by_id.get(one.id, one.score), abs=1e-5) for one in found)
    assert np.mean(shares) >= 0.9
    assert large.state().startswith("approximate search over 400 pictures: recall of the ten best ")


def test_the_graph_is_really_searched(large: ImageIndex) -> None:
    refresh(large.table, probe_vectors(large.encoder), 100, 0.5)
    asked: list[int | None] = []
    nearest = large.table.nearest

    def watched(vector: np.ndarray, k: int, ef: int | None = None) -> list[SearchHit]:
        asked.append(ef)
        return nearest(vector, k, ef)

    large.table.nearest = watched  # type: ignore[method-assign]
    large.search_by_text("a")
    large.settings = replace(large.settings, exact_search_limit=ROWS)
    large.search_by_text("a")
    assert asked == [ann_index.EF_VALUES[0], None]
    plan = large.table.table.search(vectors(1, large.encoder.embedding_model.embedding_dim, 0)[0]).ef(40).limit(3).explain_plan()
    assert "ANN" in plan


def test_what_comes_after_the_graph_is_found_too(large: ImageIndex) -> None:
    refresh(large.table, probe_vectors(large.encoder), 100, 0.95)
    later = vectors(30, large.encoder.embedding_model.embedding_dim, 2)
    put(large.table, later, "new")
    large.table.delete([large.table.nearest(later[1], 1)[0].id])
    (best,) = large.table.nearest(later[0], 1, 40)
    assert str(best.path) == "/new/0"
    assert large.table.nearest(later[1], 1, 40)[0].score < 0.9999
    measured = refresh(large.table, probe_vectors(large.encoder), 100, 0.95)
    assert measured is not None
    assert measured.images == ROWS + 29
    assert large.table.table.index_stats("vector_idx").num_unindexed_rows == 0


def test_where_the_recall_is_not_reached_the_search_stays_exact(large: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = ImageTable.nearest

    def poor(table: ImageTable, vector: np.ndarray, k: int, ef: int | None = None) -> list[SearchHit]:
        found = nearest(table, vector, k, ef)
        return found if ef is None else [replace(one, score=one.score - 0.5) for one in found]

    with monkeypatch.context() as patch:
        patch.setattr(ImageTable, "nearest", poor)
        measured = refresh(large.table, probe_vectors(large.encoder), 100, 0.95)
    assert measured is not None
    assert (measured.ef, measured.by_text) == (0, 0.0)
    assert large.state().startswith("exact search over 400 pictures: the approximate one did not reach")
    assert large.search_by_text("a", 10) == large.table.nearest(large.encoder.texts(["a"])[0], 10)


def test_a_small_index_has_no_graph(large: ImageIndex) -> None:
    refresh(large.table, probe_vectors(large.encoder), 100, 0.95)
    assert refresh(large.table, probe_vectors(large.encoder), ROWS, 0.95) is None
    assert load_measurement(large.table) is None
