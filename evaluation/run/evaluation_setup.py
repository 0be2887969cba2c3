"""What is evaluated, and how; settings that do not fit together are found before anything is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from dataset.loading.sample_store import SampleStore
from errors import UsageError
from evaluation.config import EvalConfig
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_groups import check_groups
from evaluation.scoring.thresholds import check_thresholds


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is evaluated, how, and the folder `out` that takes the results."""

    name: str
    store: SampleStore
    out: Path
    settings: EvalConfig
    decoding: DecodingConfig
    rerank: RerankConfig


def first_checkpoint(settings: EvalConfig) -> CheckpointSystem | None:
    """The system that the controls are run for."""
    return next((system for system in settings.systems if isinstance(system, CheckpointSystem)), None)


def check_experiment(experiment: Experiment, scorers: Sequence[NamedScorer]) -> None:
    """Raises UsageError for settings that do not fit together; nothing is loaded, and no question is looked at."""
    settings, rerank = experiment.settings, experiment.rerank
    names = [system.name for system in settings.systems]
    if not names:
        raise UsageError("eval.systems: empty; name at least one system, or give --checkpoints")
    if duplicates := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UsageError(f"eval.systems: {', '.join(duplicates)} stands there more than once; each system needs a name of its own")
    if settings.controls and first_checkpoint(settings) is None:
        raise UsageError("eval.controls: they are runs of a checkpoint, and no system has kind: checkpoint")
    check_thresholds(settings)
    check_groups(settings)
    if rerank.tune and not scorers and not rerank.self_evaluation:
        raise UsageError("rerank.tune: there is nothing to weigh without rerank.clip, rerank.scorers or rerank.self_evaluation")
    if rerank.abstain_below is not None and not rerank.tune:
        raise UsageError("rerank.abstain_below: what is credible is learned on the validation split; set rerank.tune to true")
    if rerank.clip_score_form == "prior_corrected" and not rerank.background_images:
        raise UsageError("rerank.clip_score_form: prior_corrected needs unrelated pictures; set rerank.background_images to their number")
    if rerank.tune and settings.split == "validation":
        raise UsageError("rerank.tune: weights are chosen on the validation split, so eval.split must be another one")
    if rerank.weights.likelihood + rerank.weights.clip == 0:
        raise UsageError("rerank.weights: both are zero; at least one must be positive")
