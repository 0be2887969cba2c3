"""Settings of an evaluation, and the check for conflicting settings before any model is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from answering.config import CheckpointSystem, DecodingConfig, RerankConfig
from dataset.loading.sample_store import SampleStore
from errors import UsageError
from evaluation.config import EvalConfig
from evaluation.run.question_runner import NamedScorer
from evaluation.run.system_selection import check_groups

_REQUIRED_CONTROLS = {"shuffled_images": "shuffled_images", "min_lead": "shuffled_images", "untuned": "untuned"}
"""Threshold -> the control run that it needs."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Settings and data of an evaluation: name of the configuration, merged data, and folder of the results."""

    name: str
    store: SampleStore
    out: Path
    settings: EvalConfig
    decoding: DecodingConfig
    rerank: RerankConfig


def first_checkpoint(settings: EvalConfig) -> CheckpointSystem | None:
    """The first checkpoint among the systems; control runs and thresholds apply to it. None if there is no checkpoint."""
    return next((system for system in settings.systems if isinstance(system, CheckpointSystem)), None)


def check_experiment(experiment: Experiment, scorers: Sequence[NamedScorer]) -> None:
    """Raise UsageError for conflicting settings. Loads neither models nor questions."""
    settings, rerank = experiment.settings, experiment.rerank
    names = [system.name for system in settings.systems]
    if not names:
        raise UsageError("eval.systems: empty; name at least one system, or give --checkpoints")
    if duplicates := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UsageError(f"eval.systems: {', '.join(duplicates)} occurs more than once; system names must be unique")
    if settings.controls and first_checkpoint(settings) is None:
        raise UsageError("eval.controls: control runs need a checkpoint, but no system has kind: checkpoint")
    for threshold, control in _REQUIRED_CONTROLS.items():
        if getattr(settings.thresholds, threshold) is not None and control not in settings.controls:
            raise UsageError(f"eval.thresholds.{threshold}: this threshold needs the control {control}, which is not in eval.controls")
    check_groups(settings)
    if rerank.tune and not scorers and not rerank.self_evaluation:
        raise UsageError("rerank.tune: there are no scores to weight without rerank.clip, rerank.scorers or rerank.self_evaluation")
    if rerank.abstain_below is not None and not rerank.tune:
        raise UsageError("rerank.abstain_below: the confidence is fitted on the validation split; set rerank.tune to true")
    if rerank.clip_score_form == "prior_corrected" and not rerank.background_images:
        raise UsageError("rerank.clip_score_form: prior_corrected needs background images; set rerank.background_images to their number")
    if rerank.tune and settings.split == "validation":
        raise UsageError("rerank.tune: weights are chosen on the validation split, so eval.split must be another split")
    if rerank.weights.likelihood + rerank.weights.clip == 0:
        raise UsageError("rerank.weights: likelihood and clip are both zero; at least one must be positive")
