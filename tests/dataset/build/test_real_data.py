"""Excerpts of five real datasets merge with the expected counts."""

import os
from pathlib import Path

import pytest

from dataset.build.merge import merge
from dataset.config import DataConfig
from dataset.loading.sample_store import SampleStore
from dataset.source_config import AiChallengerSource, CocoCaptionsSource, LlavaSource, VqaMetadataSource, VqaV2Source

pytestmark = pytest.mark.skipif("TESSERA_REAL_DATA" not in os.environ, reason="TESSERA_REAL_DATA is not set to the folder of the excerpts")


def test_five_datasets_merge_with_the_expected_counts(tmp_path: Path) -> None:
    folder = Path(os.environ["TESSERA_REAL_DATA"])
    coco, vqa = folder / "coco", folder / "vqav2"
    chinese = folder / "ai_challenger"
    sources = (
        AiChallengerSource(
            format="ai_challenger", annotations=chinese / "caption_train_annotations.json", images=chinese / "caption_train_images"
        ),
        CocoCaptionsSource(format="coco_captions", annotations=coco / "captions.json", images=coco / "images"),
        LlavaSource(format="llava", name="detail", annotations=coco / "detail_sample.json", images=coco / "images"),
        LlavaSource(format="llava", name="reasoning", annotations=coco / "complex_reasoning_sample.json", images=coco / "images"),
        VqaMetadataSource(format="vqa_metadata", annotations=folder / "textvqa" / "metadata.json", images=folder / "textvqa"),
        VqaV2Source(
            format="vqav2",
            questions=vqa / "v2_OpenEnded_mscoco_train2014_questions.json",
            annotations=vqa / "v2_mscoco_train2014_annotations.json",
            images=coco / "images",
        ),
    )
    report = merge(DataConfig(sources=sources), tmp_path)
    counts = {source.name: (source.read, source.kept, source.dropped) for source in report.sources}
    assert counts == {
        "ai_challenger": (160, 160, {}),
        "coco_captions": (159, 159, {}),
        "detail": (100, 100, {}),
        "reasoning": (60, 60, {}),
        "vqa_metadata": (100, 100, {}),
        "vqav2": (2038, 38, {"missing file": 2000}),
    }
    assert report.samples == sum(kept for _, kept, _ in counts.values())
    assert report.by_language == {"en": 457, "zh": 160}
    assert 160 + 159 + 100 - 40 < report.images <= 160 + 159 + 100
    store = SampleStore(tmp_path)
    answers = {len(sample.answers) for sample in store.samples() if sample.task == "vqa"}
    assert answers == {10}
    assert {len(sample.messages) for sample in store.samples() if sample.source == "reasoning"} == {3}
    assert sum(len(sample.targets) for sample in store.samples() if sample.source == "coco_captions") == 795
    assert sum(len(sample.targets) for sample in store.samples() if sample.source == "ai_challenger") == 800
    splits: dict[int, set[str]] = {}
    for sample in store.samples():
        for image_id in sample.image_ids:
            splits.setdefault(image_id, set()).add(sample.split)
    assert all(len(names) == 1 for names in splits.values())
    assert all(
        store.load_image(image_id).size == (store.image(image_id).width, store.image(image_id).height) for image_id in list(splits)[::7]
    )
