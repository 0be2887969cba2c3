"""A small preprocessed data folder with rendered images, and a configuration that trains untrained tiny models on it."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageDraw

import config as configuration
from dataset.sample import IMAGES_SCHEMA, SAMPLES_SCHEMA
from training.checkpointing.resume import checkpoint_folders
from training.run import TrainingRun

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
CHINESE = ("红色", "蓝色", "绿色", "黄色", "黑色", "白色", "橙色", "紫色")


def write_data(folder: Path, training: int = 8, validation: int = 4) -> None:
    """Preprocessed data: one rendered image per sample; every fourth question is Chinese, every eighth sample has no image."""
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for i in range(training + validation):
        colour = i % len(COLOURS)
        image = Image.new("RGB", (96, 96), "grey")
        ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill=COLOURS[colour])
        path = folder / f"{i}.png"
        image.save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append({"image_id": i, "path": str(path), "width": 96, "height": 96, "sha256": digest, "source": "drawn"})
        chinese, without_image = i % 4 == 3, i % 8 == 6
        question = "这幅图像中有什么？" if chinese else "What color is the circle?"
        target = f"{CHINESE[colour]}的圆形" if chinese else COLOURS[colour]
        samples.append(
            {
                "sample_id": f"drawn-{i}",
                "image_ids": [] if without_image else [i],
                "source": "drawn",
                "task": "caption" if chinese else "vqa",
                "language": "zh" if chinese else "en",
                "split": "train" if i < training else "validation",
                "messages": [{"role": "user", "content": question if without_image else f"<image>\n{question}"}],
                "targets": [target],
                "answers": [target],
            }
        )
    pq.write_table(pa.Table.from_pylist(images, IMAGES_SCHEMA), folder / "images.parquet")
    pq.write_table(pa.Table.from_pylist(samples, SAMPLES_SCHEMA), folder / "samples.parquet")


def write_yaml(folder: Path, parts: Path, model: dict[str, Any] | None = None, **train: Any) -> Path:
    """Write the YAML of a short training run. model: keys of `model`; train: keys of `train`."""
    raw = {
        "name": "toy",
        "model": {
            **({} if "family" in (model or {}) else {"vision": str(parts / "siglip"), "language": str(parts / "qwen3")}),
            "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0},
            "max_length": 256,
            **(model or {}),
        },
        "train": {
            "stages": [{"name": "tune", "train": ["connector", "lora"], "max_steps": 2}],
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "num_logged_predictions": 0,
            **train,
        },
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(raw, allow_unicode=True))
    return path


@pytest.fixture
def workspace(tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the YAML of a short training run into an empty folder, the current one.

    Its function takes the keys of `model` as a dict and those of `train` as keywords.
    """
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data" / "toy")

    def configure(model: dict[str, Any] | None = None, **train: Any) -> Path:
        return write_yaml(tmp_path, parts, model, **train)

    return configure


@pytest.fixture(scope="module")
def trained_once(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains in a folder with data and returns the folder; once a module for the same settings, those of `write_yaml`."""
    folders: dict[str, Path] = {}

    def run(**settings: Any) -> Path:
        key = repr(settings)
        if key not in folders:
            folder = tmp_path_factory.mktemp("trained")
            write_data(folder / "data" / "toy")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                TrainingRun(configuration.load(write_yaml(folder, parts, **settings))).train()
            folders[key] = folder
        return folders[key]

    return run


@pytest.fixture
def trained_copy(
    trained_once: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, list[Path]]]:
    """Copies such a folder into the current one; returns its YAML file and its checkpoints, which a test may change."""
    monkeypatch.chdir(tmp_path)

    def copy(**settings: Any) -> tuple[Path, list[Path]]:
        shutil.copytree(trained_once(**settings), tmp_path, dirs_exist_ok=True)
        return tmp_path / "toy.yaml", checkpoint_folders(Path("checkpoints/toy"))

    return copy
