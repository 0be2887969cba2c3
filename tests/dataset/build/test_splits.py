"""Splits follow picture content: no picture stands on two sides."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from dataset.build.splits import assign_splits
from dataset.config import SplitConfig
from dataset.loading.sample_store import SampleStore
from tests.dataset.raw_files import RawFiles, conversation, ten

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestSplits:
    def records(self, raw: RawFiles, n: int = 60) -> list[Any]:
        for i in range(n):
            raw.image(f"{i}.jpg", shade=i)
        return [conversation(f"{i}.jpg", "?", f"{i}") for i in range(n)]

    def sides(self, raw: RawFiles) -> dict[str, str]:
        """Split by the picture's content, which must be one for all of its samples."""
        store = SampleStore(raw.merged)
        sides: dict[str, set[str]] = defaultdict(set)
        for sample in store.samples():
            for image_id in sample.image_ids:
                sides[store.image(image_id).sha256].add(sample.split)
        assert all(len(found) == 1 for found in sides.values())
        return {digest: found.pop() for digest, found in sides.items()}

    def test_no_image_stands_on_two_sides_whatever_its_names(self, raw: RawFiles) -> None:
        records = self.records(raw)
        for i in range(60):
            raw.image(f"again{i}.jpg", shade=i)
        again = raw.ai_challenger([{"image_id": f"again{i}.jpg", "caption": ["图"]} for i in range(60)])
        report = raw.merge(raw.llava(records), again, split=HALVES)
        assert len(self.sides(raw)) == report.images == 60
        assert min(report.by_split.values()) > 5

    def test_images_that_samples_join_stay_together(self, raw: RawFiles) -> None:
        self.records(raw)
        chain = [conversation([f"{i}.jpg", f"{i + 1}.jpg"], "<image>?", "x") for i in range(59)]
        report = raw.merge(raw.llava(chain), split=HALVES)
        assert sorted(report.by_split.values()) == [0, 0, 59]

    def test_sides_depend_neither_on_the_order_of_sources_nor_on_other_images(self, raw: RawFiles) -> None:
        records = self.records(raw)
        first, second = raw.llava(records[:30], name="first"), raw.llava(records[30:], name="second")
        raw.merge(first, second, split=HALVES)
        sides = self.sides(raw)
        raw.merge(second, first, split=HALVES)
        assert self.sides(raw) == sides
        raw.merge(second, split=HALVES)
        assert self.sides(raw) == {digest: side for digest, side in sides.items() if digest in self.sides(raw)}
        raw.merge(first, second, split=HALVES, seed=1)
        assert self.sides(raw) != sides

    def test_shares_are_about_what_was_asked_for(self) -> None:
        groups, keys = np.arange(20_000), [str(i) for i in range(20_000)]
        none = np.full(20_000, -1)
        split = assign_splits(groups, keys, none, SplitConfig(validation=0.05, test=0.10), 0).split
        shares = np.bincount(split, minlength=3) / 20_000
        assert np.abs(shares - [0.85, 0.05, 0.10]).max() < 0.01

    def test_shares_that_leave_nothing_for_training_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"validation 0\.5 and test 0\.5 leave nothing for training"):
            SplitConfig(validation=0.5, test=0.5)

    def test_a_source_keeps_its_own_split(self, raw: RawFiles) -> None:
        records = self.records(raw)
        report = raw.merge(raw.llava(records[:30], split="test", name="a"), raw.llava(records[30:], split="validation", name="b"))
        assert report.by_split == {"train": 0, "validation": 30, "test": 30}
        assert [source.moved for source in report.sources] == [0, 0]

    def test_a_image_that_one_source_tests_with_is_trained_on_by_none(self, raw: RawFiles) -> None:
        records = self.records(raw)
        own = raw.llava(records[:40], split="train", name="own")
        held_out = raw.llava(records[30:50], split="test", name="held_out")
        free = raw.llava(records[45:], name="free")
        report = raw.merge(own, held_out, free)
        self.sides(raw)
        assert [source.moved for source in report.sources] == [10, 0, 0]
        assert report.by_split == {"train": 30 + 10, "validation": 0, "test": 10 + 20 + 5}
        assert "own: 10 left the source's own split" in report.table()

    def test_the_files_own_split_gives_way_to_the_sources_setting(self, raw: RawFiles) -> None:
        raw.image("COCO_val2014_000000000001.jpg")
        question = {"question_id": 1, "image_id": 1, "question": "?"}
        annotation = {"question_id": 1, "image_id": 1, "answers": ten("x")}
        raw.merge(raw.vqav2([question], [annotation], "val2014"))
        assert raw.samples()[0].split == "validation"
        raw.merge(raw.vqav2([question], [annotation], "val2014", split="test"))
        assert raw.samples()[0].split == "test"

    def test_equal_conversations_without_images_stay_together(self, raw: RawFiles) -> None:
        texts = [conversation(None, "?", f"{i % 20}") for i in range(60)]
        report = raw.merge(raw.llava(texts), split=HALVES)
        splits: dict[str, set[str]] = defaultdict(set)
        for sample in raw.samples():
            splits[sample.targets[0]].add(sample.split)
        assert all(len(found) == 1 for found in splits.values())
        assert sum(count > 0 for count in report.by_split.values()) > 1
