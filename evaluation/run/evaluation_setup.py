"""What is evaluated, and how; settings that do not fit together are found before anything is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from dataset.loading.sample_store import Store
from errors import UsageError
from evaluation.config import EvalConfig
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_groups import check_groups
from evaluation.scoring.thresholds import check_bars


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is evaluated, how, and the folder `out` that takes the results."""

    name: str
    store: Store
    out: Path
    settings: EvalConfig
    decoding: DecodingConfig
    rerank: RerankConfig


def first_checkpoint(settings: EvalConfig) -> CheckpointSystem | None:
    """The system that the controls are run for."""
    return next((system for system in settings.systems if isinstance(system, CheckpointSystem)), None)


def check(experiment: Experiment, scorers: Sequence[NamedScorer]) -> None:
    """Raises UsageError for settings that do not fit together; nothing is loaded, and no question is looked at."""
    settings, rerank = experiment.settings, experiment.rerank
    names = [system.name for system in settings.systems]
    if not names:
        raise UsageError("eval.systems: empty; name at least one system, or give --checkpoints")
    if doubled := sorted(name for name, times in Counter(names).items() if times > 1):
        raise UsageError(f"eval.systems: {', '.join(doubled)} stands there more than once; each system needs a name of its own")
    if settings.controls and first_checkpoint(settings) is None:
        raise UsageError("eval.controls: they are runs of a checkpoint, and no system has kind: checkpoint")
    check_bars(settings)
    check_groups(settings)
    if rerank.tune and not scorers and not rerank.self_score:
        raise UsageError("rerank.tune: there is nothing to weigh without rerank.clip, rerank.scorers or rerank.self_score")
    if rerank.abstain_below is not None and not rerank.tune:
        raise UsageError("rerank.abstain_below: what is credible is learned on the validation split; set rerank.tune to true")
    if rerank.form == "prior_corrected" and not rerank.bank:
        raise UsageError("rerank.form: prior_corrected needs unrelated pictures; set rerank.bank to their number")
    if rerank.tune and settings.split == "validation":
        raise UsageError("rerank.tune: weights are chosen on the validation split, so eval.split must be another one")
    if rerank.weights.likelihood + rerank.weights.clip == 0:
        raise UsageError("rerank.weights: both are zero; at least one must be positive")
