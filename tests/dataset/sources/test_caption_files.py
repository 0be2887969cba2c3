"""Captions in text files: those of Flickr8k and Flickr30k, and folders with a text file next to each image."""

import os
from pathlib import Path

import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason
from dataset.source_config import FlickrCaptionsSource, FolderSource, Source
from dataset.sources.record import RawSample, RejectedRecord
from tests.dataset.raw_files import RawFiles


def read(source: Source) -> tuple[list[tuple[str, tuple[str, ...]]], list[tuple[str, DropReason]]]:
    """Image names with their captions, and what was rejected."""
    items = list(sources.read(source, DataConfig()))
    samples = [(Path(str(item.images[0])).name, item.targets) for item in items if isinstance(item, RawSample)]
    return samples, [(str(item.location), item.reason) for item in items if isinstance(item, RejectedRecord)]


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg#0\tA cat .\nb.jpg#0\tTwo, or three dogs .\na.jpg#1\tA pet .\n",
        "a.jpg#enc#0 A cat .\nb.jpg#enc#0 Two, or three dogs .\n\na.jpg#enc#1 A pet .",
        'image,caption\na.jpg,A cat .\nb.jpg,"Two, or three dogs ."\na.jpg,A pet .\n',
    ],
    ids=["tab", "Flickr8k-CN", "table"],
)
def test_captions_of_one_image_are_one_sample(raw: RawFiles, text: str) -> None:
    path = raw.folder / "captions.txt"
    path.write_text(text, encoding="utf-8")
    samples, rejected = read(FlickrCaptionsSource(format="flickr_captions", annotations=path, images=raw.images))
    assert samples == [("a.jpg", ("A cat .", "A pet .")), ("b.jpg", ("Two, or three dogs .",))] and not rejected


def test_a_line_without_an_image_name_is_rejected(raw: RawFiles) -> None:
    path = raw.folder / "captions.txt"
    path.write_text("a.jpg#0\tA cat .\njust a line\nb.jpg#0\t\n", encoding="utf-8")
    samples, rejected = read(FlickrCaptionsSource(format="flickr_captions", annotations=path, images=raw.images))
    assert samples == [("a.jpg", ("A cat .",))]
    assert rejected == [("line 2", DropReason.MISSING_FIELD), ("line 3", DropReason.MISSING_FIELD)]


@pytest.mark.skipif("TESSERA_REAL_DATA" not in os.environ, reason="TESSERA_REAL_DATA names no folder with the excerpts")
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_excerpt_of_flickr8k_is_merged(raw: RawFiles, language: str) -> None:
    folder = Path(os.environ["TESSERA_REAL_DATA"]) / "flickr8k"
    images = next(path for path in folder.iterdir() if path.is_dir())
    report = raw.merge(FlickrCaptionsSource(format="flickr_captions", annotations=folder / f"captions_{language}.txt", images=images))
    assert (report.images, report.samples, report.sources[0].dropped) == (300, 300, {})
    assert report.by_language[language] == 300


def test_a_folder_of_images_with_text_files_is_read(raw: RawFiles) -> None:
    for name in ("a.png", "b.JPG", "c.png"):
        raw.image(name)
    sub = raw.images / "more"
    sub.mkdir()
    (raw.images / "c.png").rename(sub / "a.png")
    for name, text in (("a.txt", "A cat.\n\nA pet.\n"), ("b.txt", "一只狗"), ("more/a.txt", "Another."), ("more/d.txt", "No image.")):
        (raw.images / name).write_text(text, encoding="utf-8")
    (raw.images / "notes.md").write_text("not read")
    source = FolderSource(format="folder", path=raw.images)
    samples, rejected = read(source)
    assert samples == [("a.png", ("A cat.", "A pet.")), ("b.JPG", ("一只狗",)), ("a.png", ("Another.",))]
    assert rejected == [("record 3", DropReason.UNPAIRED)]
    assert raw.merge(source).samples == 3


def test_a_changed_text_file_is_read_by_the_next_merge(raw: RawFiles) -> None:
    sub = raw.images / "more"
    sub.mkdir()
    raw.image("a.png")
    (raw.images / "a.png").rename(sub / "a.png")
    (sub / "a.txt").write_text("A cat.")
    source = FolderSource(format="folder", path=raw.images)
    assert not raw.merge(source).reused and raw.merge(source).reused
    (sub / "a.txt").write_text("A dog, I see now.")
    assert not raw.merge(source).reused
    assert raw.samples()[0].targets == ("A dog, I see now.",)
