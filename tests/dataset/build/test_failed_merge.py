"""A failed merge leaves the previous result unchanged."""

import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dataset.build import merge as merging
from dataset.build.merge import OUTPUT_FILES
from dataset.config import SplitConfig
from dataset.loading.sample_store import SampleStore
from errors import TesseraError, UsageError
from tests.dataset.raw_files import RawFiles, conversation

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestFailure:
    def previous_result(self, raw: RawFiles) -> dict[str, bytes]:
        """Merge once; returns the content of the output files."""
        raw.image("a.jpg")
        raw.merge(raw.llava([conversation("a.jpg", "?", "x")], name="earlier"))
        return {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('[{"image": "a.jpg",\n "conversations": oops}]', r"broken\.json: not valid JSON at line 2 column 19"),
            ("[]", "no sample is left of 0 records"),
            (
                '[{"image": "none.jpg", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]}]',
                "missing file",
            ),
            (None, r"broken\.json: cannot be read"),
        ],
    )
    def test_a_failed_merge_leaves_the_previous_result(self, raw: RawFiles, content: str | None, message: str) -> None:
        previous = self.previous_result(raw)
        broken = raw.llava([], name="broken")
        Path(broken.annotation_files[0]).unlink()
        if content is not None:
            Path(broken.annotation_files[0]).write_text(content)
        with pytest.raises(TesseraError, match=message) as raised:
            raw.merge(broken)
        assert raised.value.exit_status == 1
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == previous
        assert not list(raw.merged.glob(".merge-*"))
        assert len(SampleStore(raw.merged)) == 1

    def test_a_failure_while_writing_leaves_the_previous_result(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        previous = self.previous_result(raw)
        source = raw.llava([conversation("a.jpg", "?", "y")], name="later")

        def disk_full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(merging, "write_samples", disk_full)
        with pytest.raises(TesseraError, match=r"merged: cannot be written: No space left on device \([\d,]+ bytes are free there\)"):
            raw.merge(source)
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == previous
        monkeypatch.undo()
        raw.merge(source)
        assert raw.samples()[0].targets == ("y",)

    def test_tables_of_two_different_merges_are_an_error(self, raw: RawFiles) -> None:
        previous = self.previous_result(raw)
        raw.image("b.jpg", shade=9)
        raw.merge(raw.llava([conversation("b.jpg", "?", "y")]))
        (raw.merged / "samples.parquet").write_bytes(previous["samples.parquet"])
        with pytest.raises(UsageError, match="not from one merge"):
            SampleStore(raw.merged)

    def test_a_killed_merge_leaves_the_previous_result(self, raw: RawFiles) -> None:
        previous = self.previous_result(raw)
        config = raw.config(raw.llava([conversation("a.jpg", "?", "y")], name="later"))
        (raw.folder / "config.pickle").write_bytes(pickle.dumps((config, raw.merged)))
        script = (
            "import os, pickle, signal; from pathlib import Path; import dataset.build.merge as merging\n"
            "merging.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"merging.merge(*pickle.loads(Path({str(raw.folder / 'config.pickle')!r}).read_bytes()))\n"
        )
        completed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert completed.returncode == -signal.SIGKILL
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == previous
        raw.merge(raw.llava([conversation("a.jpg", "?", "z")]))
        assert raw.samples()[0].targets == ("z",)
