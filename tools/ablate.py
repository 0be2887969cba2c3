"""Train and judge variants of a configuration with several seeds on synthetic scenes, and report which of them helps.

What is finished stays: the same command goes on with the runs that are left. A run that failed is reported with its reason.
"""

import argparse
from pathlib import Path

import cli
from benchmarks.ablation import config as ablation_config

parser = cli.Parser(__doc__ or "", takes_config=False)
parser.add_argument(
    "--config", type=Path, default=Path("configs/ablation.yaml"), metavar="YAML", help="base, variants and seeds (default: %(default)s)"
)
parser.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="only these variants and the base")
parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help="these seeds instead of the configured ones")
parser.add_argument("--report", action="store_true", help="write the report from the results that are there; nothing is trained")
parser.add_argument("--retry-failed", action="store_true", help="also do the runs again that failed")
parser.add_argument("--out", type=Path, default=Path("docs/ablation"), metavar="DIR", help="results and report (default: %(default)s)")
explained = "synthetic data, and checkpoints while they are trained (default: %(default)s)"
parser.add_argument("--work", type=Path, default=Path("data/ablation"), metavar="DIR", help=explained)


def main(arguments: argparse.Namespace) -> None:
    """Do the runs that are left, and print the report."""
    ablation = ablation_config.load(arguments.config)
    ablation_config.check_variants(arguments.config, ablation_config.all_variants(ablation))
    # Imported here: --help and errors in the configuration need no torch.
    from benchmarks.ablation.ablation_report import REPORT_FILE, write_report
    from benchmarks.ablation.ablation_runs import Laboratory, carry_out, select, stored_results

    laboratory = Laboratory.of(ablation, arguments.out, arguments.work)
    selection = select(laboratory, arguments.variants, arguments.seeds, arguments.retry_failed)
    stored = stored_results(laboratory, None) if arguments.report else carry_out(laboratory, selection)
    print(f"\n{write_report(laboratory, stored, arguments.config)}")
    print(f"report: {arguments.out / REPORT_FILE}")


if __name__ == "__main__":
    cli.run(main, parser)
