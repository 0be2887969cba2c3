"""Bring an index up to date with a folder: new and changed pictures are encoded, vanished ones removed, the rest left alone.

Pictures are read in threads and encoded in batches; what is encoded is committed every few seconds, so that a killed run
leaves an index that can be searched and the next run goes on from there.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from answering.batch_inference import find_pictures
from dataset.loading.image_io import PictureError, read_picture_file
from progress import Progress
from serving.search import ann_index
from serving.search.clip_encoder import Encoder
from serving.search.image_index import PictureIndex
from serving.search.lancedb_table import Entry, PictureTable, Row

A = TypeVar("A")
B = TypeVar("B")

COMMIT_PICTURES, COMMIT_SECONDS = 1024, 5.0
"""What is encoded is written at least this often: a commit costs about as much as encoding a few pictures."""


@dataclass(slots=True)
class Indexed:
    """What an indexing run did. added, removed: pictures. same: files that were moved, copied or touched, whose picture was in
    the index already. unchanged: files that were not read again. failed: one line for each file that could not be read.
    search: in words, how the index is searched now."""

    added: int = 0
    removed: int = 0
    same: int = 0
    unchanged: int = 0
    failed: list[str] = field(default_factory=list)
    search: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    """A picture file as it was read. pixels: what the model sees; None where its bytes have a vector already, and where it
    could not be read, which `problem` then says."""

    path: str
    mtime: int
    size: int = 0
    id: str = ""
    pixels: torch.Tensor | None = None
    problem: str = ""


def index_folder(index: PictureIndex, folder: Path) -> Indexed:
    """Bring the index up to date with the picture files in a folder and below it, and with the uploads of an index that another
    model made, which is dropped at the end. Pictures from elsewhere stay as they are.

    Raises UsageError when the folder is missing or has no pictures.
    """
    with index.table.indexing():
        return _index(index, os.path.abspath(folder))  # noqa: PTH100 - Path.resolve would follow links


def _index(index: PictureIndex, root: str) -> Indexed:
    present = dict(_states(find_pictures(Path(root))))
    table, settings = index.table, index.settings
    _take_uploads(index)
    update = _Update(table, index.encoder)
    due = [path for path, state in present.items() if not update.holds(path, *state)]
    update.done.unchanged = len(present) - len(due)

    def read(path: str) -> _File:
        return _read(path, index.encoder, update.known)

    with Progress("indexing", len(due), "pictures") as progress, ThreadPoolExecutor(settings.workers) as pool:
        try:
            for files in _batches(_ahead(pool, read, due, 2 * settings.batch_size), settings.batch_size):
                update.take(files)
                progress.update(len(files))
        finally:
            # What was encoded before an interruption is kept.
            update.commit()
    update.forget_vanished(root, present)
    table.drop_others()
    measured = ann_index.refresh(table, ann_index.probe_vectors(index.encoder), settings.exact_up_to, settings.recall)
    update.done.search = index.state() if measured is None else measured.text()
    return update.done


class _Update:
    """The rows of a table as they stand and as they will be after the next commit."""

    def __init__(self, table: PictureTable, encoder: Encoder):
        self.table, self.encoder, self.done = table, encoder, Indexed()
        self.known = table.entries()
        self.owners = {path: id for id, entry in self.known.items() for path in entry.files}
        self.fresh: dict[str, Row] = {}
        self.touched: set[str] = set()
        self.committed = time.monotonic()

    def holds(self, path: str, size: int, mtime: int) -> bool:
        """True when a row has this file in the state in which it stands on disk."""
        entry = self.known.get(self.owners.get(path, ""))
        return entry is not None and (entry.size, entry.files[path]) == (size, mtime)

    def take(self, files: Sequence[_File]) -> None:
        """Encode what is new among some files, and commit when it is time."""
        files = [self._whole(file) for file in files]
        new = {file.id: file for file in files if file.pixels is not None and file.id not in self.known}
        if new:
            vectors = self.encoder.encode([file.pixels for file in new.values() if file.pixels is not None])
            for file, vector in zip(new.values(), vectors, strict=True):
                self.known[file.id] = Entry(file.size, {}, uploaded=False)
                self.fresh[file.id] = Row(file.id, file.size, {}, None, vector)
        self.done.added += len(new)
        for file in files:
            self._detach(file.path)
            if file.problem:
                self.done.failed.append(file.problem)
                continue
            self.known[file.id].files[file.path] = file.mtime
            self.owners[file.path] = file.id
            self.touched.add(file.id)
            self.done.same += file.id not in new
        if len(self.touched) >= COMMIT_PICTURES or time.monotonic() - self.committed >= COMMIT_SECONDS:
            self.commit()

    def forget_vanished(self, root: str, present: Iterable[str]) -> None:
        """Drop the files below a folder that are no longer there, and the pictures that no file holds any more."""
        below = root.rstrip("/") + "/"
        for path in [path for path in self.owners if path.startswith(below)]:
            if path not in present:
                self._detach(path)
        self.commit()

    def commit(self) -> None:
        """Write what changed: first rows that are new or have other files, then away with those that have none."""
        alive = {id for id in self.touched if self.known[id].files or self.known[id].uploaded}
        with self.table.writing():
            # What is there is read again: the service may have added or removed it in the meantime.
            rows = {**self.fresh, **{row.id: row for row in self.table.rows(sorted(alive))}}
            self.table.put([Row(id, rows[id].size, self.known[id].files, rows[id].upload, rows[id].vector) for id in alive & rows.keys()])
            gone = self.touched - alive
            self.table.delete(sorted(gone))
        for id in gone:
            del self.known[id]
        self.done.removed += len(gone)
        self.fresh, self.touched, self.committed = {}, set(), time.monotonic()

    def _whole(self, file: _File) -> _File:
        """The file, read again where the picture that it held has left the index since."""
        missing = file.id and file.pixels is None and file.id not in self.known
        return _read(file.path, self.encoder, {}) if missing else file

    def _detach(self, path: str) -> None:
        owner = self.owners.pop(path, None)
        if owner is not None:
            del self.known[owner].files[path]
            self.touched.add(owner)


def _states(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Size and time of change in ns of each file by its path; those that vanished since they were listed are left out."""
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            continue
        yield str(path), (state.st_size, state.st_mtime_ns)


def _read(path: str, encoder: Encoder, known: dict[str, Entry]) -> _File:
    file = Path(path)
    mtime = -1
    try:
        # Before the bytes: a file that changes in between is found changed the next time.
        mtime = file.stat().st_mtime_ns
        data = read_picture_file(file)
        picture_id = hashlib.sha256(data).hexdigest()
        pixels = None if picture_id in known else encoder.pixels(data)
    except (PictureError, OSError) as error:
        return _File(path, mtime, problem=f"{path}: {error}")
    return _File(path, mtime, len(data), picture_id, pixels)


def _take_uploads(index: PictureIndex) -> None:
    """Encode anew what was uploaded into an index that another model made: it stands nowhere else."""
    for other in index.table.others():
        for id in other.uploads():
            for row in other.rows([id]):
                if row.upload is not None:
                    index.add(row.upload)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Sequence[A], window: int) -> Iterator[B]:
    """`map` in threads, in order, with at most `window` results waiting: pixels of many pictures would fill the memory."""
    waiting: deque[Future[B]] = deque()
    left = iter(items)
    try:
        while True:
            waiting.extend(pool.submit(function, item) for item in islice(left, window - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _batches(items: Iterable[A], size: int) -> Iterator[list[A]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
