"""Preprocess, train and evaluate on excerpts of real datasets, if TESSERA_REAL_DATA names a folder with them."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from answering.rerank.calibration_range import IMAGE, fit_calibration_range
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from tests.pipeline import run, workspace

REAL_DATA = os.environ.get("TESSERA_REAL_DATA", "")


def experiment(data: Path, parts: Path) -> dict[str, object]:
    """AI Challenger, COCO captions, both LLaVA files, VQA v2 and TextVQA; a few training steps; two systems."""
    coco = str(data / "coco" / "images")
    vqa = data / "vqav2"
    return {
        "name": "real",
        "data": {
            "sources": [
                {
                    "format": "ai_challenger",
                    "annotations": str(data / "ai_challenger/caption_train_annotations.json"),
                    "images": str(data / "ai_challenger/caption_train_images"),
                },
                {"format": "coco_captions", "annotations": str(data / "coco/captions.json"), "images": coco},
                {"format": "llava", "annotations": str(data / "coco/complex_reasoning_sample.json"), "images": coco, "name": "reasoning"},
                {"format": "llava", "annotations": str(data / "coco/detail_sample.json"), "images": coco, "name": "detail"},
                {
                    "format": "vqav2",
                    "questions": str(vqa / "v2_OpenEnded_mscoco_train2014_questions.json"),
                    "annotations": str(vqa / "v2_mscoco_train2014_annotations.json"),
                    "images": coco,
                },
                {"format": "vqa_metadata", "annotations": str(data / "textvqa/metadata.json"), "images": str(data / "textvqa")},
            ],
            "split": {"validation": 0.2, "test": 0.3},
        },
        "model": {"vision": str(parts / "siglip"), "language": str(parts / "qwen3"), "lora": {"r": 8, "lora_alpha": 16}, "max_length": 512},
        "train": {
            "stages": [
                {"name": "align", "train": ["connector"], "max_steps": 2},
                {"name": "tune", "train": ["connector", "lora"], "max_steps": 3},
            ],
            "per_device_train_batch_size": 4,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "eval_samples": 8,
            "num_logged_predictions": 4,
        },
        "decoding": {"num_candidates": 3, "max_new_tokens": 6},
        "rerank": {"clip": str(parts / "clip"), "tune": True},
        "eval": {
            "systems": [
                {"name": "ours", "kind": "checkpoint"},
                {"name": "qwen3-vl-4bit", "kind": "qwen3_vl", "path": str(parts / "qwen3_vl"), "max_image_side": 96},
            ],
            "controls": ["shuffled_images"],
            "limit": 24,
            "resamples": 200,
        },
    }


def write_hub_folder(data: Path, folder: Path) -> str:
    """The first 50 questions of TextVQA as the Hub has them: a Parquet file with embedded images. Returns its folder."""
    rows = json.loads((data / "textvqa/metadata.json").read_text(encoding="utf-8"))[:50]
    images = [{"bytes": (data / "textvqa" / row.pop("image_file")).read_bytes(), "path": None} for row in rows]
    (folder / "textvqa").mkdir()
    pq.write_table(
        pa.Table.from_pylist([{**row, "image": image} for row, image in zip(rows, images, strict=True)]), folder / "textvqa/train.parquet"
    )
    return "textvqa"


@pytest.mark.skipif(not REAL_DATA, reason="TESSERA_REAL_DATA is not set")
def test_preprocess_train_and_evaluate_run_on_real_data(tmp_path: Path, parts: Path) -> None:
    folder, data = workspace(tmp_path), Path(REAL_DATA).resolve()
    settings: Any = experiment(data, parts)
    captions = {"format": "flickr_captions", "annotations": str(data / "flickr8k/captions_zh.txt"), "images": str(data / "flickr8k/images")}
    settings["data"]["sources"] += [{"format": "hub", "path": write_hub_folder(data, folder)}, {**captions, "limit": 40}]
    (folder / "real.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    table = run(folder, "python tools/preprocess.py --config real.yaml")
    report = json.loads((folder / "data/real/report.json").read_text(encoding="utf-8"))
    kept = {source["name"]: source["kept"] for source in report["sources"]}
    known = {"ai_challenger": 160, "coco_captions": 159, "reasoning": 60, "detail": 100, "vqav2": 38, "vqa_metadata": 100}
    assert kept == {**known, "hub": 50, "flickr_captions": 40}
    assert "missing file" in table

    log = run(folder, "accelerate launch --config_file configs/accelerate/cpu.yaml train.py --config real.yaml --resume auto")
    assert "step 5/5" in log
    assert (folder / "checkpoints/real/checkpoint-5/adapter_model.safetensors").is_file()
    assert (folder / "results/real/loss_curves.png").is_file()

    verdict = run(folder, "python tools/eval_rerank.py --config real.yaml")
    summary = json.loads((folder / "results/real/summary.json").read_text(encoding="utf-8"))
    assert set(summary["systems"]) == {"ours", "qwen3-vl-4bit"}
    assert summary["systems"]["ours"]["errors"] == 0
    assert summary["dataset"]["questions"] == 24
    assert "results/real/report.html" in verdict
    assert (folder / "results/real/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA, reason="TESSERA_REAL_DATA is not set")
def test_questions_about_text_in_real_photos_are_evaluated_and_poor_scores_are_called_poor(tmp_path: Path, parts: Path) -> None:
    folder, photos = workspace(tmp_path), Path(REAL_DATA).resolve() / "textvqa"
    settings = experiment(photos.parent, parts)
    source = {"format": "vqa_metadata", "annotations": str(photos / "metadata.json"), "images": str(photos)}
    changed = {"name": "text", "data": {"sources": [source], "split": {"validation": 0.1, "test": 0.8}}}
    (folder / "text.yaml").write_text(yaml.safe_dump(settings | changed), encoding="utf-8")
    run(folder, "python tools/preprocess.py --config text.yaml")
    run(folder, "accelerate launch --config_file configs/accelerate/cpu.yaml train.py --config text.yaml")
    printed = run(folder, "python tools/eval_rerank.py --config text.yaml eval.limit=null eval.corruptions=[blur] eval.corruption_limit=4")
    out = folder / "results/text"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"]["by_task"] == {"vqa": summary["dataset"]["questions"]}
    assert summary["dataset"]["questions"] > 60
    for system in summary["systems"].values():
        assert system["errors"] == 0
        assert system["choices"]["oracle"]["vqa_accuracy"] < 0.1
    page, text = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    for report in (page, text):
        assert "which is poor: most answers are wrong" in report
        assert "nan" not in report.lower().split()
    assert {path.stem for path in out.glob("*.png")} >= {"rerank", "overview", "accuracy_by_category", "wrong_cases", "robustness"}
    assert str(Path("results/text/report.html")) in printed


@pytest.mark.skipif(not REAL_DATA, reason="TESSERA_REAL_DATA is not set")
def test_every_photograph_is_unlike_the_images_of_the_demo(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", SceneCounts(train=1, test=60, unseen=1), processes=1)
    scenes = {split: sorted((tmp_path / "scenes").glob(f"*/{split}/*.jpg")) for split in ("validation", "test")}
    known = fit_calibration_range(["What is it?"], [scenes["validation"]])
    photographs = sorted(Path(REAL_DATA).resolve().rglob("*.jpg"))
    assert len(photographs) > 500
    assert [path.name for path in photographs if IMAGE not in known.excess("What is it?", [path])] == []
    assert sum(IMAGE in known.excess("What is it?", [path]) for path in scenes["test"]) <= 0.05 * len(scenes["test"])
