"""Evaluate the configured systems: answer the questions of a split, rerank, compare, and write the report.

Under `accelerate launch`, the questions are split between the ranks.
"""

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path

import cli
import config as configuration
from answering.config import scorer_keys, with_abstain_below
from errors import UsageError
from evaluation.run.system_selection import learning_curve_settings, list_checkpoints, select_systems, with_checkpoints

parser = cli.Parser(__doc__ or "")
parser.add_argument(
    "--checkpoints", type=Path, nargs="+", default=[], metavar="DIR", help="evaluate these checkpoints instead of the configured ones"
)
parser.add_argument(
    "--curve", type=Path, metavar="DIR", help="learning curve: evaluate all checkpoints of this training run and plot accuracy over steps"
)
parser.add_argument("--systems", nargs="+", default=[], metavar="NAME", help="evaluate only these systems")
parser.add_argument("--limit", type=int, metavar="N", help="use at most N questions, selected by a hash (eval.limit)")
parser.add_argument(
    "--abstain-below", type=float, metavar="P", help='answer "not sure" where the confidence is below P (rerank.abstain_below)'
)
parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: results/<name>)")
parser.add_argument("--tables", action="store_true", help="print all tables of report.md, too")


def main(arguments: argparse.Namespace) -> int:
    """Run the evaluation, print what was found. Returns the exit status: 1 if a threshold is missed, else 0."""
    config: configuration.Config = arguments.config
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit}: expected a number of questions of at least 1")
    if arguments.curve is not None and arguments.checkpoints:
        raise UsageError("--curve: evaluates all checkpoints of a run and cannot be combined with --checkpoints")
    # What imports torch is imported here: --help and wrong arguments need none of it.
    from answering.answerer_factory import build_answerer, build_scorers, build_untuned, check_decoding, check_system
    from dataset.loading.sample_store import SampleStore
    from evaluation.report.terminal_summary import render_tables, terminal_summary
    from evaluation.report.write_report import write_report
    from evaluation.run.evaluation_run import score_evaluation
    from evaluation.run.evaluation_setup import Experiment
    from evaluation.run.question_runner import NamedScorer
    from evaluation.run.system_runner import run_all_systems
    from process_group import init_process_group, main_process_only

    checkpoints = arguments.checkpoints if arguments.curve is None else list_checkpoints(arguments.curve)
    systems = select_systems(with_checkpoints(config.eval.systems, checkpoints), arguments.systems)
    settings = dataclasses.replace(config.eval, systems=systems, limit=arguments.limit or config.eval.limit)
    if arguments.curve is not None:
        settings = learning_curve_settings(settings)
    config = dataclasses.replace(config, eval=settings, rerank=with_abstain_below(config.rerank, arguments.abstain_below))
    configuration.check_model_paths(config, *scorer_keys(config.rerank))
    for i, system in enumerate(systems):
        check_system(system, f"eval.systems.{i}.")
    check_decoding(config.decoding, systems)

    experiment = Experiment(
        name=config.name,
        store=SampleStore(config.data_folder),
        out=arguments.out or config.result_folder,
        settings=settings,
        decoding=config.decoding,
        rerank=config.rerank,
    )
    folder = config.checkpoint_folder
    load, load_untuned = partial(build_answerer, checkpoint_folder=folder), partial(build_untuned, checkpoint_folder=folder)
    with init_process_group() as process_group, main_process_only(process_group.is_main_process):
        scorers = [
            NamedScorer(scorer_config.path, scorer, name, scorer_config.languages, config.rerank.statement_form)
            for name, (scorer_config, scorer) in build_scorers(config.rerank).items()
        ]
        evaluation_run = run_all_systems(experiment, load, load_untuned, scorers, process_group)
    if not process_group.is_main_process:
        return 0
    evaluation_result = score_evaluation(experiment, evaluation_run)
    report = write_report(evaluation_result, experiment)
    if arguments.tables:
        print(render_tables(evaluation_result.summary))
        print()
    print(terminal_summary(evaluation_result.summary, report))
    if names := [threshold.name for threshold in evaluation_result.summary.thresholds or () if not threshold.met]:
        print(f"missed: {', '.join(f'eval.thresholds.{name}' for name in names)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    cli.run(main, parser)
