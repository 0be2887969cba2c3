"""Indexing encodes new and changed images, removes deleted ones, and resumes after it was killed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from errors import TesseraError, UsageError
from serving.search import folder_indexer
from serving.search.folder_indexer import IndexingResult, index_folder
from serving.search.image_index import ImageIndex
from tests.pipeline import ROOT
from tests.serving.search.conftest import Opener, fill, png


@contextmanager
def encoded_batches(index: ImageIndex) -> Iterator[list[int]]:
    """The sizes of the batches that the model encodes inside the context."""
    batch_sizes: list[int] = []
    tower = index.encoder.scorer.model.vision_model
    hook = tower.register_forward_pre_hook(lambda *call: batch_sizes.append(len(call[-1]["pixel_values"])), with_kwargs=True)
    yield batch_sizes
    hook.remove()


def counts(result: IndexingResult) -> tuple[int, int, int, int]:
    return result.added, result.removed, result.already_indexed, result.unchanged


def paths(index: ImageIndex) -> set[str]:
    """File names of all rows. Checks that every row has a file and that the path of a hit is one of them."""
    entries = index.table.entries()
    assert all(entry.files for entry in entries.values())
    hits = index.search_by_text("a", 100)
    assert all(str(hit.path) in entries[hit.id].files for hit in hits)
    assert len(hits) == len(entries)
    return {Path(path).name for entry in entries.values() for path in entry.files}


def test_only_new_and_changed_images_are_encoded(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(10))
    with encoded_batches(index) as encoded:
        assert counts(index_folder(index, library)) == (10, 0, 0, 0)
    assert encoded == [4, 4, 2]
    fill(library / "below", range(10, 12))
    (library / "0.png").write_bytes(png(20))
    os.utime(library / "1.png", ns=(0, 0))
    (library / "2.png").rename(library / "moved.png")
    shutil.copy(library / "3.png", library / "copy.png")
    (library / "4.png").unlink()
    with encoded_batches(index) as encoded:
        assert counts(index_folder(index, library)) == (3, 2, 3, 6)
    assert sum(encoded) == 3
    assert paths(index) == {f"{i}.png" for i in (0, 1, 3, *range(5, 12))} | {"moved.png", "copy.png"}
    assert len(index) == 11
    assert index.search_by_image(png(20), 1)[0].path == library / "0.png"
    assert index.search_by_image(png(0), 1)[0].score < 0.9999
    with encoded_batches(index) as encoded:
        assert counts(index_folder(index, library)) == (0, 0, 0, 12)
    assert encoded == []


def test_a_file_whose_name_is_not_utf8_is_named_and_the_others_are_indexed(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(2))
    (library / "照片.png".encode("gbk").decode("utf-8", "surrogateescape")).write_bytes(png(5))
    result = index_folder(index, library)
    assert counts(result) == (2, 0, 0, 0)
    assert [failed.line() for failed in result.failed] == [
        f"{library}/\\xd5\\xd5Ƭ.png: the file name is not UTF-8, so the index cannot hold it: rename the file"
    ]
    assert paths(index) == {"0.png", "1.png"}


def test_an_image_stays_while_one_of_its_files_exists(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(2))
    shutil.copy(library / "0.png", library / "zero.png")
    assert counts(index_folder(index, library)) == (2, 0, 0, 0)
    (library / "0.png").unlink()
    assert counts(index_folder(index, library)) == (0, 0, 0, 2)
    assert paths(index) == {"1.png", "zero.png"}


def test_a_copy_is_read_again_if_its_image_is_removed_in_the_meantime(
    index: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fill(tmp_path / "library", range(1))
    index_folder(index, library)
    (library / "0.png").rename(library / "copy.png")
    (library / "0.png").write_bytes(png(5))
    monkeypatch.setattr(folder_indexer, "COMMIT_IMAGES", 1)
    index.settings = type(index.settings)(batch_size=1)
    index_folder(index, library)
    assert paths(index) == {"0.png", "copy.png"}


def test_images_of_other_folders_and_uploads_are_not_removed(index: ImageIndex, tmp_path: Path) -> None:
    index_folder(index, fill(tmp_path / "one", range(2)))
    uploaded = index.add(png(7))
    index_folder(index, fill(tmp_path / "one two", range(5, 8)))
    assert len(index) == 5
    shutil.rmtree(tmp_path / "one two")
    index_folder(index, fill(tmp_path / "one two", range(5, 6)))
    # An uploaded image stays when the file with the same bytes is deleted.
    assert [hit.id for hit in index.search_by_image(png(7), 1)] == [uploaded]
    assert index.image_bytes(index.search_by_image(png(7), 1)[0]) == png(7)
    assert len(index) == 4


def test_an_image_removed_by_id_is_added_again_with_its_folder(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(2))
    index_folder(index, library)
    assert index.remove(index.search_by_image(png(0), 1)[0].id)
    assert (library / "0.png").is_file()
    assert counts(index_folder(index, library)) == (1, 0, 0, 1)


def test_unreadable_files_are_reported_and_removed_from_the_index(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(3))
    index_folder(index, library)
    (library / "1.png").write_bytes(b"no longer an image")
    (library / "new.jpg").write_bytes(b"")
    result = index_folder(index, library)
    assert [failed.image for failed in result.failed] == [str(library / "1.png"), str(library / "new.jpg")]
    assert paths(index) == {"0.png", "2.png"}


def test_a_folder_without_images_removes_nothing(index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(1))
    index_folder(index, library)
    for path in (library / "0.png", library):
        path.unlink() if path.is_file() else path.rmdir()
        with pytest.raises(UsageError, match=r"no images in it|no such folder"):
            index_folder(index, library)
    assert len(index) == 1


def test_a_second_run_at_the_same_time_is_refused(opener: Opener, index: ImageIndex, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(1))
    with index.table.indexing(), pytest.raises(TesseraError, match="another process is indexing"):
        index_folder(opener(), library)
    assert index_folder(index, library).added == 1


def test_an_interrupted_run_commits_the_encoded_images(index: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = fill(tmp_path / "library", range(12))
    encode, remaining_calls = index.encoder.encode, iter([True, True])

    def interrupted(pixels: list) -> object:
        next(remaining_calls)
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(index.encoder, "encode", interrupted)
        with pytest.raises(StopIteration):
            index_folder(index, library)
    assert len(index) == 8
    assert counts(index_folder(index, library)) == (4, 0, 0, 8)


SLOW = """
import sys
from pathlib import Path
from serving.search import folder_indexer
from serving.search.config import SearchConfig
from serving.search.image_index import open_index
commit = folder_indexer._IndexUpdate.commit
def slow(update):
    commit(update)
    print("committed", len(update.table), flush=True)
    sys.stdin.readline()
folder_indexer._IndexUpdate.commit, folder_indexer.COMMIT_IMAGES = slow, 4
index = open_index(SearchConfig(batch_size=2), sys.argv[1], sys.argv[2], create=True)
folder_indexer.index_folder(index, Path(sys.argv[3]))
"""
"""Indexes with a commit every four images, and waits for a line on standard input after each commit."""


def test_a_killed_run_leaves_a_searchable_index_and_is_resumed(opener: Opener, parts: Path, tmp_path: Path) -> None:
    library = fill(tmp_path / "library", range(12))
    command = [sys.executable, "-c", SLOW, str(tmp_path / "index"), str(parts / "clip"), str(library)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "committed 4\n"
        # The index is searchable while it is being written.
        reader = opener(create=False)
        assert len(reader.search_by_text("a", 100)) == 4
        process.stdin.write("\n")
        assert process.stdout.readline() == "committed 8\n"
        assert len(reader.search_by_text("a", 100)) == 8
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    index = opener(create=False)
    assert len(index.search_by_text("a", 100)) == 8
    with encoded_batches(index) as encoded:
        assert counts(index_folder(index, library)) == (4, 0, 0, 8)
    assert sum(encoded) == 4
    assert len(paths(index)) == 12
