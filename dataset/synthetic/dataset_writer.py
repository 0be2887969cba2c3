"""Write the synthetic dataset to disk in the raw formats of real datasets: JPEG images and JSON annotation files.

coco/<split>/000000000001.jpg             images of the VQA and LLaVA records
ai_challenger/<split>/<sha1>.jpg          images of the Chinese captions
annotations/vqa_<split>_questions.json    English questions, with vqa_<split>_annotations.json; Chinese ones in vqa_zh_<split>_*.json;
                                          those of the split `unseen`, in both languages, in vqa_unseen_*.json
annotations/reasoning_<split>.json, detail_<split>.json, captions_zh_<split>.json   none for `unseen`
scenes.json                               scene counts, seed and a hash of this package's code
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from atomic_io import atomic_write_folder, write_json
from cpu_cores import available_cores
from dataset.sample import Language
from dataset.synthetic import annotation_records
from dataset.synthetic.scene import Scene, SceneSplit, generate_scene
from dataset.synthetic.scene_renderer import render
from dataset.worker_pool import worker_pool
from errors import UsageError
from progress import Progress

MANIFEST_FILE = "scenes.json"
SCENE_SPLITS: tuple[SceneSplit, ...] = ("train", "validation", "test", "unseen")

_QUESTIONS_PER_IMAGE: dict[Language, int] = {"en": 2, "zh": 2}
_TEST_QUESTIONS_PER_IMAGE: dict[Language, int] = {"en": 2, "zh": 1}
_FIRST_ZH_QUESTION = 500
_CONVERSATION_EVERY = 8
_CAPTIONED_EVERY = 10
# Index of the first captioned scene, far above those of the other scenes: captioned images are scenes of their own.
_FIRST_CAPTIONED = 10_000_000
_FIRST_ID: dict[SceneSplit, int] = {"train": 1, "validation": 200_000_001, "test": 400_000_001, "unseen": 600_000_001}
_CHUNK = 200
_JPEG = {"quality": 92, "subsampling": 0}

RenderJob = tuple[int, SceneSplit, int, str]
"""An image to render: seed, split and index of its scene, and the file's path inside the dataset."""


@dataclass(frozen=True, slots=True)
class SceneCounts:
    """Number of scenes of each split, and the seed."""

    seed: int = 0
    train: int = 12_000
    validation: int = 300
    test: int = 360
    unseen: int = 100

    def count(self, split: SceneSplit) -> int:
        """Number of scenes of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test, "unseen": self.unseen}[split]


def write_scenes(folder: Path, counts: SceneCounts, processes: int | None = None) -> bool:
    """Write the dataset into `folder` unless it is already there, made by the same code from the same counts and seed.

    Atomic: the dataset is written to a temporary folder, then renamed. Rendering takes `processes` processes, by default one per
    available core.

    Returns: whether anything was written.
    Raises: UsageError when `folder` holds other files than a synthetic dataset; they are never removed.
    """
    manifest = _manifest(counts)
    if _is_up_to_date(folder, manifest):
        return False
    with atomic_write_folder(folder) as new:
        jobs = list(chain.from_iterable(_write_annotations(new, split, counts) for split in SCENE_SPLITS))
        _render_all(new, jobs, processes or available_cores())
        write_json(new / MANIFEST_FILE, manifest)
    return True


def _manifest(counts: SceneCounts) -> dict[str, Any]:
    """Everything the dataset depends on: counts, seed and a hash of this package's code."""
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
        raise UsageError(f"{folder} holds other files than synthetic scenes; choose an empty or a new folder") from error


def _write_annotations(folder: Path, split: SceneSplit, counts: SceneCounts) -> Iterator[RenderJob]:
    """Write the annotation files of a split and yield the render jobs of their images."""
    count, first_id = counts.count(split), _FIRST_ID[split]
    scenes = [generate_scene(counts.seed, split, index) for index in range(count)]
    names = [f"{first_id + index:012d}.jpg" for index in range(count)]
    _write_vqa(folder / "annotations", split, scenes)
    yield from _render_jobs(scenes, f"coco/{split}", names)
    if split == "unseen":
        return
    named_scenes = list(zip(scenes, names, strict=True))
    _write_list(
        folder, f"reasoning_{split}", [annotation_records.reasoning_record(*named) for named in named_scenes[::_CONVERSATION_EVERY]]
    )
    _write_list(folder, f"detail_{split}", [annotation_records.detail_record(*named) for named in named_scenes[1::_CONVERSATION_EVERY]])
    captioned = [generate_scene(counts.seed, split, _FIRST_CAPTIONED + index) for index in range(-(-count // _CAPTIONED_EVERY))]
    sha1_names = [annotation_records.sha1_name(scene) for scene in captioned]
    _write_list(
        folder, f"captions_zh_{split}", [annotation_records.caption_record(*named) for named in zip(captioned, sha1_names, strict=True)]
    )
    yield from _render_jobs(captioned, f"ai_challenger/{split}", sha1_names)


def _render_jobs(scenes: list[Scene], folder: str, names: list[str]) -> Iterator[RenderJob]:
    for scene, name in zip(scenes, names, strict=True):
        yield scene.seed, scene.split, scene.index, f"{folder}/{name}"


def _write_vqa(folder: Path, split: SceneSplit, scenes: list[Scene]) -> None:
    """Write one pair of VQA files per language; for the split `unseen` one pair with both, since it is a test set of its own."""
    counts = _QUESTIONS_PER_IMAGE if split in ("train", "validation") else _TEST_QUESTIONS_PER_IMAGE
    english = [annotation_records.vqa_records(scene, _FIRST_ID[split] + i, "en", counts["en"], 0) for i, scene in enumerate(scenes)]
    chinese = [
        annotation_records.vqa_records(scene, _FIRST_ID[split] + i, "zh", counts["zh"], _FIRST_ZH_QUESTION)
        for i, scene in enumerate(scenes)
    ]
    files = {f"vqa_{split}": english + chinese} if split == "unseen" else {f"vqa_{split}": english, f"vqa_zh_{split}": chinese}
    # VQA v2's names of the splits.
    subtype = {"train": "train", "validation": "val", "test": "test", "unseen": "test"}[split]
    for name, records in files.items():
        head = {"info": {"description": "drawn scenes"}, "data_type": "scenes", "data_subtype": subtype, "license": {"name": "CC0-1.0"}}
        questions = {**head, "task_type": "Open-Ended", "questions": [row for record in records for row in record.questions]}
        annotations = {**head, "annotations": [row for record in records for row in record.annotations]}
        _write(folder / f"{name}_questions.json", questions)
        _write(folder / f"{name}_annotations.json", annotations)


def _write_list(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    _write(folder / "annotations" / f"{name}.json", rows)


def _write(path: Path, value: Any) -> None:
    """Write JSON on one line, as the real datasets do."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _render_all(folder: Path, jobs: list[RenderJob], processes: int) -> None:
    for image_folder in {str(Path(file).parent) for *_, file in jobs}:
        (folder / image_folder).mkdir(parents=True)
    chunks = [jobs[start : start + _CHUNK] for start in range(0, len(jobs), _CHUNK)]
    with Progress("render scenes", len(jobs), "images") as progress:
        if processes == 1:
            for chunk in chunks:
                progress.update(_render_chunk(folder, chunk))
            return
        with worker_pool(processes) as pool:
            for rendered in pool.map(_render_chunk, repeat(folder), chunks):
                progress.update(rendered)


def _render_chunk(folder: Path, jobs: list[RenderJob]) -> int:
    for seed, split, index, file in jobs:
        render(generate_scene(seed, split, index)).save(folder / file, format="JPEG", **_JPEG)
    return len(jobs)
