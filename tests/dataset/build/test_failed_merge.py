"""A merge that fails leaves the result that stands there."""

import pickle
import signal
import subprocess
import sys

import pytest

from dataset.build import merge as merging
from dataset.build.merge import OUTPUT_FILES
from dataset.config import SplitConfig
from dataset.loading.sample_store import SampleStore
from errors import TesseraError, UsageError
from tests.dataset.raw_files import RawFiles, conversation

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestFailure:
    def before(self, raw: RawFiles) -> dict[str, bytes]:
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
    def test_a_failed_merge_leaves_the_earlier_result(self, raw: RawFiles, content: str | None, message: str) -> None:
        earlier = self.before(raw)
        broken = raw.llava([], name="broken")
        broken.annotations.unlink()
        if content is not None:
            broken.annotations.write_text(content)
        with pytest.raises(TesseraError, match=message) as raised:
            raw.merge(broken)
        assert raised.value.exit_status == 1
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == earlier
        assert not list(raw.merged.glob(".merge-*"))
        assert len(SampleStore(raw.merged)) == 1

    def test_a_failure_while_writing_leaves_the_earlier_result(self, raw: RawFiles, monkeypatch: pytest.MonkeyPatch) -> None:
        earlier = self.before(raw)
        source = raw.llava([conversation("a.jpg", "?", "y")], name="later")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(merging, "write_samples", full)
        with pytest.raises(OSError, match="No space left"):
            raw.merge(source)
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == earlier
        monkeypatch.undo()
        raw.merge(source)
        assert raw.samples()[0].targets == ("y",)

    def test_tables_of_two_merges_are_not_read_together(self, raw: RawFiles) -> None:
        earlier = self.before(raw)
        raw.image("b.jpg", shade=9)
        raw.merge(raw.llava([conversation("b.jpg", "?", "y")]))
        (raw.merged / "samples.parquet").write_bytes(earlier["samples.parquet"])
        with pytest.raises(UsageError, match="not from one merge"):
            SampleStore(raw.merged)

    def test_a_killed_merge_leaves_the_earlier_result(self, raw: RawFiles) -> None:
        earlier = self.before(raw)
        config = raw.config(raw.llava([conversation("a.jpg", "?", "y")], name="later"))
        (raw.folder / "config.pickle").write_bytes(pickle.dumps((config, raw.merged)))
        script = (
            "import os, pickle, signal; from pathlib import Path; import dataset.merge as merging\n"
            "merging.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"merging.merge(*pickle.loads(Path({str(raw.folder / 'config.pickle')!r}).read_bytes()))\n"
        )
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert {name: (raw.merged / name).read_bytes() for name in OUTPUT_FILES} == earlier
        raw.merge(raw.llava([conversation("a.jpg", "?", "z")]))
        assert raw.samples()[0].targets == ("z",)
