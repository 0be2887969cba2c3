"""Measure how fast a part of the program is, on data that it makes up."""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import cli
import config as configuration
from benchmarks.preprocessing_speed import measure_images, measure_merges, run_in_subprocess, write_synthetic_sources
from errors import UsageError

if TYPE_CHECKING:
    from benchmarks.benchmark_report import BenchmarkReport

FOLDER = Path("results/benchmark")
SIZES = {
    "tiny": ("tiny.yaml",),
    "1.7b": ("siglip_qwen3_1.7b_lora.yaml",),
    "4b": ("siglip_qwen3_4b_qlora.yaml", "model.quantization=none", "train.packing_length=8192"),
    "8b": ("siglip_qwen3_8b_lora.yaml",),
}
"""The recipe of each size and what is changed in it: the stock model has no 4-bit weights, so neither has ours."""


DEMO_DATA = ("make_synthetic_data.py", "preprocess.py")
"""Commands that make what `equality` trains on."""


def arguments() -> cli.Parser:
    """The command line: one subcommand for each part."""
    parser = cli.Parser(__doc__ or "", takes_config=False)
    parts = parser.add_subcommands()
    what = "merging annotation files and pictures, the first time and again"
    preprocess = parts.add_parser("preprocess", description=what, help=what, takes_config=False)
    preprocess.add_argument("--pictures", type=int, default=4000, metavar="N", help="picture files (default: %(default)s)")
    preprocess.add_argument("--records", type=int, default=20_000, metavar="N", help="records about them (default: %(default)s)")
    preprocess.add_argument("--size", default="640x480", metavar="WxH", help="pixels of a picture (default: %(default)s)")
    preprocess.set_defaults(measure=run_preprocess)
    what = "pictures that one core reads for the model, as loaders do it and with the image processor alone"
    images = parts.add_parser("pictures", description=what, help=what, takes_config=False)
    images.add_argument("--size", default="640x480", metavar="WxH", help="pixels of a picture (default: %(default)s)")
    images.add_argument("--side", type=int, default=384, metavar="N", help="side of what the model sees (default: %(default)s)")
    images.set_defaults(measure=run_image_reading)
    what = "training steps of ours and of stock LlavaForConditionalGeneration + PEFT, by turns, on random weights of full size"
    train = parts.add_parser("train", description=what, help=what, takes_config=False)
    _add_size(train, samples=128, unit="samples of a block")
    train.add_argument("--stock-batch", type=int, metavar="N", help="most samples in a batch of the stock model; halved until it fits")
    train.set_defaults(measure=training)
    what = "candidates of ours and of stock `generate`, one picture at a time and batched, by turns, on random weights of full size"
    generate = parts.add_parser("generate", description=what, help=what, takes_config=False)
    _add_size(generate, samples=96, unit="questions of a block")
    generate.add_argument("--stock-batch", type=int, default=16, metavar="N", help="most questions in a batch of stock `generate`")
    generate.set_defaults(measure=generation)
    what = "whether our training step learns what stock LLaVA + PEFT learns: both on the same samples of an experiment"
    equality = parts.add_parser("equality", description=what, help=what)
    equality.add_argument("--steps", type=int, default=200, metavar="N", help="optimizer steps (default: %(default)s)")
    equality.add_argument("--every", type=int, default=50, metavar="N", help="steps between validations (default: %(default)s)")
    equality.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    equality.set_defaults(measure=run_equality)
    what = "the memory that a training step takes on a GPU, computed from shapes and settings, and measured with --run"
    memory = parts.add_parser("memory", description=what, help=what, takes_config=False)
    memory.add_argument("--size", choices=SIZES, default="4b", help="shape of the model (default: %(default)s)")
    memory.add_argument("--run", action="store_true", help="run a few steps on the GPU, on random weights in the recipe's quantisation")
    what = "run them on an imitated card of so many GiB, which counts memory and computes nothing (Linux, CUDA build of torch, C compiler)"
    memory.add_argument("--card", type=float, metavar="GIB", help=what)
    memory.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    memory.add_argument("settings", nargs="*", metavar="key=value", help="override a key of the size's recipe in configs/")
    memory.set_defaults(measure=run_memory)
    what = "everything above that needs a GPU, one after the other into one folder, and which targets are met; hours on a small one"
    gpu = parts.add_parser("gpu", description=what, help=what, takes_config=False)
    gpu.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="folder of all tables (default: %(default)s)")
    gpu.set_defaults(measure=run_gpu)
    what = "finding pictures among many vectors, exactly and approximately, and the share of the true ten best that is found"
    search = parts.add_parser("search", description=what, help=what, takes_config=False)
    search.add_argument("--vectors", type=int, default=100_000, metavar="N", help="pictures in the index (default: %(default)s)")
    search.add_argument("--width", type=int, default=512, metavar="N", help="numbers of a vector (default: %(default)s)")
    search.add_argument("--questions", type=int, default=200, metavar="N", help="questions of each kind (default: %(default)s)")
    search.add_argument("--recall", type=float, default=0.95, metavar="R", help="least recall that is asked for (default: %(default)s)")
    search.set_defaults(measure=run_search)
    what = "the statistics and the report of an evaluation, on questions, pictures and answers that are made up"
    report = parts.add_parser("report", description=what, help=what, takes_config=False)
    report.add_argument("--questions", type=int, default=1000, metavar="N", help="questions (default: %(default)s)")
    report.add_argument("--systems", type=int, default=2, metavar="N", help="systems that are compared (default: %(default)s)")
    report.add_argument("--candidates", type=int, default=5, metavar="N", help="candidates a question (default: %(default)s)")
    report.add_argument("--size", default="640x480", metavar="WxH", help="pixels of a picture (default: %(default)s)")
    report.set_defaults(measure=run_report)
    what = "answers over HTTP to many clients at once and to one after the other, from a real server"
    serve = parts.add_parser("serve", description=what, help=what)
    serve.add_argument("--clients", type=int, default=16, metavar="N", help="clients that ask at once (default: %(default)s)")
    serve.add_argument("--questions", type=int, default=64, metavar="N", help="questions of a block (default: %(default)s)")
    serve.add_argument("--rounds", type=int, default=5, metavar="N", help="blocks of each way, by turns (default: %(default)s)")
    serve.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    serve.set_defaults(measure=answering)
    return parser


def _add_size(parser: argparse.ArgumentParser, samples: int, unit: str) -> None:
    """What measurements against the stock model have in common."""
    parser.add_argument("--size", choices=SIZES, default="tiny", help="shape of the model (default: %(default)s)")
    parser.add_argument("--against", choices=("stock", "nothing"), default="stock", help="what is run beside ours (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=samples, metavar="N", help=f"{unit} (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="blocks of each path, by turns (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="override a key of the size's recipe in configs/")


def run_preprocess(parsed: argparse.Namespace) -> None:
    """Draw, merge three times, and print seconds, records a second and memory of each."""
    size = _pixels(parsed.size)
    if parsed.images < 1 or parsed.records < 1:
        raise UsageError("--pictures and --records: at least 1 is needed")
    with tempfile.TemporaryDirectory() as folder:
        config = run_in_subprocess(write_synthetic_sources, Path(folder) / "raw", parsed.images, parsed.records, size)
        runs = measure_merges(config, Path(folder) / "merged")
    print(f"{parsed.records:,} records on {parsed.images:,} pictures of {parsed.size}")
    first = runs["first"].seconds
    for name, run in runs.items():
        faster = "" if run is runs["first"] else f", {first / run.seconds:.1f} times as fast as the first"
        print(f"{name}: {run.seconds:.2f} s, {run.records / run.seconds:,.0f} records/s, at most {run.peak_bytes / 2**20:,.0f} MiB{faster}")


def run_image_reading(parsed: argparse.Namespace) -> None:
    """Read pictures both ways by turns; print how many a second of one core's time."""
    size = _pixels(parsed.size)
    if parsed.side < 1:
        raise UsageError(f"--side {parsed.side}: at least 1 is needed")
    from transformers import SiglipImageProcessorPil

    rates = measure_images(SiglipImageProcessorPil(size={"height": parsed.side, "width": parsed.side}), size)
    print(f"JPEG of {parsed.size}, read for a model that sees {parsed.side} x {parsed.side}, pictures a second of one core:")
    print(f"ours {rates.loader:,.0f}, image processor alone {rates.image_processor:,.0f}: {rates.loader / rates.image_processor:.2f} times")


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text}: expected width x height in pixels, such as 640x480")
    return int(width), int(height)


def training(parsed: argparse.Namespace) -> None:
    """Train by turns; print and save the table."""
    config = _recipe(parsed)
    # Not above: merges are measured in processes that load this file, and torch would be counted as theirs.
    from answering.answerer_factory import default_device
    from benchmarks.training.train_step import Workload, measure

    workload = Workload(parsed.samples, parsed.rounds, parsed.stock_batch, parsed.against == "stock")
    _show(parsed, measure(parsed.size, config.model, config.train, workload, default_device()), f"train_{parsed.size}")


def generation(parsed: argparse.Namespace) -> None:
    """Answer by turns; print and save the table."""
    config = _recipe(parsed)
    from answering.answerer_factory import default_device
    from benchmarks.generation_speed import Workload, measure

    workload = Workload(parsed.samples, parsed.rounds, parsed.stock_batch, parsed.against == "stock")
    _show(parsed, measure(parsed.size, config.model, config.decoding, workload, default_device()), f"generate_{parsed.size}")


def run_equality(parsed: argparse.Namespace) -> None:
    """Train both on the same samples; print and save the table. Raises TesseraError where they end apart."""
    if parsed.steps < 1 or parsed.every < 1:
        raise UsageError("--steps and --every: at least 1 is needed")
    from benchmarks.training.loss_parity import check, measure

    report = measure(parsed.config, parsed.steps, parsed.every)
    _show(parsed, report, f"equality_{parsed.config.name}")
    check(report)


def run_search(parsed: argparse.Namespace) -> None:
    """Fill an index, put questions to it both ways, and print how long they take."""
    for name in ("vectors", "width", "questions"):
        if getattr(parsed, name) < 1:
            raise UsageError(f"--{name} {getattr(parsed, name)}: at least 1 is needed")
    from benchmarks.image_search_speed import measure_search

    with tempfile.TemporaryDirectory() as folder:
        found = measure_search(folder, parsed.vectors, parsed.width, parsed.questions, parsed.recall)
    print(f"{parsed.vectors:,} vectors of {parsed.width} numbers, ten best of {parsed.questions} questions, {os.cpu_count()} cores")
    print(
        f"written in {found.write_seconds:.1f} s ({parsed.vectors / found.write_seconds:,.0f} vectors/s), graph built in {found.build_seconds:.1f} s"
    )
    print(f"exact: {found.exact.text()}")
    if found.approximate is None:
        print(f"approximate: not used, its recall is below {parsed.recall:g} ({found.graph.text()})")
    else:
        print(f"approximate (ef {found.graph.ef}): {found.approximate.text()}; recall {found.recall:.3f}")


def run_memory(parsed: argparse.Namespace) -> None:
    """Print and save what a step takes by the size's recipe as it stands, its quantisation included."""
    config = configuration.load(configuration.DEFAULT.parent / SIZES[parsed.size][0], parsed.settings)
    if parsed.card is not None:
        _run_on_simulated_gpu(parsed)
    elif not parsed.run:
        from benchmarks.memory.memory_estimate import estimate_memory

        _show(parsed, estimate_memory(parsed.size, config.model, config.train), f"memory_{parsed.size}")
        return
    from benchmarks.gpu_targets import check_device
    from benchmarks.memory.memory_measurement import measure

    name = f"memory_{parsed.size}_measured" if parsed.card is None else f"memory_{parsed.size}_card_{parsed.card:g}"
    _show(parsed, measure(parsed.size, config.model, config.train, check_device("memory --run")), name)


def _run_on_simulated_gpu(parsed: argparse.Namespace) -> None:
    """Come back with an imitated card. Raises UsageError where there can be none, SystemExit with the status of what ran on it."""
    from benchmarks.memory.simulated_gpu.build_library import check, is_simulated, run

    if is_simulated():
        return
    if not (math.isfinite(parsed.card) and parsed.card > 0):
        raise UsageError(f"--card {parsed.card:g}: a number of GiB above 0 is needed")
    check()
    options = ["--size", parsed.size, "--card", str(parsed.card), "--out", str(parsed.out)]
    raise SystemExit(run([__file__, "memory", *options, *parsed.settings], parsed.card))


def run_gpu(parsed: argparse.Namespace) -> None:
    """Measure all of it; print and save which targets are met. Raises TesseraError where one is not."""
    from benchmarks.benchmark_report import Machine
    from benchmarks.gpu_targets import check, check_device, check_targets, prepare_data, run_all

    device = check_device("gpu")
    if not (configuration.load(configuration.DEFAULT, []).data_folder / "samples.parquet").exists():
        prepare_data([[sys.executable, str(Path(__file__).with_name(command))] for command in DEMO_DATA])
    report = check_targets(run_all([sys.executable, __file__], parsed.out), Machine.current(device))
    _show(parsed, report, "targets")
    check(report)


def run_report(parsed: argparse.Namespace) -> None:
    """Make up answers, and print how long the rest takes."""
    size = _pixels(parsed.size)
    for name, minimum in (("questions", 20), ("systems", 1), ("candidates", 1)):
        if getattr(parsed, name) < minimum:
            raise UsageError(f"--{name} {getattr(parsed, name)}: at least {minimum} {'are' if minimum > 1 else 'is'} needed")
    from benchmarks.report_speed import measure_report

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_report(Path(folder), parsed.questions, parsed.systems, parsed.candidates, size)
    print(f"{parsed.questions:,} questions, {parsed.systems} systems, {parsed.candidates} candidates each; seconds of one core's time:")
    print(f"choices, metrics and statistics {seconds.scoring_seconds:.1f}, report with charts and pictures {seconds.report_seconds:.1f}")


def answering(parsed: argparse.Namespace) -> None:
    """Start a server of the configuration and ask it; print and save the table."""
    from benchmarks.serving_throughput import Workload, measure

    for name in ("clients", "questions", "rounds"):
        if getattr(parsed, name) < 1 + (name == "clients"):
            raise UsageError(f"--{name} {getattr(parsed, name)}: at least {1 + (name == 'clients')} is needed")
    workload = Workload(parsed.questions, parsed.clients, parsed.rounds)
    _show(parsed, measure(parsed.config_path, parsed.overrides, workload), "serve_" + parsed.config.name)


def _recipe(parsed: argparse.Namespace) -> configuration.Config:
    for name in ("samples", "rounds", "stock_batch"):
        value = getattr(parsed, name, None)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    recipe, *changes = SIZES[parsed.size]
    return configuration.load(configuration.DEFAULT.parent / recipe, [*changes, *parsed.settings])


def _show(parsed: argparse.Namespace, report: "BenchmarkReport", name: str) -> None:
    saved = report.save(parsed.out, name)
    print(report.text())
    print("\n" + "\n".join(f"saved: {path}" for path in saved))


def main(parsed: argparse.Namespace) -> None:
    """Measure the part that was asked for."""
    parsed.measure(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
