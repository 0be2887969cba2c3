"""The vector database: one LanceDB table for each CLIP model, one row for each image.

A table is named after the fingerprint of its model, so that vectors of two models are never in one table. Every change is one
commit; readers see the latest commit, also while another process writes and after a writer was killed.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa

from atomic_io import naming_full_disk
from errors import TesseraError, UsageError, command
from serving.search.clip_encoder import EmbeddingModel

# Set before the import, which reads it: LanceDB's warnings concern its internals.
os.environ.setdefault("LANCEDB_LOG", "error")

import lancedb
from lancedb.index import HnswSq
from lancedb.table import Table

_PREFIX = "pictures_"
"""Prefix of the tables of images in the database."""
_OLD_VERSIONS = timedelta(hours=1)
"""How long replaced versions are kept for processes that still read them."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image.

    Args:
        id: SHA-256 of its bytes.
        size: number of bytes.
        files: modification time in ns of each file with these bytes, by path.
        upload: the bytes, if the image was uploaded.
        vector: unit vector [embedding_dim].
    """

    id: str
    size: int
    files: dict[str, int]
    upload: bytes | None
    vector: np.ndarray


@dataclass(frozen=True, slots=True)
class Entry:
    """A row without its vector and bytes. uploaded: whether the index stores the bytes."""

    size: int
    files: dict[str, int]
    uploaded: bool


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A search result. path: None if the image was uploaded and the index stores its bytes; score: cosine similarity, -1..1."""

    id: str
    path: Path | None
    size: int
    score: float


class ImageTable:
    """The table of one CLIP model. Thread-safe."""

    def __init__(self, uri: str, table: Table, connection: Any):
        self.uri, self.table, self.connection, self.name = uri, table, connection, str(table.name)
        self._thread_lock = threading.RLock()
        self._file_lock = None if _is_remote(uri) else filelock.FileLock(Path(uri) / "write.lock")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock out other writers, so that the rows a change is based on do not change before it is written. On object storage there
        is no lock between processes."""
        with self._thread_lock:
            if self._file_lock is None:
                yield
            else:
                with self._file_lock, naming_full_disk(Path(self.uri)):
                    yield

    @contextmanager
    def indexing(self) -> Iterator[None]:
        """Lock out other indexing runs. Raises TesseraError if one is running. On object storage there is no lock."""
        try:
            with nullcontext() if self._file_lock is None else filelock.FileLock(Path(self.uri) / "index.lock", blocking=False):
                yield
        except filelock.Timeout as error:
            raise TesseraError(f"{self.uri}: another process is indexing; wait until it has finished") from error

    def __len__(self) -> int:
        with self._readable_errors():
            return int(self.table.count_rows())

    def entries(self) -> dict[str, Entry]:
        """All rows by id."""
        with self._readable_errors():
            rows = self.table.search().select(["id", "size", "files", "uploaded"]).to_arrow().to_pylist()
        return {row["id"]: Entry(row["size"], _files(row), row["uploaded"]) for row in rows}

    def rows(self, ids: Sequence[str]) -> list[ImageRow]:
        """The rows with some ids; missing ids are skipped."""
        with self._readable_errors():
            rows = self.table.search().where(_id_filter(ids)).to_arrow().to_pylist() if ids else []
        return [ImageRow(row["id"], row["size"], _files(row), row["upload"], np.array(row["vector"], np.float32)) for row in rows]

    def put(self, rows: Sequence[ImageRow]) -> None:
        """Insert rows, or replace rows of the same id, in one commit."""
        if rows:
            with self._readable_errors():
                merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(_to_arrow(rows, self.table.schema))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove rows in one commit; missing ids are skipped."""
        if ids:
            with self._readable_errors():
                self.table.delete(_id_filter(ids))

    def nearest(self, vector: np.ndarray, k: int, ef: int | None = None) -> list[SearchHit]:
        """The k rows nearest to a vector [embedding_dim], best first. ef: search width of the ANN index; None: exact search."""
        query = self.table.search(vector, vector_column_name="vector").distance_type("cosine").limit(k)
        # Twice as many rows as requested are re-scored with their full vectors instead of their quantised ones.
        query = query.bypass_vector_index() if ef is None else query.ef(max(ef, 2 * k)).refine_factor(2)
        with self._readable_errors():
            rows = query.select(["id", "path", "size", "_distance"]).to_arrow().to_pylist()
        return [SearchHit(row["id"], Path(row["path"]) if row["path"] else None, row["size"], 1 - row["_distance"]) for row in rows]

    def build_ann_index(self, partitions: int) -> None:
        """Build the ANN index (HNSW) with a number of partitions, if there is none yet."""
        with self._readable_errors():
            if not self.table.list_indices():
                self.table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=partitions))

    def optimize(self) -> None:
        """Compact the fragments of many commits, add new rows to the ANN index, and delete old versions."""
        with self._readable_errors():
            self.table.optimize(cleanup_older_than=_OLD_VERSIONS)

    def other_tables(self) -> list["ImageTable"]:
        """The tables of other models, left over after a change of the model."""
        names = [name for name in _tables(self.connection) if name != self.name]
        return [ImageTable(self.uri, self.connection.open_table(name), self.connection) for name in names]

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """Turn errors of LanceDB into a TesseraError with a message of one line."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            # If the storage does not answer, the error itself says more.
            with suppress(RuntimeError, ValueError, OSError):
                if self.name not in _tables(self.connection):
                    raise TesseraError(f"{self.uri}: the index was rebuilt with another CLIP model; open it again") from error
            raise TesseraError(f"{self.uri}: {' '.join(str(error).split())[:300]}") from error


def open_table(
    uri: str, embedding_model: EmbeddingModel, *, create: bool = False, reindex: bool = False, storage: dict[str, str] | None = None
) -> ImageTable:
    """Open the table of a model.

    Args:
        uri: folder of the database, or its URI on object storage.
        embedding_model: the model of the table.
        create: create the table if the database is empty.
        reindex: create the table also if the database has a table of another model.
        storage: LanceDB's options of the object storage.

    Raises:
        UsageError: the table is missing and is not to be created, or the database cannot be opened.
    """
    if not _is_remote(uri):
        if not create and not Path(uri).is_dir():
            raise UsageError(f"search.index: {uri} does not exist; `{command('tools/clip.py', 'index')}` creates it")
        Path(uri).mkdir(parents=True, exist_ok=True)
    try:
        with naming_full_disk(Path(uri)):
            # Interval 0: an open table always reads the latest commit of other processes.
            connection = lancedb.connect(uri, read_consistency_interval=timedelta(0), storage_options=storage)
            return ImageTable(uri, _table(connection, uri, embedding_model, create, reindex), connection)
    except (RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"search.index: {uri} cannot be opened: {' '.join(str(error).split())[:300]}") from error


def _table(connection: Any, uri: str, embedding_model: EmbeddingModel, create: bool, reindex: bool) -> Table:
    names, name = _tables(connection), _PREFIX + embedding_model.fingerprint
    if name in names:
        return connection.open_table(name)
    if names and not reindex:
        other = (connection.open_table(names[0]).schema.metadata or {}).get(b"clip", b"another model").decode()
        raise UsageError(
            f"search.index: {uri} was built with another CLIP model ({other}, {names[0].removeprefix(_PREFIX)}) than "
            f"{embedding_model.name} ({embedding_model.fingerprint}), and their vectors cannot be compared; "
            f"`{command('tools/clip.py', 'index', '--reindex')}` rebuilds it"
        )
    if not (create or reindex):
        raise UsageError(f"search.index: {uri} has no index; `{command('tools/clip.py', 'index')}` creates it")
    return connection.create_table(name, schema=_schema(embedding_model))


def _tables(connection: Any) -> list[str]:
    return [name for name in connection.list_tables().tables if name.startswith(_PREFIX)]


def _schema(embedding_model: EmbeddingModel) -> pa.Schema:
    columns = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("vector", pa.list_(pa.float32(), embedding_model.embedding_dim)),
        ("time", pa.timestamp("us", "UTC")),
        ("files", pa.list_(pa.struct([("path", pa.string()), ("mtime", pa.int64())]))),
        ("uploaded", pa.bool_()),
        ("upload", pa.large_binary()),
    ]
    return pa.schema(columns, metadata={"clip": embedding_model.name})


def _to_arrow(rows: Sequence[ImageRow], schema: pa.Schema) -> pa.Table:
    vectors = pa.array(np.concatenate([row.vector for row in rows]).astype(np.float32))
    columns: dict[str, Any] = {
        "id": [row.id for row in rows],
        # Which of several identical files is shown must not depend on the order in which they were read.
        "path": [min(row.files, default=None) for row in rows],
        "size": [row.size for row in rows],
        "vector": pa.FixedSizeListArray.from_arrays(vectors, len(rows[0].vector)),
        "time": [datetime.now(UTC)] * len(rows),
        "files": [[{"path": path, "mtime": mtime} for path, mtime in sorted(row.files.items())] for row in rows],
        "uploaded": [row.upload is not None for row in rows],
        "upload": [row.upload for row in rows],
    }
    return pa.table(columns, schema=schema)


def _files(row: dict[str, Any]) -> dict[str, int]:
    return {file["path"]: file["mtime"] for file in row["files"]}


def _id_filter(ids: Iterable[str]) -> str:
    """An SQL condition. Ids may come from clients, so only those of 64 hexadecimal digits are included."""
    safe_ids = [id for id in ids if len(id) == 64 and set(id) <= set("0123456789abcdef")]
    return f"id IN ({', '.join(repr(id) for id in safe_ids)})" if safe_ids else "false"


def _is_remote(uri: str) -> bool:
    return "://" in uri
