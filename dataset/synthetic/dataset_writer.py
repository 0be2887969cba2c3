"""Write the synthetic dataset to disk in the raw formats of real datasets: JPEG images and JSON annotation files.

coco/<split>/000000000001.jpg             images of the VQA and LLaVA records
ai_challenger/<split>/<sha1>.jpg          images of the Chinese captions
annotations/vqa_<split>_questions.json    English questions, with vqa_<split>_annotations.json; Chinese ones in vqa_zh_<split>_*.json;
                                          those of the split `unseen`, in both languages, in vqa_unseen_*.json
annotations/reasoning_<split>.json, detail_<split>.json, captions_zh_<split>.json   none for `unseen`
annotations/regions_<split>_refs.json     where asked for: expressions for regions of the images in coco/, English and Chinese, as RefCOCO
                                          has them, with regions_<split>_instances.json
large/<split>/..., annotations/vqa_large_<split>_*.json   larger scenes with small objects, in both languages, if any are asked for
scenes.json                               scene counts, seed and a hash of this package's code
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from atomic_io import atomic_write_folder, write_json
from cpu_cores import available_cores
from dataset.sample import Language
from dataset.synthetic import annotation_records
from dataset.synthetic.large_scenes import generate_large_scene
from dataset.synthetic.scene import Scene, SceneSplit, generate_scene
from dataset.synthetic.scene_renderer import SIZE, render, render_with_boxes
from dataset.worker_pool import worker_pool
from errors import UsageError
from progress import Progress

MANIFEST_FILE = "scenes.json"
SCENE_SPLITS: tuple[SceneSplit, ...] = ("train", "validation", "test", "unseen")

_CONVERSATION_EVERY = 8
_CAPTIONED_EVERY = 10
# Index of the first captioned scene, far above those of the other scenes: captioned images are scenes of their own.
_FIRST_CAPTIONED = 10_000_000
_FIRST_ID: dict[SceneSplit, int] = {"train": 1, "validation": 200_000_001, "test": 400_000_001, "unseen": 600_000_001}
_FIRST_LARGE_ID: dict[Literal["train", "test"], int] = {"train": 800_000_001, "test": 900_000_001}
_CHUNK = 200

RenderJob = tuple[Scene, str]
"""An image to render: its scene, and the file's path inside the dataset."""


@dataclass(frozen=True, slots=True)
class SceneCounts:
    """Number of scenes of each split, of larger scenes for training and test, the seed, and whether expressions for regions are written."""

    seed: int = 0
    train: int = 12_000
    validation: int = 300
    test: int = 360
    unseen: int = 100
    regions: bool = False
    large_train: int = 0
    large_test: int = 0


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
        (new / "annotations").mkdir()
        jobs = [job for split in SCENE_SPLITS for job in _write_annotations(new, split, counts)]
        jobs += [job for split in _FIRST_LARGE_ID for job in _write_large_annotations(new, split, counts)]
        _render_all(new, jobs, processes or available_cores())
        write_json(new / MANIFEST_FILE, manifest)
    return True


def _manifest(counts: SceneCounts) -> dict[str, Any]:
    """Everything the dataset depends on: counts, seed and a hash of this package's code."""
    code = b"".join(source.read_bytes() for source in sorted(Path(__file__).parent.glob("*.py")))
    return {"plan": asdict(counts), "code": hashlib.sha256(code).hexdigest()}


def _is_up_to_date(folder: Path, manifest: dict[str, Any]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        return bool(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")) == manifest)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds other files than synthetic scenes; choose an empty or a new folder") from error


def _write_annotations(folder: Path, split: SceneSplit, counts: SceneCounts) -> Iterator[RenderJob]:
    """Write the annotation files of a split and yield the render jobs of their images."""
    count: int = asdict(counts)[split]
    if not count:
        return
    scenes = [generate_scene(counts.seed, split, index) for index in range(count)]
    named = [(scene, f"{_FIRST_ID[split] + index:012d}.jpg") for index, scene in enumerate(scenes)]
    _write_vqa(folder, split, scenes)
    if counts.regions:
        _write_regions(folder, split, named)
    yield from ((scene, f"coco/{split}/{name}") for scene, name in named)
    if split == "unseen":
        return
    captioned = [generate_scene(counts.seed, split, _FIRST_CAPTIONED + index) for index in range(-(-count // _CAPTIONED_EVERY))]
    named_captioned = [(scene, hashlib.sha1(scene.name.encode(), usedforsecurity=False).hexdigest() + ".jpg") for scene in captioned]
    _write(folder, f"reasoning_{split}", [annotation_records.reasoning_record(*pair) for pair in named[::_CONVERSATION_EVERY]])
    _write(folder, f"detail_{split}", [annotation_records.detail_record(*pair) for pair in named[1::_CONVERSATION_EVERY]])
    _write(folder, f"captions_zh_{split}", [annotation_records.caption_record(*pair) for pair in named_captioned])
    yield from ((scene, f"ai_challenger/{split}/{name}") for scene, name in named_captioned)


def _write_large_annotations(folder: Path, split: Literal["train", "test"], counts: SceneCounts) -> Iterator[RenderJob]:
    """The same for larger scenes: three English questions about each, and a Chinese one, mostly about a sign to read."""
    scenes = [generate_large_scene(counts.seed, split, index) for index in range(asdict(counts)[f"large_{split}"])]
    if not scenes:
        return
    first = _FIRST_LARGE_ID[split]
    numbers: tuple[tuple[Language, int], ...] = (("en", 3), ("zh", 1))
    with_ids = [(scene, i, language, count) for language, count in numbers for i, scene in enumerate(scenes, first)]
    records = [row for scene, i, language, count in with_ids for row in annotation_records.vqa_records(scene, i, language, count)]
    _write_questions(folder, f"vqa_large_{split}", split, records)
    yield from ((scene, f"large/{split}/{i:012d}.jpg") for i, scene in enumerate(scenes, first))


def _write_vqa(folder: Path, split: SceneSplit, scenes: list[Scene]) -> None:
    """Write one pair of VQA files per language; for the split `unseen` one pair with both, since it is a test set of its own."""

    def rows(language: Language, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        with_ids = enumerate(scenes, _FIRST_ID[split])
        return [row for i, scene in with_ids for row in annotation_records.vqa_records(scene, i, language, count)]

    # Two questions per image; of Chinese ones in test sets, one.
    english, chinese = rows("en", 2), rows("zh", 2 if split in ("train", "validation") else 1)
    files = {f"vqa_{split}": english + chinese} if split == "unseen" else {f"vqa_{split}": english, f"vqa_zh_{split}": chinese}
    for name, records in files.items():
        _write_questions(folder, name, split, records)


def _write_questions(folder: Path, name: str, split: SceneSplit, records: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Write a pair of VQA files: questions, and annotations with the answers."""
    # VQA v2's names of the splits.
    subtype = {"train": "train", "validation": "val", "test": "test", "unseen": "test"}[split]
    head = {"info": {"description": "drawn scenes"}, "data_type": "scenes", "data_subtype": subtype, "license": {"name": "CC0-1.0"}}
    questions, annotations = zip(*records, strict=True)
    _write(folder, f"{name}_questions", {**head, "task_type": "Open-Ended", "questions": questions})
    _write(folder, f"{name}_annotations", {**head, "annotations": annotations})


def _write_regions(folder: Path, split: SceneSplit, named: list[tuple[Scene, str]]) -> None:
    """Write the expressions for regions of the scenes, whose image files are named, and the boxes of these."""
    first = _FIRST_ID[split]
    records = [
        pair
        for i, (scene, _) in enumerate(named)
        for pair in annotation_records.region_records(scene, render_with_boxes(scene)[1], first + i)
    ]
    boxes = {box["id"]: box for _, box in records}
    images = [{"id": first + i, "file_name": name, "width": SIZE, "height": SIZE} for i, (_, name) in enumerate(named)]
    _write(folder, f"regions_{split}_refs", [ref for ref, _ in records])
    _write(folder, f"regions_{split}_instances", {"images": images, "annotations": list(boxes.values())})


def _write(folder: Path, name: str, value: Any) -> None:
    """Write JSON on one line, as the real datasets do."""
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _render_all(folder: Path, jobs: list[RenderJob], processes: int) -> None:
    for image_folder in {(folder / file).parent for _, file in jobs}:
        image_folder.mkdir(parents=True)
    save = partial(_save_image, folder)
    with Progress("render scenes", len(jobs), "images") as progress, worker_pool(processes) as pool:
        for _ in map(save, jobs) if processes == 1 else pool.map(save, jobs, chunksize=_CHUNK):
            progress.update(1)


def _save_image(folder: Path, job: RenderJob) -> None:
    scene, file = job
    render(scene).save(folder / file, format="JPEG", quality=92, subsampling=0)
