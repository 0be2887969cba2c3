"""Show a sample as the model sees it: token ids with their text, images, boxes, and supervised positions."""

import argparse
import sys
from pathlib import Path

import cli
import config as configuration
from errors import UsageError

parser = cli.Parser(__doc__ or "")
sample_group = parser.add_mutually_exclusive_group()
sample_group.add_argument("--index", type=int, default=0, metavar="N", help="row in samples.parquet, from 0 (default: %(default)s)")
sample_group.add_argument("--sample", metavar="ID", help="sample_id")
parser.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch for which the target is sampled (default: %(default)s)")

parser.add_argument("--save", type=Path, metavar="DIR", help="write the images of the sample, with its boxes, to this folder")


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
    sample = store.sample(index)
    for line in describe_sample(store, sample, processor, config.train.seed, arguments.epoch, sys.stdout.isatty()):
        print(line)
    if arguments.save is not None:
        from answering.rendering import save_boxes

        for path in save_boxes([store.load_image(image_id) for image_id in sample.image_ids], sample.regions, arguments.save / str(index)):
            print(f"written: {path}")


if __name__ == "__main__":
    cli.run(main, parser)
