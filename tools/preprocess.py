"""Merge the sources of an experiment into data/<name>/."""

import argparse
from pathlib import Path

import cli
import config as configuration
from dataset.build.json_export import write_json_pair
from dataset.build.merge import merge

parser = cli.Parser(__doc__ or "")
parser.add_argument("--json", type=Path, metavar="DIR", help="also write image_map.json and annotations.json there")


def main(arguments: argparse.Namespace) -> None:
    """Merge, print the report, and name what was written."""
    config: configuration.Config = arguments.config
    configuration.check_source_paths(config)
    report = merge(config.data, config.data_folder)
    print(report.table())
    if report.reused:
        print(f"{config.data_folder} is as the last merge left it: no setting and no file has changed since")
    else:
        print(f"written to {config.data_folder}: images.parquet, samples.parquet, report.json")
    if arguments.json:
        write_json_pair(config.data_folder, arguments.json)
        print(f"written to {arguments.json}: image_map.json, annotations.json")


if __name__ == "__main__":
    cli.run(main, parser)
