"""Writes raw annotation files and images for tests."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.build.merge import merge
from dataset.build.merge_report import MergeReport
from dataset.config import DataConfig, SplitConfig
from dataset.loading.sample_store import SampleStore
from dataset.sample import Sample
from dataset.source_config import (
    AiChallengerSource,
    CocoCaptionsSource,
    LlavaSource,
    MessagesSource,
    Source,
    VqaMetadataSource,
    VqaV2Source,
)


class RawFiles:
    """Writes images to `folder`/pictures and annotation files to `folder`; merges into `folder`/merged."""

    def __init__(self, folder: Path):
        self.folder, self.images, self.merged = folder, folder / "pictures", folder / "merged"
        self.images.mkdir()

    def image(self, name: str, shade: int = 0, size: tuple[int, int] = (12, 8), **save: Any) -> str:
        """Write an image whose content depends on `shade`; returns its name."""
        image = Image.linear_gradient("L").resize(size).point(lambda value: (value // 2 + shade) % 256).convert("RGB")
        image.save(self.images / name, **save)
        return name

    def write(self, name: str, content: Any) -> Path:
        """Write a JSON file."""
        path = self.folder / name
        # Lone surrogates are written as bytes that are not UTF-8.
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
        return path

    def ai_challenger(self, records: Any, **settings: Any) -> AiChallengerSource:
        path = self.write(f"{settings.get('name', 'captions_zh')}.json", records)
        return AiChallengerSource(format="ai_challenger", annotations=path, images=self.images, **settings)

    def llava(self, records: Any, **settings: Any) -> LlavaSource:
        path = self.write(f"{settings.get('name', 'conversations')}.json", records)
        return LlavaSource(format="llava", annotations=path, images=self.images, **settings)

    def coco_captions(self, images: Any, annotations: Any, **settings: Any) -> CocoCaptionsSource:
        path = self.write("captions.json", {"info": {}, "images": images, "licenses": [], "annotations": annotations})
        return CocoCaptionsSource(format="coco_captions", annotations=path, images=self.images, **settings)

    def vqav2(self, questions: Any, annotations: Any, subtype: str = "train2014", **settings: Any) -> VqaV2Source:
        name = settings.get("name", "vqa")
        return VqaV2Source(
            format="vqav2",
            questions=self.write(f"{name}_questions.json", {"data_subtype": subtype, "questions": questions}),
            annotations=self.write(f"{name}_annotations.json", {"annotations": annotations, "data_subtype": subtype}),
            images=self.images,
            **settings,
        )

    def vqa_metadata(self, records: Any, **settings: Any) -> VqaMetadataSource:
        path = self.write("metadata.json", records)
        return VqaMetadataSource(format="vqa_metadata", annotations=path, images=self.images, **settings)

    def messages(self, records: list[Any], **settings: Any) -> MessagesSource:
        path = self.folder / "rows.jsonl"
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text(lines, encoding="utf-8", errors="surrogatepass")
        return MessagesSource(format="messages", path=path, images=self.images, **settings)

    def config(self, *sources: Source, **settings: Any) -> DataConfig:
        return DataConfig(sources=sources, **{"workers": 1, "split": SplitConfig(validation=0.0, test=0.0), **settings})

    def merge(self, *sources: Source, **settings: Any) -> MergeReport:
        """Merge in this process, with all samples in the training split unless `settings` say otherwise."""
        return merge(self.config(*sources, **settings), self.merged)

    def samples(self) -> list[Sample]:
        return list(SampleStore(self.merged).samples())

    def sha256_by_name(self) -> dict[str, str]:
        """SHA-256 of each image of the merged data, by file name."""
        return {row.path.name: row.sha256 for row in SampleStore(self.merged).images()}

    def parquet(self) -> tuple[bytes, bytes]:
        """The merged tables, byte for byte."""
        return (self.merged / "images.parquet").read_bytes(), (self.merged / "samples.parquet").read_bytes()


def conversation(image: Any, *turns: str) -> dict[str, Any]:
    """A LLaVA record: alternating human and gpt turns; with an image, the first begins with the placeholder."""
    texts = [f"<image>\n{turns[0]}" if image is not None else turns[0], *turns[1:]]
    record = {"id": "x", "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]}
    return record if image is None else {**record, "image": image}


def vqa_answers(*answers: str) -> list[dict[str, Any]]:
    """Answers in the form of the official VQA files."""
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)]
