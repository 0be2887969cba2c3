"""Splits depend on image content: no image is in two splits."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from dataset.build.splits import assign_splits
from dataset.config import SplitConfig
from dataset.loading.sample_store import SampleStore
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers

HALVES = SplitConfig(validation=0.25, test=0.25)


class TestSplits:
    def records(self, raw: RawFiles, n: int = 60) -> list[Any]:
        for i in range(n):
            raw.image(f"{i}.jpg", shade=i)
        return [conversation(f"{i}.jpg", "?", f"{i}") for i in range(n)]

    def image_splits(self, raw: RawFiles) -> dict[str, str]:
        """The split of each image by SHA-256; checks that all of its samples have the same split."""
        store = SampleStore(raw.merged)
        splits: dict[str, set[str]] = defaultdict(set)
        for sample in store.samples():
            for image_id in sample.image_ids:
                splits[store.image(image_id).sha256].add(sample.split)
        assert all(len(names) == 1 for names in splits.values())
        return {digest: names.pop() for digest, names in splits.items()}

    def test_no_image_is_in_two_splits_even_under_several_names(self, raw: RawFiles) -> None:
        records = self.records(raw)
        for i in range(60):
            raw.image(f"again{i}.jpg", shade=i)
        again = raw.ai_challenger([{"image_id": f"again{i}.jpg", "caption": ["图"]} for i in range(60)])
        report = raw.merge(raw.llava(records), again, split=HALVES)
        assert len(self.image_splits(raw)) == report.images == 60
        assert min(report.by_split.values()) > 5

    def test_images_connected_through_samples_get_the_same_split(self, raw: RawFiles) -> None:
        self.records(raw)
        chain = [conversation([f"{i}.jpg", f"{i + 1}.jpg"], "<image>?", "x") for i in range(59)]
        report = raw.merge(raw.llava(chain), split=HALVES)
        assert sorted(report.by_split.values()) == [0, 0, 59]

    def test_splits_depend_neither_on_the_order_of_sources_nor_on_other_images(self, raw: RawFiles) -> None:
        records = self.records(raw)
        first, second = raw.llava(records[:30], name="first"), raw.llava(records[30:], name="second")
        raw.merge(first, second, split=HALVES)
        splits = self.image_splits(raw)
        raw.merge(second, first, split=HALVES)
        assert self.image_splits(raw) == splits
        raw.merge(second, split=HALVES)
        assert self.image_splits(raw) == {digest: split for digest, split in splits.items() if digest in self.image_splits(raw)}
        raw.merge(first, second, split=HALVES, seed=1)
        assert self.image_splits(raw) != splits

    def test_fractions_are_close_to_the_configured_ones(self) -> None:
        groups, keys = np.arange(20_000), [str(i) for i in range(20_000)]
        none = np.full(20_000, -1)
        split = assign_splits(groups, keys, none, SplitConfig(validation=0.05, test=0.10), 0)
        fractions = np.bincount(split, minlength=3) / 20_000
        assert np.abs(fractions - [0.85, 0.05, 0.10]).max() < 0.01

    def test_fractions_that_leave_nothing_for_training_are_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"validation 0\.5 and test 0\.5 leave nothing for training"):
            SplitConfig(validation=0.5, test=0.5)

    def test_a_source_keeps_its_own_split(self, raw: RawFiles) -> None:
        records = self.records(raw)
        report = raw.merge(raw.llava(records[:30], split="test", name="a"), raw.llava(records[30:], split="validation", name="b"))
        assert report.by_split == {"train": 0, "validation": 30, "test": 30}
        assert [source.moved for source in report.sources] == [0, 0]

    def test_an_image_in_the_test_split_of_one_source_is_not_trained_on_by_another(self, raw: RawFiles) -> None:
        records = self.records(raw)
        own = raw.llava(records[:40], split="train", name="own")
        held_out = raw.llava(records[30:50], split="test", name="held_out")
        free = raw.llava(records[45:], name="free")
        report = raw.merge(own, held_out, free)
        self.image_splits(raw)
        assert [source.moved for source in report.sources] == [10, 0, 0]
        assert report.by_split == {"train": 30 + 10, "validation": 0, "test": 10 + 20 + 5}
        assert "own: 10 left the source's own split" in report.table()

    def test_the_split_key_of_a_source_overrides_the_split_of_its_file(self, raw: RawFiles) -> None:
        raw.image("COCO_val2014_000000000001.jpg")
        question = {"question_id": 1, "image_id": 1, "question": "?"}
        annotation = {"question_id": 1, "image_id": 1, "answers": vqa_answers("x")}
        raw.merge(raw.vqav2([question], [annotation], "val2014"))
        assert raw.samples()[0].split == "validation"
        raw.merge(raw.vqav2([question], [annotation], "val2014", split="test"))
        assert raw.samples()[0].split == "test"

    def test_equal_conversations_without_images_get_the_same_split(self, raw: RawFiles) -> None:
        records = [conversation(None, "?", f"{i % 20}") for i in range(60)]
        report = raw.merge(raw.llava(records), split=HALVES)
        splits: dict[str, set[str]] = defaultdict(set)
        for sample in raw.samples():
            splits[sample.targets[0]].add(sample.split)
        assert all(len(names) == 1 for names in splits.values())
        assert sum(count > 0 for count in report.by_split.values()) > 1
