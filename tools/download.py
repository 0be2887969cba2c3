"""Download the pre-trained models of a configuration, in the revision that name@revision states. Prints the sizes first; after an
interruption, complete files are not downloaded again."""

import argparse
from pathlib import Path

import cli
import config as configuration
from model.hub.download import Hub, ModelScope, check_disk_space, format_bytes, select_files
from visual.config import iter_model_names

parser = cli.Parser(__doc__)
parser.add_argument("--source", default="hub", choices=("hub", "modelscope"), help="where to download from (default: the Hugging Face hub)")
INTO = Path("checkpoints/parts")
parser.add_argument("--into", type=Path, default=INTO, metavar="DIR", help="target folder for ModelScope (default: %(default)s)")
parser.add_argument("--sizes", action="store_true", help="print the sizes and download nothing")


def main(arguments: argparse.Namespace) -> None:
    """List the models, download missing files, and print the overrides that name them."""
    keys: dict[str, list[str]] = {}
    for key, name in iter_model_names(arguments.config):
        configuration.check_model_paths(arguments.config, key)
        keys.setdefault(name, []).append(key)
    remote = []
    for name in keys:
        if Path(name).is_dir():
            print(f"{', '.join(keys[name])}: {name} is a local folder")
        else:
            remote.append(name)
    if not remote:
        return
    source: Hub | ModelScope = Hub() if arguments.source == "hub" else ModelScope(arguments.into)
    files = {name: select_files(source.files(name)) for name in remote}
    missing = {name: sum(file.size for file in files[name] if not file.is_cached) for name in remote}
    for name in remote:
        total = format_bytes(sum(file.size for file in files[name]))
        print(f"{', '.join(keys[name])}: {name}, {len(files[name])} files, {total}, to download: {format_bytes(missing[name])}")
    print(f"total to download: {format_bytes(sum(missing.values()))} into {source.folder}", flush=True)
    check_disk_space(source.folder, sum(missing.values()))
    if arguments.sizes:
        return
    for name in remote:
        if not all(file.is_cached for file in files[name]):
            print(f"{name} -> {source.fetch(name, files[name])}")
    if arguments.source == "modelscope":
        print("use with: " + " ".join(f"{key}={arguments.into / name}" for name in remote for key in keys[name]))


if __name__ == "__main__":
    cli.run(main, parser)
