"""The drawn data set on disk, in the raw formats of the real ones: pictures as JPEG, annotations as their JSON files.

coco/<part>/000000000001.jpg           pictures that the VQA and the LLaVA files name
ai_challenger/<part>/<sha1>.jpg        pictures of the Chinese captions
annotations/vqa_<part>_questions.json  English questions; vqa_zh_... Chinese ones; unseen ones are in both languages
annotations/reasoning_<part>.json, detail_<part>.json, captions_zh_<part>.json
scenes.json                            what the set was drawn from
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from atomic_io import atomic_write_folder, write_json
from dataset.sample import Language
from dataset.synthetic import annotation_records
from dataset.synthetic.scene import Scene, SceneSplit, generate_scene
from dataset.synthetic.scene_renderer import render
from errors import UsageError
from progress import Progress

MANIFEST_FILE = "scenes.json"
SCENE_SPLITS: tuple[SceneSplit, ...] = ("train", "validation", "test", "unseen")

_QUESTIONS_PER_IMAGE: dict[Language, int] = {"en": 2, "zh": 2}
_TEST_QUESTIONS_PER_IMAGE: dict[Language, int] = {"en": 2, "zh": 1}
_FIRST_ZH_QUESTION = 500
_CONVERSATION_EVERY = 8
_CAPTIONED_EVERY = 10
# Captioned pictures are scenes of their own, far behind the others.
_FIRST_CAPTIONED = 10_000_000
_FIRST_ID: dict[SceneSplit, int] = {"train": 1, "validation": 200_000_001, "test": 400_000_001, "unseen": 600_000_001}
_CHUNK = 200
_JPEG = {"quality": 92, "subsampling": 0}

RenderJob = tuple[int, SceneSplit, int, str]
"""A picture to draw: seed, part and index of the scene, file."""


@dataclass(frozen=True, slots=True)
class SceneCounts:
    """How many scenes of each part are drawn, and from which seed."""

    seed: int = 0
    train: int = 12_000
    validation: int = 300
    test: int = 360
    unseen: int = 100

    def count(self, split: SceneSplit) -> int:
        """Number of scenes of a part."""
        return {"train": self.train, "validation": self.validation, "test": self.test, "unseen": self.unseen}[split]


def write_scenes(folder: Path, counts: SceneCounts, processes: int | None = None) -> bool:
    """Draw a set into `folder` unless just this set stands there already; whether anything was drawn.

    The set is written beside and renamed. `processes`: all cores by default.
    Raises UsageError when `folder` holds anything else than a drawn set, which is never removed.
    """
    manifest = _manifest(counts)
    if _is_up_to_date(folder, manifest):
        return False
    with atomic_write_folder(folder) as new:
        jobs = list(chain.from_iterable(_write_annotations(new, split, counts) for split in SCENE_SPLITS))
        _render_all(new, jobs, processes or os.cpu_count() or 1)
        write_json(new / MANIFEST_FILE, manifest)
    return True


def _manifest(counts: SceneCounts) -> dict[str, Any]:
    """What a set depends on: the numbers and the code that draws."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return {"plan": asdict(counts), "code": digest.hexdigest()}


def _is_up_to_date(folder: Path, manifest: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        return bool(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")) == manifest)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds other files than drawn scenes; name an empty or a new folder") from error


def _write_annotations(folder: Path, split: SceneSplit, counts: SceneCounts) -> Iterator[RenderJob]:
    """Write the annotation files of a part; yields the pictures that they need."""
    count, first_id = counts.count(split), _FIRST_ID[split]
    scenes = [generate_scene(counts.seed, split, index) for index in range(count)]
    names = [f"{first_id + index:012d}.jpg" for index in range(count)]
    _write_vqa(folder / "annotations", split, scenes)
    yield from _render_jobs(scenes, f"coco/{split}", names)
    if split == "unseen":
        return
    named_scenes = list(zip(scenes, names, strict=True))
    _write_list(folder, f"reasoning_{split}", [annotation_records.reasoning_record(*one) for one in named_scenes[::_CONVERSATION_EVERY]])
    _write_list(folder, f"detail_{split}", [annotation_records.detail_record(*one) for one in named_scenes[1::_CONVERSATION_EVERY]])
    captioned = [generate_scene(counts.seed, split, _FIRST_CAPTIONED + index) for index in range(-(-count // _CAPTIONED_EVERY))]
    sha1_names = [annotation_records.sha1_name(scene) for scene in captioned]
    _write_list(
        folder, f"captions_zh_{split}", [annotation_records.caption_record(*one) for one in zip(captioned, sha1_names, strict=True)]
    )
    yield from _render_jobs(captioned, f"ai_challenger/{split}", sha1_names)


def _render_jobs(scenes: list[Scene], folder: str, names: list[str]) -> Iterator[RenderJob]:
    for scene, name in zip(scenes, names, strict=True):
        yield scene.seed, scene.split, scene.index, f"{folder}/{name}"


def _write_vqa(folder: Path, split: SceneSplit, scenes: list[Scene]) -> None:
    """English and Chinese questions in files of their own; those about unseen combinations together, to be reported apart."""
    counts = _QUESTIONS_PER_IMAGE if split in ("train", "validation") else _TEST_QUESTIONS_PER_IMAGE
    english = [annotation_records.vqa_records(scene, _FIRST_ID[split] + i, "en", counts["en"], 0) for i, scene in enumerate(scenes)]
    chinese = [
        annotation_records.vqa_records(scene, _FIRST_ID[split] + i, "zh", counts["zh"], _FIRST_ZH_QUESTION)
        for i, scene in enumerate(scenes)
    ]
    files = {f"vqa_{split}": english + chinese} if split == "unseen" else {f"vqa_{split}": english, f"vqa_zh_{split}": chinese}
    # The data sets' own names for the splits.
    subtype = {"train": "train", "validation": "val", "test": "test", "unseen": "test"}[split]
    for name, found in files.items():
        head = {"info": {"description": "drawn scenes"}, "data_type": "scenes", "data_subtype": subtype, "license": {"name": "CC0-1.0"}}
        questions = {**head, "task_type": "Open-Ended", "questions": [row for one in found for row in one.questions]}
        annotations = {**head, "annotations": [row for one in found for row in one.annotations]}
        _write(folder / f"{name}_questions.json", questions)
        _write(folder / f"{name}_annotations.json", annotations)


def _write_list(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    _write(folder / "annotations" / f"{name}.json", rows)


def _write(path: Path, value: Any) -> None:
    """JSON on one line, as these data sets come."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _render_all(folder: Path, jobs: list[RenderJob], processes: int) -> None:
    for split in {str(Path(file).parent) for *_, file in jobs}:
        (folder / split).mkdir(parents=True)
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    with Progress("draw scenes", len(jobs), "pictures") as progress:
        if processes == 1:
            for chunk in chunks:
                progress.update(_render_chunk(folder, chunk))
            return
        with ProcessPoolExecutor(processes) as pool:
            for rendered in pool.map(_render_chunk, repeat(folder), chunks):
                progress.update(rendered)


def _render_chunk(folder: Path, jobs: list[RenderJob]) -> int:
    for seed, split, index, file in jobs:
        render(generate_scene(seed, split, index)).save(folder / file, format="JPEG", **_JPEG)
    return len(jobs)
