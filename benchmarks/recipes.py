"""The recipes whose sizes the benchmarks have, and where their tables go. Loads no heavy library."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import config as configuration
from model.siglip_qwen.config import SiglipQwenConfig, siglip_qwen_settings

if TYPE_CHECKING:
    from benchmarks.benchmark_report import BenchmarkReport

FOLDER = Path("results/benchmark")
SIZES = {
    "tiny": ("tiny.yaml",),
    "1.7b": ("siglip_qwen3_1.7b_lora.yaml",),
    "4b": ("siglip_qwen3_4b_qlora.yaml", "model.quantization=none", "train.packing_length=8192"),
    "8b": ("siglip_qwen3_8b_lora.yaml",),
}
"""Configuration of each size and overrides: the stock model has no 4-bit weights here, so ours has none either."""


def recipe(parsed: argparse.Namespace) -> configuration.Config:
    """The configuration of the size with the settings of the command line."""
    path, *changes = SIZES[parsed.size]
    return configuration.load(configuration.DEFAULT.parent / path, [*changes, *parsed.settings])


def own_model(config: configuration.Config) -> SiglipQwenConfig:
    """The settings of our own model. Raises UsageError for another family."""
    return siglip_qwen_settings(config.model, "this benchmark")


def show(parsed: argparse.Namespace, report: "BenchmarkReport", name: str) -> None:
    """Print a table and save it in the folder of the command line."""
    saved = report.save(parsed.out, name)
    print(report.text())
    print("\n" + "\n".join(f"saved: {path}" for path in saved))
