"""A small merged data set, and fake systems and scorers with known outputs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from answering.protocol import Request
from dataset.loading.sample_store import SampleStore
from dataset.sample import IMAGE_PLACEHOLDER, IMAGES_SCHEMA, SAMPLES_SCHEMA
from evaluation.config import EvalConfig
from evaluation.metrics.short_answers import METRICS
from evaluation.run.evaluation_run import EvaluationResult, score_evaluation
from evaluation.run.evaluation_setup import Experiment
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_runner import SystemLoader, run_all_systems
from evaluation.schema.answer_figures import ChoiceFigures
from evaluation.schema.summary_file import SystemFigures
from tests.fakes import FakeAnswerer, FakeScorer

COLORS = ("red", "blue", "green", "orange", "purple", "black")
COLORS_ZH = ("红色", "蓝色", "绿色", "橙色", "紫色", "黑色")


def sample(name: str, image: int | tuple[int, ...], question: str, answers: Sequence[str], **fields: Any) -> dict[str, Any]:
    """A row of samples.parquet."""
    images = [image] if isinstance(image, int) else list(image)
    return {
        "sample_id": name,
        "image_ids": images,
        "source": "planted",
        "task": "vqa",
        "language": "en",
        "split": "test",
        "messages": [{"role": "user", "content": IMAGE_PLACEHOLDER * len(images) + "\n" + question}],
        "targets": [answers[0]],
        "answers": list(answers),
        **fields,
    }


def questions(images: int, split: str = "test") -> list[dict[str, Any]]:
    """Four samples per image: color in English and Chinese, a count, a caption."""
    rows = []
    for i in range(images):
        color, zh = COLORS[i % 6], COLORS_ZH[i % 6]
        rows += [
            sample(f"{split}-{i}-color", i, "What color is the disc?", [color] * 8 + ["gray", f"{color}."], split=split),
            sample(f"{split}-{i}-zh", i, "圆形是什么颜色的？", [zh] * 9 + [zh[0]], language="zh", split=split),
            sample(f"{split}-{i}-count", i, "How many discs are there?", ["1"] * 7 + ["one"] * 3, split=split),
            sample(f"{split}-{i}-caption", i, "Describe the picture.", [f"a {color} disc on white"] * 2, task="caption", split=split),
        ]
    return rows


def write_store(folder: Path, samples: Sequence[dict[str, Any]]) -> SampleStore:
    """Write merged data with a synthetic image for each image id of the samples."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = sorted({image for row in samples for image in row["image_ids"]})
    images = []
    for image in ids:
        path = folder / f"{image}.png"
        disc = Image.new("RGB", (48, 32), "white")
        ImageDraw.Draw(disc).ellipse((4 + image % 12, 4, 24 + image % 12, 24), fill=COLORS[image % 6])
        disc.save(path)
        images.append({"image_id": image, "path": str(path), "width": 48, "height": 32, "sha256": f"{image:064x}", "source": "planted"})
    pq.write_table(pa.Table.from_pylist(images, IMAGES_SCHEMA), folder / "images.parquet")
    pq.write_table(pa.Table.from_pylist(list(samples), SAMPLES_SCHEMA), folder / "samples.parquet")
    return SampleStore(folder)


def experiment(store: SampleStore, out: Path, *names: str, rerank: RerankConfig | None = None, **settings: Any) -> Experiment:
    """An evaluation of checkpoints with these names, with few resamples."""
    systems = tuple(CheckpointSystem(name=name, kind="checkpoint") for name in names or ("ours",))
    return Experiment(
        name="planted",
        store=store,
        out=out,
        settings=EvalConfig(systems=systems, **{"resamples": 200, **settings}),
        decoding=DecodingConfig(num_candidates=3, batch_size=2),
        rerank=rerank or RerankConfig(),
    )


def mostly_right(request: Request) -> Sequence[tuple[str, float]]:
    """Right on colors (in English only as the second candidate); wrong on counts."""
    i = int(request.request_id.split("-")[1]) % 6
    if "color" in request.request_id:
        return [("gray", -0.1), (COLORS[i], -0.2), ("mauve", -3.0)]
    if "zh" in request.request_id:
        return [(COLORS_ZH[i] + "。", -0.1)]
    if "count" in request.request_id:
        return [("2", -0.1), ("two discs", -0.5)]
    return [(f"a {COLORS[i]} disc on white", -0.1)]


def evaluate(planned: Experiment, load: SystemLoader, load_untuned: SystemLoader, scorers: Sequence[NamedScorer] = ()) -> EvaluationResult:
    """Answer and score in a single process."""
    return score_evaluation(planned, run_all_systems(planned, load, load_untuned, scorers))


def run(
    planned: Experiment, *answerers: FakeAnswerer, scorer: FakeScorer | None = None, untuned: FakeAnswerer | None = None
) -> EvaluationResult:
    """Evaluate with one answerer per system of the experiment."""
    systems = dict(zip((system.name for system in planned.settings.systems), answerers, strict=True))

    def load_untuned(system: object) -> FakeAnswerer:
        assert untuned is not None, f"{system} must not be loaded untuned"
        return untuned

    named = [] if scorer is None else [NamedScorer("planted clip", scorer)]
    return evaluate(planned, lambda system: systems[system.name], load_untuned, named)


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choice_figures(accuracy: float = 0.5, **changes: Any) -> ChoiceFigures:
    """Figures of one choice: every metric is the accuracy."""
    metrics = dict.fromkeys(METRICS, accuracy)
    interval = (accuracy - 0.02, accuracy + 0.02)
    parts: dict[str, Any] = {"by_category": {}, "by_language": {}, "by_source": {}}
    return ChoiceFigures(**{"questions": 800, "clusters": 100, "vqa_accuracy_ci95": interval, **metrics, **parts, **changes})


def system_figures(choices: dict[str, ChoiceFigures]) -> SystemFigures:
    """Figures of a system with these choices."""
    return SystemFigures("checkpoint", {}, {}, 0, 1.0, choices)
