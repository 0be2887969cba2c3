"""Show a sample as the model sees it: token ids with their text, images, and supervised positions."""

import argparse
import sys

import cli
import config as configuration
from errors import UsageError

parser = cli.Parser(__doc__ or "")
sample_group = parser.add_mutually_exclusive_group()
sample_group.add_argument("--index", type=int, default=0, metavar="N", help="row in samples.parquet, from 0 (default: %(default)s)")
sample_group.add_argument("--sample", metavar="ID", help="sample_id")
parser.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch for which the target is sampled (default: %(default)s)")


def main(arguments: argparse.Namespace) -> None:
    """Print a sample. Supervised tokens are green on a terminal and marked with + elsewhere."""
    config: configuration.Config = arguments.config
    # Imported here: --help and wrong arguments need no torch.
    from dataset.loading.sample_store import SampleStore
    from model.family import family
    from model.sample_inspection import describe_sample

    store = SampleStore(config.data_folder)
    index = store.row_index(arguments.sample) if arguments.sample else arguments.index
    if not 0 <= index < len(store):
        raise UsageError(f"--index {index}: {config.data_folder} has the rows 0 to {len(store) - 1}")
    configuration.check_model_paths(config, *(f"model.{key}" for key in config.model.base_models))
    processor = family(config.model.family).processor(config.model)
    for line in describe_sample(store, store.sample(index), processor, config.train.seed, arguments.epoch, sys.stdout.isatty()):
        print(line)


if __name__ == "__main__":
    cli.run(main, parser)
