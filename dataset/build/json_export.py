"""Export the merged data as two JSON files, for programs that do not read Parquet."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from atomic_io import atomic_write
from dataset.loading.sample_store import SampleStore
from dataset.sample import Role, Sample


def export_json(data: Path, folder: Path) -> None:
    """Write `image_map.json` and `annotations.json` of the merged data in `data` to `folder`: UTF-8, indented.

    image_map: [{image_id, path, width, height, sha256, source}].
    annotations: [{sample_id, image_ids, source, task, language, split, turns: [{question, answer}], targets, answers}];
    the answer of the last turn is the first target, and `<image>` placeholders keep their position. A sample with a system
    turn also has the key `system`, one whose source has a prompt the key `prompt`, one that names boxes the key
    `boxes`: [{image_id, bbox_2d}], in the order of the texts.
    """
    store = SampleStore(data)
    _write_list(folder / "image_map.json", ({**asdict(row), "path": str(row.path)} for row in store.images()))
    _write_list(folder / "annotations.json", map(_annotation, store.samples()))


def _annotation(sample: Sample) -> dict[str, Any]:
    turns = {role: [message.content for message in sample.messages if message.role == role] for role in get_args(Role)}
    boxes = [{"image_id": sample.image_ids[region.image], "bbox_2d": list(map(round, region.box))} for region in sample.regions]
    pairs = zip(turns["user"], [*turns["assistant"], sample.targets[0]], strict=True)
    return {
        **{name: getattr(sample, name) for name in ("sample_id", "image_ids", "source", "task", "language", "split")},
        **({"system": turns["system"][0]} if turns["system"] else {}),
        "turns": [{"question": question, "answer": answer} for question, answer in pairs],
        "targets": sample.targets,
        "answers": sample.answers,
        **({"prompt": sample.prompt} if sample.prompt else {}),
        **({"boxes": boxes} if boxes else {}),
    }


def _write_list(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write entry by entry, because millions of entries do not fit into memory as one string."""
    with atomic_write(path) as temp_path, temp_path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        for i, entry in enumerate(entries):
            text = json.dumps(entry, ensure_ascii=False, indent=2).replace("\n", "\n  ")
            file.write(f"{',' if i else ''}\n  {text}")
        file.write("\n]\n")
