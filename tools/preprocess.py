"""Merge the data sources of an experiment into data/<name>/."""

import argparse
from pathlib import Path

import cli
import config as configuration

parser = cli.Parser(__doc__ or "")
parser.add_argument("--json", type=Path, metavar="DIR", help="also write image_map.json and annotations.json to this folder")


def main(arguments: argparse.Namespace) -> None:
    """Merge the sources; print the report and the names of the written files."""
    config: configuration.Config = arguments.config
    configuration.check_source_paths(config)
    # Imported here: --help and wrong arguments need neither pyarrow nor Pillow.
    from dataset.build.json_export import export_json
    from dataset.build.merge import merge
    from dataset.build.merge_report import DROPPED_FILE
    from dataset.streaming.held_out import set_aside

    report = (set_aside if config.data.streaming else merge)(config.data, config.data_folder)
    print(report.table())
    if dropped := sum(sum(source.dropped.values()) for source in report.sources):
        print(f"all {dropped:,} dropped records: {config.data_folder / DROPPED_FILE}")
    if report.reused:
        print(f"{config.data_folder} is up to date: no setting and no file has changed since the last merge")
    elif config.data.streaming:
        print(f"written to {config.data_folder}: validation and test samples, for training that streams the others")
    else:
        print(f"written to {config.data_folder}: images.parquet, samples.parquet, report.json, dropped.jsonl")
    if arguments.json:
        export_json(config.data_folder, arguments.json)
        print(f"written to {arguments.json}: image_map.json, annotations.json")


if __name__ == "__main__":
    cli.run(main, parser)
