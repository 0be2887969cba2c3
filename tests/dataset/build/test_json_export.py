"""The two JSON files have the same content as the Parquet tables."""

import json

from dataset.build.json_export import export_json
from tests.dataset.raw_files import RawFiles, conversation


def test_the_files_contain_all_images_and_all_turns(raw: RawFiles) -> None:
    raw.image("a.jpg")
    raw.image("b.jpg", shade=1)
    system = {"from": "system", "value": "Be brief."}
    chat = conversation(["a.jpg", "b.jpg"], "<image>?", "Both.", "Sure?", "Yes.")
    chat["conversations"].insert(0, system)
    raw.merge(raw.ai_challenger([{"image_id": "b.jpg", "caption": ["图", "猫"]}], questions=("有什么？",)), raw.llava([chat]))
    export_json(raw.merged, raw.folder / "json")
    image_map = json.loads((raw.folder / "json" / "image_map.json").read_text(encoding="utf-8"))
    assert [(entry["image_id"], entry["path"]) for entry in image_map] == [
        (0, str(raw.images / "b.jpg")),
        (1, str(raw.images / "a.jpg")),
    ]
    assert set(image_map[0]) == {"image_id", "path", "width", "height", "sha256", "source"}
    captions, dialogue = json.loads((raw.folder / "json" / "annotations.json").read_text(encoding="utf-8"))
    assert captions == {
        "sample_id": "ai_challenger/0",
        "image_ids": [0],
        "source": "ai_challenger",
        "task": "caption",
        "language": "zh",
        "split": "train",
        "turns": [{"question": "<image>\n有什么？", "answer": "图"}],
        "targets": ["图", "猫"],
        "answers": ["图", "猫"],
    }
    assert dialogue["system"] == "Be brief."
    assert dialogue["image_ids"] == [1, 0]
    assert dialogue["turns"] == [{"question": "<image>\n<image>?", "answer": "Both."}, {"question": "Sure?", "answer": "Yes."}]


def test_the_files_are_indented_utf8(raw: RawFiles) -> None:
    raw.image("a.jpg")
    raw.merge(raw.ai_challenger([{"image_id": "a.jpg", "caption": ["一只猫"]}]))
    export_json(raw.merged, raw.folder / "json")
    text = (raw.folder / "json" / "annotations.json").read_text(encoding="utf-8")
    assert '\n    "sample_id": "ai_challenger/0",\n' in text
    assert "一只猫" in text
    assert text == json.dumps(json.loads(text), ensure_ascii=False, indent=2) + "\n"
