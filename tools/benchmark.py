"""Measure how fast a part of the program is, on data that it makes up."""

import argparse
import tempfile
from pathlib import Path

import cli
from dataset.benchmark import apart, draw_raw_files, measure_merges
from errors import UsageError


def arguments() -> cli.Parser:
    """The command line: one subcommand for each part."""
    parser = cli.Parser(__doc__ or "", configured=False)
    what = "merging annotation files and pictures, the first time and again"
    preprocess = parser.add_parts().add_parser("preprocess", description=what, help=what, configured=False)
    preprocess.add_argument("--pictures", type=int, default=4000, metavar="N", help="picture files (default: %(default)s)")
    preprocess.add_argument("--records", type=int, default=20_000, metavar="N", help="records about them (default: %(default)s)")
    preprocess.add_argument("--size", default="640x480", metavar="WxH", help="pixels of a picture (default: %(default)s)")
    preprocess.set_defaults(measure=preprocessing)
    return parser


def preprocessing(parsed: argparse.Namespace) -> None:
    """Draw, merge three times, and print seconds, records a second and memory of each."""
    width, _, height = parsed.size.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UsageError(f"--size {parsed.size}: expected width x height in pixels, such as 640x480")
    if parsed.pictures < 1 or parsed.records < 1:
        raise UsageError("--pictures and --records: at least 1 is needed")
    with tempfile.TemporaryDirectory() as folder:
        config = apart(draw_raw_files, Path(folder) / "raw", parsed.pictures, parsed.records, (int(width), int(height)))
        runs = measure_merges(config, Path(folder) / "merged")
    print(f"{parsed.records:,} records on {parsed.pictures:,} pictures of {parsed.size}")
    first = runs["first"].seconds
    for name, run in runs.items():
        faster = "" if run is runs["first"] else f", {first / run.seconds:.1f} times as fast as the first"
        print(f"{name}: {run.seconds:.2f} s, {run.records / run.seconds:,.0f} records/s, at most {run.peak_bytes / 2**20:,.0f} MiB{faster}")


def main(parsed: argparse.Namespace) -> None:
    """Measure the part that was asked for."""
    parsed.measure(parsed)


if __name__ == "__main__":
    cli.run(main, arguments())
