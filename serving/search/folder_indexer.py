"""Updates an index from a folder: encodes new and changed images, removes deleted ones and skips the rest.

Images are read in threads, a batch ahead of the one that is encoded. Rows are committed every few seconds, so that a killed run
leaves a searchable index and the next run resumes from it.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from answering.batch_inference import FailedImage, find_images
from dataset.loading.image_io import ImageError, printable_path, read_image_file
from progress import Progress
from serving.search import ann_index
from serving.search.clip_encoder import ClipEncoder
from serving.search.image_index import ImageIndex
from serving.search.lancedb_table import Entry, ImageRow, ImageTable

COMMIT_IMAGES, COMMIT_SECONDS = 1024, 5.0
"""Rows are committed after this many images or seconds: a commit costs about as much as encoding a few images."""


@dataclass(slots=True)
class IndexingResult:
    """The result of an indexing run.

    Args:
        added, removed: numbers of images.
        already_indexed: files that were moved, copied or touched, whose image was in the index already.
        unchanged: files that were not read again.
        failed: the files that could not be read.
        search: how the index is searched now, as text.
    """

    added: int = 0
    removed: int = 0
    already_indexed: int = 0
    unchanged: int = 0
    failed: list[FailedImage] = field(default_factory=list)
    search: str = ""


@dataclass(frozen=True, slots=True)
class _ReadFile:
    """An image file that was read.

    Args:
        path: absolute path.
        mtime: modification time in ns.
        size: number of bytes.
        id: SHA-256 of the bytes.
        pixels: preprocessed pixels; None if the image has a vector already or could not be read.
        problem: why it could not be read.
    """

    path: str
    mtime: int
    size: int = 0
    id: str = ""
    pixels: torch.Tensor | None = None
    problem: str = ""


def index_folder(index: ImageIndex, folder: Path) -> IndexingResult:
    """Update the index from the image files in a folder and its subfolders. Images of other folders are not changed.

    Tables of other CLIP models are dropped at the end, after the images uploaded to them were encoded with this one.
    Raises UsageError if the folder is missing or has no images.
    """
    with index.table.indexing():
        return _index(index, os.path.abspath(folder))  # noqa: PTH100 - Path.resolve would follow links


def _index(index: ImageIndex, root: str) -> IndexingResult:
    current_files = dict(_file_stats(find_images(Path(root))))
    table, settings = index.table, index.settings
    _reencode_uploads(index)
    update = _IndexUpdate(table, index.encoder)
    stale_paths = [path for path, stat in current_files.items() if not update.is_up_to_date(path, *stat)]
    update.result.unchanged = len(current_files) - len(stale_paths)
    with Progress("indexing", len(stale_paths), "images") as progress, ThreadPoolExecutor(settings.workers) as pool:
        reading: list[Future[_ReadFile]] = []
        try:
            # At most two batches are in memory: one is read while the one before is encoded, so the last step reads none.
            for start in range(0, len(stale_paths) + settings.batch_size, settings.batch_size):
                paths = stale_paths[start : start + settings.batch_size]
                following = [pool.submit(_read, path, index.encoder, update.entries_by_id) for path in paths]
                update.add_files([file.result() for file in reading])
                progress.update(len(reading))
                reading = following
        finally:
            # After an interruption the encoded images are still committed.
            pool.shutdown(wait=False, cancel_futures=True)
            update.commit()
    update.remove_vanished(root, current_files)
    for other in table.other_tables():
        table.connection.drop_table(other.name)
    probes = index.encoder.texts(ann_index.probe_texts())
    measurement = ann_index.refresh(table, probes, settings.exact_search_limit, settings.recall)
    update.result.search = index.state() if measurement is None else measurement.text()
    return update.result


class _IndexUpdate:
    """The rows of a table and the changes that the next commit will write."""

    def __init__(self, table: ImageTable, encoder: ClipEncoder):
        self.table, self.encoder, self.result = table, encoder, IndexingResult()
        self.entries_by_id = table.entries()
        self.id_by_path = {path: id for id, entry in self.entries_by_id.items() for path in entry.files}
        self.new_rows: dict[str, ImageRow] = {}
        self.changed_ids: set[str] = set()
        self.last_commit = time.monotonic()

    def is_up_to_date(self, path: str, size: int, mtime: int) -> bool:
        """Whether the index has this file with this size and modification time."""
        entry = self.entries_by_id.get(self.id_by_path.get(path, ""))
        return entry is not None and (entry.size, entry.files[path]) == (size, mtime)

    def add_files(self, files: Sequence[_ReadFile]) -> None:
        """Encode the new images of some files, and commit if a commit is due."""
        files = [self._reread_if_removed(file) for file in files]
        new = {file.id: file for file in files if file.pixels is not None and file.id not in self.entries_by_id}
        if new:
            vectors = self.encoder.encode([file.pixels for file in new.values() if file.pixels is not None])
            for file, vector in zip(new.values(), vectors, strict=True):
                self.entries_by_id[file.id] = Entry(file.size, {}, uploaded=False)
                self.new_rows[file.id] = ImageRow(file.id, file.size, {}, None, vector)
        self.result.added += len(new)
        for file in files:
            self._detach(file.path)
            if file.problem:
                self.result.failed.append(FailedImage(printable_path(file.path), (file.problem,)))
                continue
            self.entries_by_id[file.id].files[file.path] = file.mtime
            self.id_by_path[file.path] = file.id
            self.changed_ids.add(file.id)
            self.result.already_indexed += file.id not in new
        if len(self.changed_ids) >= COMMIT_IMAGES or time.monotonic() - self.last_commit >= COMMIT_SECONDS:
            self.commit()

    def remove_vanished(self, root: str, current_files: Iterable[str]) -> None:
        """Remove deleted files of a folder, and images that have no file any more."""
        folder_prefix = root.rstrip("/") + "/"
        for path in [path for path in self.id_by_path if path.startswith(folder_prefix) and path not in current_files]:
            self._detach(path)
        self.commit()

    def commit(self) -> None:
        """Write the changes: first new and changed rows, then deletions of rows without files."""
        remaining_ids = {id for id in self.changed_ids if self.entries_by_id[id].files or self.entries_by_id[id].uploaded}
        with self.table.writing():
            # Rows are read again: the service may have added or removed some in the meantime.
            rows = {**self.new_rows, **{row.id: row for row in self.table.rows(sorted(remaining_ids))}}
            changed = [dataclasses.replace(rows[id], files=self.entries_by_id[id].files) for id in remaining_ids & rows.keys()]
            self.table.put(changed)
            removed_ids = self.changed_ids - remaining_ids
            self.table.delete(sorted(removed_ids))
        for id in removed_ids:
            del self.entries_by_id[id]
        self.result.removed += len(removed_ids)
        self.new_rows, self.changed_ids, self.last_commit = {}, set(), time.monotonic()

    def _reread_if_removed(self, file: _ReadFile) -> _ReadFile:
        """The file, read again if its image was removed from the index after the file was read."""
        missing = file.id and file.pixels is None and file.id not in self.entries_by_id
        return _read(file.path, self.encoder, {}) if missing else file

    def _detach(self, path: str) -> None:
        image_id = self.id_by_path.pop(path, None)
        if image_id is not None:
            del self.entries_by_id[image_id].files[path]
            self.changed_ids.add(image_id)


def _file_stats(paths: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Path, size and modification time in ns of each file; files deleted since they were listed are skipped."""
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        yield str(path), (stat.st_size, stat.st_mtime_ns)


def _read(path: str, encoder: ClipEncoder, entries_by_id: dict[str, Entry]) -> _ReadFile:
    file = Path(path)
    mtime = -1
    if printable_path(path) != path:
        return _ReadFile(path, mtime, problem="the file name is not UTF-8, so the index cannot hold it: rename the file")
    try:
        # Read before the bytes: a file that changes in between is detected as changed by the next run.
        mtime = file.stat().st_mtime_ns
        data = read_image_file(file)
        image_id = hashlib.sha256(data).hexdigest()
        pixels = None if image_id in entries_by_id else encoder.pixels(data)
    except (ImageError, OSError) as error:
        return _ReadFile(path, mtime, problem=str(error))
    return _ReadFile(path, mtime, len(data), image_id, pixels)


def _reencode_uploads(index: ImageIndex) -> None:
    """Encode the images uploaded to tables of other models: their bytes are stored nowhere else."""
    for other in index.table.other_tables():
        for id in [id for id, entry in other.entries().items() if entry.uploaded]:
            for row in other.rows([id]):
                if row.upload is not None:
                    index.add(row.upload)
