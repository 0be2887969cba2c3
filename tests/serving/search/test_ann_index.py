"""A large index is searched approximately, with a measured recall, and exactly if the required recall is not reached."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from serving.search import ann_index
from serving.search.ann_index import load_measurement, refresh
from serving.search.clip_encoder import ClipEncoder
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import ImageRow, ImageTable, SearchHit
from tests.serving.search.conftest import Opener

ROWS = 400


def vectors(count: int, embedding_dim: int, seed: int) -> np.ndarray:
    """Random unit vectors [count, embedding_dim]."""
    normal = np.random.default_rng(seed).normal(size=(count, embedding_dim)).astype(np.float32)
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))


def probe_vectors(encoder: ClipEncoder) -> np.ndarray:
    """The queries that the recall is measured with."""
    return encoder.texts(ann_index.probe_texts())


def put(table: ImageTable, rows: np.ndarray, name: str) -> None:
    """Insert vectors as the images /name/0, /name/1, ..."""
    ids = [hashlib.sha256(f"{name} {i}".encode()).hexdigest() for i in range(len(rows))]
    table.put([ImageRow(id, 1, {f"/{name}/{i}": 1}, None, vector) for i, (id, vector) in enumerate(zip(ids, rows, strict=True))])


@pytest.fixture
def large_index(opener: Opener) -> ImageIndex:
    """An index of more images than are searched exactly."""
    index = opener(exact_search_limit=100)
    put(index.table, vectors(ROWS, index.encoder.embedding_model.embedding_dim, 0), "old")
    return index


def test_the_approximate_search_reports_its_recall(large_index: ImageIndex) -> None:
    probes = probe_vectors(large_index.encoder)
    assert len(probes) == len(ann_index.probe_texts()) >= 32
    measured = refresh(large_index.table, probes, 100, 0.95)
    assert measured is not None
    assert measured == load_measurement(large_index.table)
    assert measured.images == ROWS
    assert measured.ef > 0
    assert min(measured.by_image, measured.by_text) >= 0.95
    recalls = []
    for query in vectors(20, large_index.encoder.embedding_model.embedding_dim, 1):
        exact, approximate = large_index.table.nearest(query, 10), large_index.table.nearest(query, 10, measured.ef)
        recalls.append(len({hit.id for hit in exact} & {hit.id for hit in approximate}) / 10)
        # Scores are computed in full precision.
        exact_scores = {hit.id: hit.score for hit in exact}
        assert all(hit.score == pytest.approx(exact_scores.get(hit.id, hit.score), abs=1e-5) for hit in approximate)
    assert np.mean(recalls) >= 0.9
    assert large_index.state().startswith("approximate search over 400 images: recall at 10 is ")


def test_a_large_index_is_searched_with_the_ann_index(large_index: ImageIndex) -> None:
    refresh(large_index.table, probe_vectors(large_index.encoder), 100, 0.5)
    searched_with: list[int | None] = []
    nearest = large_index.table.nearest

    def recording_nearest(vector: np.ndarray, k: int, ef: int | None = None) -> list[SearchHit]:
        searched_with.append(ef)
        return nearest(vector, k, ef)

    large_index.table.nearest = recording_nearest  # type: ignore[method-assign]
    large_index.search_by_text("a")
    large_index.settings = replace(large_index.settings, exact_search_limit=ROWS)
    large_index.search_by_text("a")
    assert searched_with == [ann_index.EF_VALUES[0], None]
    plan = (
        large_index.table.table.search(vectors(1, large_index.encoder.embedding_model.embedding_dim, 0)[0]).ef(40).limit(3).explain_plan()
    )
    assert "ANN" in plan


def test_rows_added_after_the_ann_index_was_built_are_found(large_index: ImageIndex) -> None:
    refresh(large_index.table, probe_vectors(large_index.encoder), 100, 0.95)
    added = vectors(30, large_index.encoder.embedding_model.embedding_dim, 2)
    put(large_index.table, added, "new")
    large_index.table.delete([large_index.table.nearest(added[1], 1)[0].id])
    (best,) = large_index.table.nearest(added[0], 1, 40)
    assert str(best.path) == "/new/0"
    assert large_index.table.nearest(added[1], 1, 40)[0].score < 0.9999
    measured = refresh(large_index.table, probe_vectors(large_index.encoder), 100, 0.95)
    assert measured is not None
    assert measured.images == ROWS + 29
    assert large_index.table.table.index_stats("vector_idx").num_unindexed_rows == 0


def test_the_search_stays_exact_if_the_recall_is_not_reached(large_index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = ImageTable.nearest

    def inaccurate(table: ImageTable, vector: np.ndarray, k: int, ef: int | None = None) -> list[SearchHit]:
        hits = nearest(table, vector, k, ef)
        return hits if ef is None else [replace(hit, score=hit.score - 0.5) for hit in hits]

    with monkeypatch.context() as patch:
        patch.setattr(ImageTable, "nearest", inaccurate)
        measured = refresh(large_index.table, probe_vectors(large_index.encoder), 100, 0.95)
    assert measured is not None
    assert (measured.ef, measured.by_text) == (0, 0.0)
    assert large_index.state().startswith("exact search over 400 images: the approximate search did not reach")
    assert large_index.search_by_text("a", 10) == large_index.table.nearest(large_index.encoder.texts(["a"])[0], 10)


def test_a_small_index_has_no_ann_index(large_index: ImageIndex) -> None:
    refresh(large_index.table, probe_vectors(large_index.encoder), 100, 0.95)
    assert refresh(large_index.table, probe_vectors(large_index.encoder), ROWS, 0.95) is None
    assert load_measurement(large_index.table) is None
