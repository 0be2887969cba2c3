"""A repeated merge reads only the files that have changed."""

import os
from pathlib import Path
from typing import Any

import pytest

from dataset.build.fingerprint import source_files
from dataset.build.merge import OUTPUT_FILES
from dataset.build.merge_report import MergeReport
from dataset.config import SplitConfig
from dataset.loading.image_io import ImageError, read_image_file
from dataset.loading.sample_store import SampleStore
from dataset.record_validation import DropReason
from tests.dataset.raw_files import RawFiles, conversation

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestRepeatedMerge:
    def merged(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
        """Merge once; returns the source, and a list to which the name of every image file read later is appended."""
        raw.image("a.jpg")
        raw.image("b.jpg", shade=1)
        source = raw.llava([conversation("a.jpg", "?", "x"), conversation("b.jpg", "?", "y"), conversation("none.jpg", "?", "z")])
        opened: list[str] = []

        def record_and_read(path: Path, max_pixels: int) -> bytes:
            opened.append(path.name)
            return read_image_file(path, max_pixels)

        monkeypatch.setattr("dataset.build.image_validation.read_image_file", record_and_read)
        raw.merge(source)
        assert opened == ["a.jpg", "b.jpg"]
        opened.clear()
        return source, opened

    def test_unchanged_inputs_are_not_read_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, opened = self.merged(raw, monkeypatch)
        before = {name: (raw.merged / name).stat().st_mtime_ns for name in OUTPUT_FILES}
        report = MergeReport.load(raw.merged / "report.json")

        def fail(*_: object) -> None:
            raise AssertionError("the sources were read")

        monkeypatch.setattr("dataset.sources.read", fail)
        assert raw.merge(source) == report
        assert opened == []
        assert {name: (raw.merged / name).stat().st_mtime_ns for name in OUTPUT_FILES} == before

    def test_an_image_that_could_not_be_read_is_tried_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, opened = self.merged(raw, monkeypatch)

        def refuse(path: Path, _max_pixels: int) -> bytes:
            raise ImageError(DropReason.MISSING_FILE, f"{path}: cannot be read (Permission denied)")

        os.utime(raw.images / "b.jpg", (1, 1))
        with monkeypatch.context() as refusing:
            refusing.setattr("dataset.build.image_validation.read_image_file", refuse)
            assert raw.merge(source).sources[0].dropped == {"missing file": 2}
        # A change of rights is none of the file.
        assert raw.merge(source).sources[0].dropped == {"missing file": 1}
        assert opened == ["b.jpg"]

    def test_only_changed_images_are_read_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, opened = self.merged(raw, monkeypatch)
        raw.image("b.jpg", shade=2, size=(20, 10))
        raw.image("none.jpg", shade=3)
        report = raw.merge(source)
        assert opened == ["b.jpg", "none.jpg"]
        assert report.sources[0].kept == 3
        assert [(row.width, row.height) for row in SampleStore(raw.merged).images()] == [(12, 8), (20, 10), (12, 8)]

    def test_an_image_with_another_modification_time_is_read_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, opened = self.merged(raw, monkeypatch)
        file = raw.images / "b.jpg"
        size, before = file.stat().st_size, SampleStore(raw.merged).image(1).sha256
        file.write_bytes((raw.images / "a.jpg").read_bytes().ljust(size, b"\0")[:size])
        os.utime(file, ns=(1, 1))
        raw.merge(source)
        assert opened == ["b.jpg"]
        assert [row.sha256 for row in SampleStore(raw.merged).images()][-1] != before

    def test_a_deleted_image_is_detected(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, opened = self.merged(raw, monkeypatch)
        (raw.images / "a.jpg").unlink()
        report = raw.merge(source)
        assert opened == []
        assert report.sources[0].dropped == {"missing file": 2}

    @pytest.mark.parametrize("change", [{"seed": 1}, {"split": HALVES}, {"vqa_target": "sample"}, {"max_pixels": 10**6}])
    def test_changed_settings_merge_again_without_reading_images(
        self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
    ) -> None:
        source, opened = self.merged(raw, monkeypatch)
        before = (raw.merged / "report.json").stat().st_ino
        raw.merge(source, **change)
        assert opened == []
        assert (raw.merged / "report.json").stat().st_ino != before

    def test_a_changed_pixel_limit_applies_to_cached_images(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        source, _ = self.merged(raw, monkeypatch)
        raw.image("none.jpg", size=(5, 5))
        assert raw.merge(source, max_pixels=30).sources[0].dropped == {"over the pixel limit": 2}
        assert raw.merge(source).sources[0].kept == 3

    def test_annotations_that_change_during_a_merge_are_read_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        raw.image("a.jpg")
        source = raw.llava([conversation("a.jpg", "?", "early")])

        def change_and_read(path: Path, max_pixels: int) -> bytes:
            raw.llava([conversation("a.jpg", "?", "late")])
            return read_image_file(path, max_pixels)

        monkeypatch.setattr("dataset.build.image_validation.read_image_file", change_and_read)
        raw.merge(source)
        assert raw.samples()[0].targets == ("early",)
        raw.merge(source)
        assert raw.samples()[0].targets == ("late",)

    def test_changed_annotations_are_read_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        _, opened = self.merged(raw, monkeypatch)
        raw.merge(raw.llava([conversation("b.jpg", "?", "other")]))
        assert [sample.targets[0] for sample in raw.samples()] == ["other"]
        assert opened == []

    @pytest.mark.parametrize("name", OUTPUT_FILES)
    def test_a_deleted_or_changed_output_file_is_written_again(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        source, opened = self.merged(raw, monkeypatch)
        original = (raw.merged / name).read_bytes()
        (raw.merged / name).unlink()
        raw.merge(source)
        assert (raw.merged / name).read_bytes() == original
        (raw.merged / name).write_bytes(b"half")
        raw.merge(source)
        assert (raw.merged / name).read_bytes() == original
        assert opened == []

    def test_images_checked_before_an_interruption_are_cached(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            raw.image(name)
        source = raw.llava([conversation(name, "?", name) for name in ("a.jpg", "b.jpg", "c.jpg")])
        opened: list[str] = []

        def interrupt_at_second(path: Path, max_pixels: int) -> bytes:
            opened.append(path.name)
            if opened == ["a.jpg", "b.jpg"]:
                raise KeyboardInterrupt
            return read_image_file(path, max_pixels)

        monkeypatch.setattr("dataset.build.image_validation.read_image_file", interrupt_at_second)
        with pytest.raises(KeyboardInterrupt):
            raw.merge(source)
        raw.merge(source)
        assert opened == ["a.jpg", "b.jpg", "b.jpg", "c.jpg"]


def test_a_change_in_any_part_of_the_data_code_merges_again() -> None:
    names = {f"{path.parent.name}/{path.name}" for path in source_files()}
    assert names >= {"dataset/config.py", "sources/visual_questions.py", "loading/image_io.py", "build/merge.py"}
