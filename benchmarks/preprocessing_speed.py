"""Speed of merging data sources and of reading images for the model, on synthetic files."""

import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from PIL import Image

from cpu_cores import available_cores
from dataset.build.merge import merge
from dataset.config import DataConfig
from dataset.loading.image_io import open_image
from dataset.source_config import AiChallengerSource, LlavaSource, VqaV2Source
from dataset.worker_pool import worker_pool
from progress import track

P = ParamSpec("P")
T = TypeVar("T")

NUM_PATTERNS = 64
"""Number of distinct synthetic images. The files repeat them, each shifted by another distance, so that all files have different pixels
and take as long to decode as photographs of the same size."""


@dataclass(frozen=True, slots=True)
class MergeMeasurement:
    """Wall time of a merge, records read, and peak memory of the process and its workers together (an upper bound)."""

    seconds: float
    records: int
    peak_bytes: int


def write_synthetic_sources(folder: Path, num_images: int, records: int, size: tuple[int, int], seed: int = 0) -> DataConfig:
    """Write JPEG and annotation files: 20 % AI Challenger captions, 30 % LLaVA conversations of two turns, 50 % VQA v2 questions.

    Args:
        folder: output folder.
        num_images: number of JPEG files.
        records: number of records about them.
        size: width and height of the images in pixels.
        seed: of the texts and images.

    Returns:
        Configuration with these sources.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    patterns = list(_patterns(size, seed))
    for index in track(range(num_images), "writing images", unit="images"):
        turn = index // NUM_PATTERNS
        shifted = np.roll(patterns[index % NUM_PATTERNS], (53 * turn, 37 * turn), axis=(0, 1))
        (images / _file_name(index)).write_bytes(_encode_jpeg(shifted))
    captions, conversations = records // 5, records * 3 // 10
    questions = records - captions - conversations
    rng = random.Random(seed)
    _write(folder / "captions.json", [_captions(i % num_images, rng) for i in range(captions)])
    _write(folder / "conversations.json", [_conversation(i % num_images, rng) for i in range(conversations)])
    question_records = [{"question_id": i, "image_id": i % num_images, "question": f"What is number {i}?"} for i in range(questions)]
    annotations = [_annotation(question, rng) for question in question_records]
    _write(folder / "questions.json", {"data_subtype": "train2014", "questions": question_records})
    _write(folder / "annotations.json", {"data_subtype": "train2014", "annotations": annotations})
    return DataConfig(
        sources=(
            AiChallengerSource(format="ai_challenger", annotations=folder / "captions.json", images=images),
            LlavaSource(format="llava", annotations=folder / "conversations.json", images=images),
            VqaV2Source(format="vqav2", questions=folder / "questions.json", annotations=folder / "annotations.json", images=images),
        ),
    )


def measure_merges(config: DataConfig, folder: Path) -> dict[str, MergeMeasurement]:
    """Merge into the empty `folder`, again without a change, and again after the time stamp of one annotation file has changed."""
    measured = {name: run_in_subprocess(measure_merge, config, folder) for name in ("first", "unchanged")}
    os.utime(config.sources[0].annotation_files[0])
    return {**measured, "one annotation file touched": run_in_subprocess(measure_merge, config, folder)}


@dataclass(frozen=True, slots=True)
class ImageRates:
    """Images per second and core, from the bytes of a file to the input of the model: by the data loader, and by the image processor of
    transformers alone."""

    loader: float
    image_processor: float


def measure_images(image_processor: Any, size: tuple[int, int] = (640, 480), rounds: int = 4) -> ImageRates:
    """Read `NUM_PATTERNS` JPEG files of a size in both ways, `rounds` times in turns, and measure the CPU time of this process."""
    # Not at the top: merges are measured in processes that import this module, and torch would add to their memory.
    from benchmarks.timing import time_interleaved
    from dataset.loading.image_transform import PixelReader

    reader, files = PixelReader(image_processor), list(map(_encode_jpeg, _patterns(size, seed=0)))

    def seconds(read: Callable[[Image.Image], object]) -> float:
        begin = time.process_time()
        for file in files:
            read(open_image(file))
        return time.process_time() - begin

    ways: dict[str, Callable[[], float]] = {
        "loader": lambda: seconds(lambda image: reader.read([image])),
        "image_processor": lambda: seconds(lambda image: image_processor(images=[image], return_tensors="pt")),
    }
    return ImageRates(**{way: rounds * len(files) / sum(measured) for way, measured in time_interleaved(ways, rounds).items()})


def run_in_subprocess(function: Callable[P, T], *arguments: P.args, **settings: P.kwargs) -> T:
    """Call a function in a separate process, whose memory is measured alone and freed at the end."""
    with worker_pool(1) as pool:
        return pool.submit(function, *arguments, **settings).result()


def measure_merge(config: DataConfig, folder: Path) -> MergeMeasurement:
    """One merge, in this process."""
    begin = time.perf_counter()
    report = merge(config, folder)
    seconds = time.perf_counter() - begin
    # An upper bound: for children, ru_maxrss is that of the largest one, and Linux includes the memory that the parent had at the fork.
    own, largest_child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = (own + largest_child * (config.workers or available_cores())) * unit
    return MergeMeasurement(seconds, sum(source.read for source in report.sources), peak)


def _patterns(size: tuple[int, int], seed: int) -> Iterator[np.ndarray]:
    """RGB pixels, uint8 [height, width, 3], whose JPEG files have about the size of photographs: blurred shapes with noise."""
    rng = np.random.default_rng(seed)
    for _ in range(NUM_PATTERNS):
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 9, (size[1], size[0], 3))
        yield (np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)


def _encode_jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _file_name(index: int) -> str:
    return f"COCO_train2014_{index:012d}.jpg"


def _captions(image: int, rng: random.Random) -> dict[str, object]:
    people = ("男人", "女人", "孩子", "老人")
    captions = [f"平整的道路上有一个{rng.choice(people)}在和{rng.choice(people)}交谈" for _ in range(5)]
    return {"url": "", "image_id": _file_name(image), "caption": captions}


def _conversation(image: int, rng: random.Random) -> dict[str, object]:
    words = ("street", "table", "people", "window", "light", "colour", "quiet", "large")
    answers = (" ".join(rng.choices(words, k=60)) + "." for _ in range(2))
    questions = ("<image>\nWhat is happening here?", "Why may that be?")
    turns = [turn for pair in zip(questions, answers, strict=True) for turn in zip(("human", "gpt"), pair, strict=True)]
    conversations = [{"from": who, "value": text} for who, text in turns]
    return {"id": f"{image:012d}", "image": _file_name(image), "conversations": conversations}


def _annotation(question: dict[str, object], rng: random.Random) -> dict[str, object]:
    answers = [{"answer": rng.choice(("yes", "no", "2", "red")), "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
    return {**question, "question_type": "what", "answer_type": "other", "multiple_choice_answer": answers[0]["answer"], "answers": answers}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
