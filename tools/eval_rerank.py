"""Ask the systems of an experiment the questions of a split, rerank, compare, and write the report."""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

import cli
import config as configuration
from answering.build import build_answerer, build_untuned, load_scorer
from dataset.store import Store
from errors import UsageError
from evaluation.asking import NamedScorer
from evaluation.bars import missed
from evaluation.report import write_report
from evaluation.run import Experiment, evaluate
from evaluation.systems import only, with_checkpoints
from evaluation.tables import tables

parser = cli.Parser(__doc__ or "")
parser.add_argument(
    "--checkpoints", type=Path, nargs="+", default=[], metavar="DIR", help="these take the place of the configured checkpoints"
)
parser.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="only these systems")
parser.add_argument("--limit", type=int, metavar="N", help="ask at most N questions, chosen by a hash (eval.limit)")
parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: results/<name>)")


def main(arguments: argparse.Namespace) -> int:
    """Answer, score, print the tables, and name the report; 1 where a bar of the experiment is missed."""
    config: configuration.Config = arguments.config
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: expected a number of questions, at least 1")
    systems = only(with_checkpoints(config.eval.systems, arguments.checkpoints), arguments.systems)
    settings = dataclasses.replace(config.eval, systems=systems, limit=arguments.limit or config.eval.limit)
    config = dataclasses.replace(config, eval=settings)
    configuration.check_parts(config, "rerank.clip", *(f"eval.systems.{i}.path" for i in range(len(systems))))

    experiment = Experiment(
        name=config.name,
        store=Store(config.data_folder),
        out=arguments.out or config.result_folder,
        settings=settings,
        decoding=config.decoding,
        rerank=config.rerank,
    )
    scorer = NamedScorer(config.rerank.clip, load_scorer(config.rerank.clip)) if config.rerank.clip else None
    outcome = evaluate(
        experiment,
        load=partial(build_answerer, checkpoint_folder=config.checkpoint_folder),
        load_untuned=partial(build_untuned, checkpoint_folder=config.checkpoint_folder),
        scorer=scorer,
    )
    report = write_report(outcome, experiment)
    print(tables(outcome.summary))
    print(f"report: {report}")
    if names := missed(outcome.summary.get("bars", [])):
        print(f"missed: {', '.join(f'eval.bars.{name}' for name in names)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main, parser)
