"""Measure the speed or the memory of one part of the program, on generated data."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cli
import config as configuration
from benchmarks.memory import command as memory_command
from benchmarks.preprocessing_speed import measure_images, measure_merges, run_in_subprocess, write_synthetic_sources
from benchmarks.recipes import FOLDER, SIZES, own_model, recipe, show
from cpu_cores import available_cores
from errors import UsageError

DEMO_DATA = ("make_synthetic_data.py", "preprocess.py")
"""Commands that create the training data of `equality`."""

RENAMED = {"pictures": "images", "--pictures": "--images", "--card": "--simulated-gpu"}
"""Old names of parts and options, and their new ones."""


def arguments() -> cli.Parser:
    """The command line: one subcommand per part."""
    parser = cli.Parser(__doc__ or "", takes_config=False, renamed=RENAMED)
    parts = parser.add_subcommands()
    what = "merging annotation files and images, for the first time and again"
    preprocess = parts.add_parser("preprocess", description=what, help=what, takes_config=False)
    preprocess.add_argument("--images", type=int, default=4000, metavar="N", help="image files (default: %(default)s)")
    preprocess.add_argument("--records", type=int, default=20_000, metavar="N", help="records about them (default: %(default)s)")
    preprocess.add_argument("--size", default="640x480", metavar="WxH", help="size of an image in pixels (default: %(default)s)")
    preprocess.set_defaults(measure=run_preprocess)
    what = "images per second and core that are read for the model, by the data loader and by the image processor alone"
    images = parts.add_parser("images", description=what, help=what, takes_config=False)
    images.add_argument("--size", default="640x480", metavar="WxH", help="size of an image in pixels (default: %(default)s)")
    images.add_argument(
        "--side", type=int, default=384, metavar="N", help="input side of the vision encoder in pixels (default: %(default)s)"
    )
    images.set_defaults(measure=run_image_reading)
    what = "training steps of ours and of stock LlavaForConditionalGeneration + PEFT, interleaved, or runs of ours and of TRL's SFTTrainer"
    train = parts.add_parser("train", description=what, help=what, takes_config=False)
    _add_size(train, samples=128, unit="samples per block", against=("stock", "nothing", "trl"))
    train.add_argument("--stock-batch", type=int, metavar="N", help="largest batch size of the stock model; halved until it fits")
    what = "with --against trl, the configuration whose data and model are trained (default: %(default)s)"
    train.add_argument("--config", type=Path, default=configuration.DEFAULT, metavar="YAML", help=what)
    train.add_argument("--steps", type=int, default=60, metavar="N", help="with --against trl, steps of a run (default: %(default)s)")
    train.set_defaults(measure=training)
    what = "candidates of ours and of stock `generate`, unbatched and batched, interleaved, with full-size random weights"
    generate = parts.add_parser("generate", description=what, help=what, takes_config=False)
    _add_size(generate, samples=96, unit="questions per block")
    generate.add_argument("--stock-batch", type=int, default=16, metavar="N", help="largest batch size of stock `generate`")
    generate.set_defaults(measure=generation)
    what = "loss parity of our training step and stock LLaVA + PEFT, trained on the same samples of an experiment"
    equality = parts.add_parser("equality", description=what, help=what)
    equality.add_argument("--steps", type=int, default=200, metavar="N", help="optimizer steps (default: %(default)s)")
    equality.add_argument("--every", type=int, default=50, metavar="N", help="steps between validations (default: %(default)s)")
    equality.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    equality.set_defaults(measure=run_equality)
    memory_command.add_parts(parts)
    what = "all of the above that need a GPU, with all tables in one folder, and which targets are met; takes hours on a small GPU"
    gpu = parts.add_parser("gpu", description=what, help=what, takes_config=False)
    gpu.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="folder of all tables (default: %(default)s)")
    gpu.set_defaults(measure=run_gpu)
    _add_evaluation_parts(parts)
    return parser


def _add_evaluation_parts(parts: Any) -> None:
    """Subcommands about search, reports, comparisons of families and the service."""
    what = "image search in a large index, exact and approximate: latency, and recall of the ten nearest"
    search = parts.add_parser("search", description=what, help=what, takes_config=False)
    search.add_argument("--vectors", type=int, default=100_000, metavar="N", help="vectors in the index (default: %(default)s)")
    search.add_argument("--width", type=int, default=512, metavar="N", help="dimension of a vector (default: %(default)s)")
    search.add_argument("--questions", type=int, default=200, metavar="N", help="queries of each kind (default: %(default)s)")
    search.add_argument("--recall", type=float, default=0.95, metavar="R", help="least recall of approximate search (default: %(default)s)")
    search.set_defaults(measure=run_search)
    what = "statistics and report of an evaluation, on generated questions, images and answers"
    report = parts.add_parser("report", description=what, help=what, takes_config=False)
    report.add_argument("--questions", type=int, default=1000, metavar="N", help="questions (default: %(default)s)")
    report.add_argument("--systems", type=int, default=2, metavar="N", help="systems that are compared (default: %(default)s)")
    report.add_argument("--candidates", type=int, default=5, metavar="N", help="candidates per question (default: %(default)s)")
    report.add_argument("--size", default="640x480", metavar="WxH", help="size of an image in pixels (default: %(default)s)")
    report.set_defaults(measure=run_report)
    what = "quality and cost of several configurations, such as one of each model family, trained on the same data"
    families = parts.add_parser("families", description=what, help=what, takes_config=False)
    families.add_argument("configs", type=Path, nargs="+", metavar="YAML", help="configurations")
    families.add_argument("--name", default="families", help="of the comparison; results/<name> (default: %(default)s)")
    families.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="seeds of the runs (default: 0 1)")
    families.add_argument("--steps", type=int, default=200, metavar="N", help="steps of the last stage (default: %(default)s)")
    families.add_argument("--questions", type=int, default=400, metavar="N", help="questions of the evaluation (default: %(default)s)")
    families.set_defaults(measure=run_families)
    what = "throughput of the HTTP service with many concurrent clients against a single one, or beside that of `transformers serve`"
    serve = parts.add_parser("serve", description=what, help=what)
    serve.add_argument("--against", choices=("one-client", "transformers"), default="one-client", help="default: %(default)s")
    serve.add_argument("--clients", type=int, default=16, metavar="N", help="concurrent clients (default: %(default)s)")
    serve.add_argument("--questions", type=int, default=64, metavar="N", help="questions per block (default: %(default)s)")
    serve.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved blocks per number of clients (default: %(default)s)")
    serve.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    serve.set_defaults(measure=answering)


def _add_size(parser: argparse.ArgumentParser, samples: int, unit: str, against: Sequence[str] = ("stock", "nothing")) -> None:
    """Arguments of the parts that compare with the stock model."""
    parser.add_argument("--size", choices=SIZES, default="tiny", help="size of the model (default: %(default)s)")
    parser.add_argument("--against", choices=against, default="stock", help="what ours is compared with (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=samples, metavar="N", help=f"{unit} (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved blocks of each path (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="override a key of the size's recipe in configs/")


def run_preprocess(parsed: argparse.Namespace) -> None:
    """Write synthetic sources, merge them three times, and print seconds, records per second and memory."""
    size = _pixels(parsed.size)
    if parsed.images < 1 or parsed.records < 1:
        raise UsageError("--images and --records: expected at least 1")
    with tempfile.TemporaryDirectory() as folder:
        config = run_in_subprocess(write_synthetic_sources, Path(folder) / "raw", parsed.images, parsed.records, size)
        runs = measure_merges(config, Path(folder) / "merged")
    print(f"{parsed.records:,} records on {parsed.images:,} images of {parsed.size}")
    first = runs["first"].seconds
    for name, run in runs.items():
        faster = "" if run is runs["first"] else f", {first / run.seconds:.1f} times as fast as the first"
        print(f"{name}: {run.seconds:.2f} s, {run.records / run.seconds:,.0f} records/s, at most {run.peak_bytes / 2**20:,.0f} MiB{faster}")


def run_image_reading(parsed: argparse.Namespace) -> None:
    """Read images in both ways, and print images per second of CPU time."""
    size = _pixels(parsed.size)
    if parsed.side < 1:
        raise UsageError(f"--side {parsed.side}: expected at least 1")
    from transformers import SiglipImageProcessorPil

    rates = measure_images(SiglipImageProcessorPil(size={"height": parsed.side, "width": parsed.side}), size)
    print(f"JPEG of {parsed.size}, model input {parsed.side} x {parsed.side}, images per second and core:")
    print(f"ours {rates.loader:,.0f}, image processor alone {rates.image_processor:,.0f}: {rates.loader / rates.image_processor:.2f} times")


def _pixels(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {text}: expected width x height in pixels, such as 640x480")
    return int(width), int(height)


def training(parsed: argparse.Namespace) -> None:
    """Measure training steps, or runs against TRL's; print and save the table."""
    if parsed.against == "trl":
        from benchmarks.training import trl_comparison

        amount = trl_comparison.Workload(parsed.steps, parsed.rounds)
        show(parsed, trl_comparison.measure(parsed.config, parsed.settings, amount), f"train_{parsed.config.stem}_against_trl")
        return
    config = recipe(parsed)
    # Not at the top: merges are measured in processes that import this module, and torch would add to their memory.
    from answering.answerer_factory import default_device
    from benchmarks.timing import Workload
    from benchmarks.training.train_step import measure

    workload = Workload(parsed.samples, parsed.rounds, parsed.stock_batch, parsed.against == "stock")
    show(parsed, measure(parsed.size, own_model(config), config.train, workload, default_device()), f"train_{parsed.size}")


def generation(parsed: argparse.Namespace) -> None:
    """Measure candidate generation; print and save the table."""
    config = recipe(parsed)
    from answering.answerer_factory import default_device
    from benchmarks.generation_speed import measure
    from benchmarks.timing import Workload

    workload = Workload(parsed.samples, parsed.rounds, parsed.stock_batch, parsed.against == "stock")
    show(parsed, measure(parsed.size, own_model(config), config.decoding, workload, default_device()), f"generate_{parsed.size}")


def run_equality(parsed: argparse.Namespace) -> None:
    """Train both sides on the same samples; print and save the table. Raises TesseraError if the losses differ."""
    if parsed.steps < 1 or parsed.every < 1:
        raise UsageError("--steps and --every: expected at least 1")
    from benchmarks.training.loss_parity import check, measure

    report = measure(parsed.config, parsed.steps, parsed.every)
    show(parsed, report, f"equality_{parsed.config.name}")
    check(report)


def run_families(parsed: argparse.Namespace) -> None:
    """Train and evaluate the configurations; print the table."""
    if min(parsed.steps, parsed.questions) < 1 or len(set(parsed.seeds)) < len(parsed.seeds):
        raise UsageError("--steps, --questions: expected at least 1; --seeds: expected different ones")
    from benchmarks.family_comparison import Comparison, compare_families

    comparison = Comparison(parsed.name, tuple(parsed.configs), tuple(parsed.seeds), parsed.steps, parsed.questions)
    print(f"\n{compare_families(comparison, {path: configuration.load(path) for path in parsed.configs})}", end="")


def run_search(parsed: argparse.Namespace) -> None:
    """Fill an index, run exact and approximate queries, and print their latency."""
    for name in ("vectors", "width", "questions"):
        if getattr(parsed, name) < 1:
            raise UsageError(f"--{name} {getattr(parsed, name)}: expected at least 1")
    from benchmarks.image_search_speed import measure_search

    with tempfile.TemporaryDirectory() as folder:
        speed = measure_search(folder, parsed.vectors, parsed.width, parsed.questions, parsed.recall)
    print(f"{parsed.vectors:,} vectors of dimension {parsed.width}, ten nearest of {parsed.questions} queries, {available_cores()} cores")
    rate = parsed.vectors / speed.write_seconds
    print(f"written in {speed.write_seconds:.1f} s ({rate:,.0f} vectors/s), graph built in {speed.build_seconds:.1f} s")
    print(f"exact: {speed.exact.text()}")
    if speed.approximate is None:
        print(f"approximate: not used, its recall is below {parsed.recall:g} ({speed.graph.text()})")
    else:
        print(f"approximate (ef {speed.graph.ef}): {speed.approximate.text()}; recall {speed.recall:.3f}")


def run_gpu(parsed: argparse.Namespace) -> None:
    """Run all benchmarks that need a GPU; print and save which targets are met. Raises TesseraError unless all are."""
    from benchmarks.benchmark_report import Machine
    from benchmarks.gpu_targets import check, check_device, check_targets, prepare_data, run_all

    device = check_device("gpu")
    if not (configuration.load(configuration.DEFAULT, []).data_folder / "samples.parquet").exists():
        prepare_data([[sys.executable, str(Path(__file__).with_name(command))] for command in DEMO_DATA])
    report = check_targets(run_all([sys.executable, __file__], parsed.out), Machine.current(device))
    show(parsed, report, "targets")
    check(report)


def run_report(parsed: argparse.Namespace) -> None:
    """Generate answers, and print the CPU time of the rest of an evaluation."""
    size = _pixels(parsed.size)
    for name, minimum in (("questions", 20), ("systems", 1), ("candidates", 1)):
        if getattr(parsed, name) < minimum:
            raise UsageError(f"--{name} {getattr(parsed, name)}: expected at least {minimum}")
    from benchmarks.report_speed import measure_report

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_report(Path(folder), parsed.questions, parsed.systems, parsed.candidates, size)
    print(f"{parsed.questions:,} questions, {parsed.systems} systems, {parsed.candidates} candidates each; CPU seconds:")
    print(f"selection, metrics and statistics {seconds.scoring_seconds:.1f}, report with charts and images {seconds.report_seconds:.1f}")


def answering(parsed: argparse.Namespace) -> None:
    """Start a server and send requests to it; print and save the table."""
    from benchmarks.serving import serving_throughput, transformers_comparison

    for name in ("clients", "questions", "rounds"):
        if getattr(parsed, name) < 1 + (name == "clients"):
            raise UsageError(f"--{name} {getattr(parsed, name)}: expected at least {1 + (name == 'clients')}")
    workload = serving_throughput.Workload(parsed.questions, parsed.clients, parsed.rounds)
    if parsed.against == "transformers":
        report = transformers_comparison.measure(parsed.config_path, parsed.overrides, workload)
        show(parsed, report, f"serve_{parsed.config.name}_against_transformers")
        return
    show(parsed, serving_throughput.measure(parsed.config_path, parsed.overrides, workload), "serve_" + parsed.config.name)


def main(parsed: argparse.Namespace) -> None:
    """Run the selected benchmark."""
    parsed.measure(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
