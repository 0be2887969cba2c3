"""A small ablation of untrained models, and runs that answer as they are told without training anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.ablation.ablation_data import judged_questions
from benchmarks.ablation.ablation_runs import Laboratory
from benchmarks.ablation.config import load
from benchmarks.ablation.run_records import Answers, RunFigures
from benchmarks.ablation.variant_training import Job

SMALL_DATA = {"seed": 7, "train": 6, "large_train": 3, "test": 8, "unseen": 7, "large_test": 8}


def figures(answers: Answers, **measured: Any) -> RunFigures:
    """What a run measured."""
    rest: dict[str, Any] = {"shuffled": 0.25, "tokens_per_image": 36.0, "samples_per_second": 100.0, "peak_memory_gib": 1.5}
    rest |= {"training_seconds": 20.0, "answering_seconds": 4.0, "device": "test CPU", "cores": 2}
    return RunFigures(answers, **{**rest, **measured})


@pytest.fixture
def write_ablation(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a training configuration and an ablation of it into an empty folder, the current one. Its keywords are keys of the latter."""
    monkeypatch.chdir(tmp_path)

    def write(**keys: Any) -> Path:
        base = {
            "name": "small",
            "model": {
                "vision": str(parts / "siglip"),
                "language": str(parts / "qwen3"),
                "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
                "max_length": 256,
            },
            "train": {
                "stages": [{"name": "tune", "train": ["connector", "lora"], "max_steps": 2}],
                "per_device_train_batch_size": 4,
                "max_questions_per_conversation": 4,
                "dataloader_num_workers": 0,
                "logging_steps": 1,
                "report_to": "none",
            },
            "decoding": {"max_new_tokens": 3, "batch_size": 64},
        }
        Path("small.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
        variants = {"pool2": {"description": "fewer tokens", "overrides": {"model.connector": {"kind": "mlp_pool", "pool": 2}}}}
        raw = {"base": "small.yaml", "seeds": [0, 1], "data": SMALL_DATA, "variants": variants, **keys}
        path = Path("ablation.yaml")
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data, which are made once for all tests."""
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture
def laboratory(write_ablation: Callable[..., Path], work: Path) -> Laboratory:
    return Laboratory.of(load(write_ablation()), Path("out"), work)


class PlannedRuns:
    """Answers in the place of a run: right with a probability for each variant. `done` names the runs in their order."""

    def __init__(self, right: dict[str, float], fails: dict[str, Exception] | None = None):
        self.right, self.fails, self.done = right, fails or {}, list[str]()

    def __call__(self, job: Job) -> RunFigures:
        name = f"{job.variant.name}-{job.seed}"
        self.done.append(name)
        if name in self.fails:
            raise self.fails[name]
        asked = judged_questions(job.data.folder)
        rng = np.random.default_rng([job.seed, *job.variant.name.encode()])
        scores = (rng.random(len(asked.kinds)) < self.right[job.variant.name]).astype(float).tolist()
        return figures(Answers.of(asked.kinds, asked.per_image, scores))
