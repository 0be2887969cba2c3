"""Measure the speed or the memory of one part of the program, on generated data."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

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
    preprocess = parser.add_part("preprocess", "merging annotation files and images, for the first time and again", run_preprocess)
    preprocess.add_number("--images", 4000, "image files")
    preprocess.add_number("--records", 20_000, "records about them")
    _add_pixels(preprocess)
    what = "the same data as files, in Parquet shards and packed: merging, random reads, and streaming without a merge"
    sources = parser.add_part("sources", what, run_sources)
    sources.add_number("--images", 4000, "image files")
    sources.add_number("--records", 20_000, "records about them")
    sources.add_number("--streamed", 10_000, "samples that are streamed")
    sources.add_number("--rounds", 3, "merges and random reads of each kind, in turns")
    sources.add_argument("--folder", type=Path, metavar="DIR", help="empty folder for the data (default: a temporary one)")
    _add_pixels(sources)
    what = "images per second and core that are read for the model, by the data loader and by the image processor alone"
    images = parser.add_part("images", what, run_image_reading)
    _add_pixels(images)
    images.add_number("--side", 384, "input side of the vision encoder in pixels")
    what = "training steps of ours and of stock LlavaForConditionalGeneration + PEFT, interleaved, or runs of ours and of TRL's SFTTrainer"
    train = parser.add_part("train", what, training)
    _add_size(train, samples=128, unit="samples per block", against=("stock", "nothing", "trl"))
    train.add_number("--stock-batch", None, "largest batch size of the stock model; halved until it fits")
    what = "with --against trl, the configuration whose data and model are trained (default: %(default)s)"
    train.add_argument("--config", type=Path, default=configuration.DEFAULT, metavar="YAML", help=what)
    train.add_argument("--steps", type=int, default=60, metavar="N", help="with --against trl, steps of a run (default: %(default)s)")
    what = "candidates of ours and of stock `generate`, unbatched and batched, interleaved, with full-size random weights"
    generate = parser.add_part("generate", what, against_stock)
    _add_size(generate, samples=96, unit="questions per block")
    generate.add_number("--stock-batch", 16, "largest batch size of stock `generate`")
    what = "loss parity of our training step and stock LLaVA + PEFT, trained on the same samples of an experiment"
    equality = parser.add_part("equality", what, run_equality, takes_config=True)
    equality.add_number("--steps", 200, "optimizer steps")
    equality.add_number("--every", 50, "steps between validations")
    _add_out(equality)
    memory_command.add_parts(parser)
    what = "all of the above that need a GPU, with all tables in one folder, and which targets are met; takes hours on a small GPU"
    gpu = parser.add_part("gpu", what, run_gpu)
    gpu.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="folder of all tables (default: %(default)s)")
    _add_evaluation_parts(parser)
    return parser


def _add_evaluation_parts(parser: cli.Parser) -> None:
    """Subcommands about search, reports, comparisons of families and the service."""
    what = "image search in a large index, exact and approximate: latency, and recall of the ten nearest"
    search = parser.add_part("search", what, run_search)
    search.add_number("--vectors", 100_000, "vectors in the index")
    search.add_number("--width", 512, "dimension of a vector")
    search.add_number("--questions", 200, "queries of each kind")
    search.add_argument("--recall", type=float, default=0.95, metavar="R", help="least recall of approximate search (default: %(default)s)")
    what = "statistics and report of an evaluation, on generated questions, images and answers"
    report = parser.add_part("report", what, run_report)
    report.add_number("--questions", 1000, "questions", minimum=20)
    report.add_number("--systems", 2, "systems that are compared")
    report.add_number("--candidates", 5, "candidates per question")
    _add_pixels(report)
    what = "quality and cost of several configurations, such as one of each model family, trained on the same data"
    families = parser.add_part("families", what, run_families)
    families.add_argument("configs", type=Path, nargs="+", metavar="YAML", help="configurations")
    families.add_argument("--name", default="families", help="of the comparison; results/<name> (default: %(default)s)")
    families.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="seeds of the runs (default: 0 1)")
    families.add_number("--steps", 200, "steps of the last stage")
    families.add_number("--questions", 400, "questions of the evaluation")
    what = "throughput of the HTTP service with many concurrent clients against a single one, or beside that of `transformers serve`"
    serve = parser.add_part("serve", what, answering, takes_config=True)
    serve.add_argument("--against", choices=("one-client", "transformers"), default="one-client", help="default: %(default)s")
    serve.add_number("--clients", 16, "concurrent clients", minimum=2)
    serve.add_number("--questions", 64, "questions per block")
    serve.add_number("--rounds", 5, "interleaved blocks per number of clients")
    _add_out(serve)


def _add_size(parser: cli.Parser, samples: int, unit: str, against: Sequence[str] = ("stock", "nothing")) -> None:
    """Arguments of the parts that compare with the stock model."""
    parser.add_argument("--size", choices=SIZES, default="tiny", help="size of the model (default: %(default)s)")
    parser.add_argument("--against", choices=against, default="stock", help="what ours is compared with (default: %(default)s)")
    parser.add_number("--samples", samples, unit)
    parser.add_number("--rounds", 5, "interleaved blocks of each path")
    _add_out(parser)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="override a key of the size's recipe in configs/")


def _add_out(parser: cli.Parser) -> None:
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="folder of the table (default: %(default)s)")


def _add_pixels(parser: cli.Parser) -> None:
    parser.add_argument("--size", default="640x480", metavar="WxH", help="size of an image in pixels (default: %(default)s)")


def run_preprocess(parsed: argparse.Namespace) -> None:
    """Write synthetic sources, merge them three times, and print seconds, records per second and memory."""
    size = _pixels(parsed.size)
    with tempfile.TemporaryDirectory() as folder:
        config = run_in_subprocess(write_synthetic_sources, Path(folder) / "raw", parsed.images, parsed.records, size)
        runs = measure_merges(config, Path(folder) / "merged")
    print(f"{parsed.records:,} records on {parsed.images:,} images of {parsed.size}")
    for name, run in runs.items():
        faster = "" if run is runs["first"] else f", {runs['first'].seconds / run.seconds:.1f} times as fast as the first"
        print(f"{name}: {run.seconds:.2f} s, {run.records / run.seconds:,.0f} records/s, at most {run.peak_bytes / 2**20:,.0f} MiB{faster}")


def run_sources(parsed: argparse.Namespace) -> None:
    """Write the same data in several forms, and print what reading them takes."""
    from benchmarks.data_sources import compare_sources

    size = _pixels(parsed.size)
    with contextlib.nullcontext(parsed.folder) if parsed.folder else tempfile.TemporaryDirectory() as folder:
        print(f"{parsed.records:,} records on {parsed.images:,} images of {parsed.size}")
        for line in compare_sources(Path(folder), parsed.images, parsed.records, size, parsed.streamed, parsed.rounds):
            print(line, flush=True)


def run_image_reading(parsed: argparse.Namespace) -> None:
    """Read images in both ways, and print images per second of CPU time."""
    size = _pixels(parsed.size)
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
    against_stock(parsed)


def against_stock(parsed: argparse.Namespace) -> None:
    """Measure training steps or candidates of ours and of the stock model; print and save the table."""
    config = recipe(parsed)
    # Not at the top: merges are measured in processes that import this module, and torch would add to their memory.
    from answering.answerer_factory import default_device
    from benchmarks import generation_speed
    from benchmarks.timing import Workload
    from benchmarks.training import train_step

    model, device = own_model(config), default_device()
    workload = Workload(parsed.samples, parsed.rounds, parsed.stock_batch, parsed.against == "stock")
    if parsed.part == "train":
        report = train_step.measure(parsed.size, model, config.train, workload, device)
    else:
        report = generation_speed.measure(parsed.size, model, config.decoding, workload, device)
    show(parsed, report, f"{parsed.part}_{parsed.size}")


def run_equality(parsed: argparse.Namespace) -> None:
    """Train both sides on the same samples; print and save the table. Raises TesseraError if the losses differ."""
    from benchmarks.training.loss_parity import check, measure

    report = measure(parsed.config, parsed.steps, parsed.every)
    show(parsed, report, f"equality_{parsed.config.name}")
    check(report)


def run_families(parsed: argparse.Namespace) -> None:
    """Train and evaluate the configurations; print the table."""
    if len(set(parsed.seeds)) < len(parsed.seeds):
        raise UsageError(f"--seeds {' '.join(map(str, parsed.seeds))}: expected different ones")
    from benchmarks.family_comparison import Comparison, compare_families

    configs = [(path, configuration.load(path)) for path in parsed.configs]
    print(f"\n{compare_families(Comparison(parsed.name, configs, parsed.seeds, parsed.steps, parsed.questions))}", end="")


def run_search(parsed: argparse.Namespace) -> None:
    """Fill an index, run exact and approximate queries, and print their latency."""
    from benchmarks.image_search_speed import measure_search

    with tempfile.TemporaryDirectory() as folder:
        speed = measure_search(folder, parsed.vectors, parsed.width, parsed.questions, parsed.recall)
    print(f"{parsed.vectors:,} vectors of dimension {parsed.width}, ten nearest of {parsed.questions} queries, {available_cores()} cores")
    rate = parsed.vectors / speed.write_seconds
    print(f"written in {speed.write_seconds:.1f} s ({rate:,.0f} vectors/s), graph built in {speed.build_seconds:.1f} s")
    print(f"exact: {speed.exact}")
    if speed.approximate is None:
        print(f"approximate: not used, its recall is below {parsed.recall:g} ({speed.graph.text()})")
    else:
        print(f"approximate (ef {speed.graph.ef}): {speed.approximate}; recall {speed.recall:.3f}")


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
    from benchmarks.report_speed import measure_report

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure_report(Path(folder), parsed.questions, parsed.systems, parsed.candidates, size)
    print(f"{parsed.questions:,} questions, {parsed.systems} systems, {parsed.candidates} candidates each; CPU seconds:")
    print(f"selection, metrics and statistics {seconds.scoring_seconds:.1f}, report with charts and images {seconds.report_seconds:.1f}")


def answering(parsed: argparse.Namespace) -> None:
    """Start a server and send requests to it; print and save the table."""
    from benchmarks.serving.serving_throughput import Workload, measure, measure_against_transformers

    name, run = f"serve_{parsed.config.name}", measure
    if parsed.against == "transformers":
        name, run = f"{name}_against_transformers", measure_against_transformers
    show(parsed, run(parsed.config_path, parsed.overrides, Workload(parsed.questions, parsed.clients, parsed.rounds)), name)


def main(parsed: argparse.Namespace) -> None:
    """Run the selected benchmark."""
    parsed.command(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
