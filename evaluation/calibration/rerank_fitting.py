"""Fit the rerank on the validation split; candidates and references of the test split are never read here.

Shared by all systems: fusion weights, form of the CLIP scores, skipped question types. Per system: a learned fusion and a calibrated
confidence. The result is rerank plans of plain numbers, and the accuracy that cross-validation measures for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest

import numpy as np

from answering.config import RerankConfig, RerankWeights
from answering.protocol import ImageInput
from answering.question_types import SkippableQuestionType, skippable_question_type
from answering.rerank.calibration_range import fit_calibration_range
from answering.rerank.candidate_scores import SELF_EVALUATION
from answering.rerank.choose_answer import RerankPlan, displayed_choice, select_candidates
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import Form, components, features, fuse
from evaluation.answer_selection import RerankPlans, fill_missing_signals
from evaluation.calibration.probability_fits import fit_logistic, group_k_fold, isotonic
from evaluation.metrics.short_answers import vqa_accuracy
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.schema.summary_file import QuestionTypeGain, SystemValidation, TunedGain, ValidationFigures
from evaluation.scoring.confidence_metrics import reliability
from evaluation.statistics import Difference, clusters, compare, verdict, with_verdicts

LIKELIHOOD_WEIGHTS = tuple(round(step * 0.05, 2) for step in range(21))
"""Likelihood weights of the grid search; CLIP gets the rest."""
SELF_EVALUATION_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Self-evaluation weights of the grid search, where a system evaluates its own candidates."""
L2_STRENGTHS = (0.3, 3.0, 30.0)
"""L2 penalties tried for the learned fusion."""
_TOLERANCE = 1e-9

FusionSetting = tuple[Form, RerankWeights]
"""Form of the CLIP scores, and weights."""


@dataclass(frozen=True, slots=True)
class ValidationExample:
    """A question of the validation split, with zeros where a scorer gave its candidates no scores.

    kind: its type if reranking can skip that type. accuracies: VQA accuracy [candidates].
    """

    question: Question
    prediction: Prediction
    kind: SkippableQuestionType | None
    accuracies: np.ndarray


def _validation_examples(
    questions: Sequence[Question], predictions: Sequence[Prediction], references: Mapping[str, Sequence[str]]
) -> list[ValidationExample]:
    """The questions that did not fail, in order."""
    return [
        ValidationExample(
            question,
            prediction,
            skippable_question_type(question.text, question.request.language),
            np.array([vqa_accuracy(candidate.text, references[prediction.sample_id]) for candidate in prediction.candidates]),
        )
        for question, prediction in zip(questions, fill_missing_signals(predictions), strict=True)
        if prediction.candidates
    ]


def tune(
    answered: Mapping[str, tuple[Sequence[Question], Sequence[Prediction]]],
    references: Mapping[str, Sequence[str]],
    rerank: RerankConfig,
    resamples: int,
    seed: int,
    images: Sequence[ImageInput] = (),
) -> RerankPlans:
    """Fit the rerank plans of all systems.

    Weights, form and skipped question types are shared, so that no system is favoured. The configured weights stay unless
    cross-validation finds better ones. A question type is reranked rather than skipped only if its gain, with weights chosen on other
    questions, is significant after Holm correction.

    Args:
        answered: system -> its short questions of the validation split and its predictions for them
        references: reference answers by sample id
        rerank: configured weights, form, skipped question types and calibration
        resamples: resamples of the significance test
        seed: seed of folds and test
        images: of the whole split, from which the confidence knows what images are like; none for those of the questions alone
    """
    examples = {name: _validation_examples(*pair, references) for name, pair in answered.items()}
    configured_plan = RerankPlan(rerank.weights, rerank.clip_score_form, rerank.skipped_question_types)
    rows = [example for system_examples in examples.values() for example in system_examples]
    pooled_clusters = _clusters(rows)
    if len(set(pooled_clusters.tolist())) < 2:
        return RerankPlans(configured_plan, {}, "default", ValidationFigures(len(rows)))
    plan, chosen_on, report = _tune_weights(rows, pooled_clusters, configured_plan, resamples, seed)
    plan, by_type = _tune_skipped_question_types(rows, pooled_clusters, plan, resamples, seed)
    plans, by_system = {}, {}
    for name, system_examples in examples.items():
        plans[name], by_system[name] = _fit_system(system_examples, plan, rerank, seed, images)
    return RerankPlans(plan, plans, chosen_on, replace(report, skipped_question_types=by_type, systems=by_system))


def _clusters(examples: Sequence[ValidationExample]) -> np.ndarray:
    """Cluster of each row, also over several systems: questions about one image share a cluster."""
    return clusters([example.question.image_ids for example in examples])


def _tune_weights(
    rows: Sequence[ValidationExample], groups: np.ndarray, configured_plan: RerankPlan, resamples: int, seed: int
) -> tuple[RerankPlan, str, ValidationFigures]:
    """Choose weights and form by grid search. Returns the plan, where it was chosen, and the cross-validated accuracies.

    A question of a skipped type counts with its first candidate whatever the weights, so it does not influence them.
    """
    settings = _settings_grid(rows, configured_plan)
    first = np.array([example.accuracies[0] for example in rows])
    table = np.where([example.kind in configured_plan.skipped_question_types for example in rows], first, _accuracies(rows, settings))
    held_out = np.empty(len(rows))
    for train_mask, held_out_mask in group_k_fold(groups, seed):
        held_out[held_out_mask] = table[_best_setting(table[:, train_mask].mean(axis=1), settings), held_out_mask]
    gain = _gain(held_out, table[0], groups, resamples, seed)
    report = ValidationFigures(
        questions=len(rows),
        first=float(first.mean()),
        configured=float(table[0].mean()),
        tuned_held_out=float(held_out.mean()),
        tuned_gain=TunedGain(gain.difference, gain.p_value, verdict(gain, gain.p_value)),
        oracle=float(np.mean([example.accuracies.max() for example in rows])),
    )
    if held_out.mean() <= table[0].mean() + _TOLERANCE:
        return configured_plan, "default", report
    form, weights = settings[_best_setting(table.mean(axis=1), settings)]
    return replace(configured_plan, weights=weights, clip_score_form=form), "validation", report


def _settings_grid(rows: Sequence[ValidationExample], configured_plan: RerankPlan) -> list[FusionSetting]:
    """The grid of settings, starting with the configured one."""
    signals = [example.prediction.signals for example in rows]
    forms: list[Form] = ["softmax", "raw"]
    if all(signal.prior is not None for row in signals for name, signal in row.items() if name != SELF_EVALUATION):
        forms.append("prior_corrected")
    self_weights = SELF_EVALUATION_WEIGHTS if any(SELF_EVALUATION in row for row in signals) else (0.0,)
    grid: list[FusionSetting] = [(configured_plan.clip_score_form, configured_plan.weights)]
    for form, self_weight, likelihood in product(forms, self_weights, LIKELIHOOD_WEIGHTS):
        rest = 1 - self_weight
        weights = RerankWeights(likelihood=round(rest * likelihood, 3), clip=round(rest * (1 - likelihood), 3), self_evaluation=self_weight)
        grid.append((form, weights))
    return grid


def _accuracies(rows: Sequence[ValidationExample], settings: Sequence[FusionSetting]) -> np.ndarray:
    """Accuracy [settings, rows] of the candidate that each setting chooses; -1 for a setting whose weights all fall on missing signals."""
    accuracies = _pad_rows([example.accuracies for example in rows])
    parts = {}
    for form in dict.fromkeys(form for form, _ in settings):
        by_row = [components(example.prediction.candidates, example.prediction.signals, form) for example in rows]
        # Not every system evaluates its own candidates: a missing signal is constant, so it does not affect the choice.
        names = dict.fromkeys(name for row in by_row for name in row)
        zeros = [np.zeros(len(example.accuracies)) for example in rows]
        parts[form] = {name: _pad_rows([row.get(name, zero) for row, zero in zip(by_row, zeros, strict=True)]) for name in names}
    selected_accuracies = []
    for form, weights in settings:
        by_name = {"likelihood": weights.likelihood, "clip": weights.clip, SELF_EVALUATION: weights.self_evaluation}
        if sum(by_name[name] for name in parts[form]) == 0.0:
            # All weight is on signals that do not exist: not a usable setting.
            selected_accuracies.append(np.full(len(rows), -1.0))
            continue
        fused = fuse(parts[form], weights)
        selected_accuracies.append(accuracies[np.arange(len(rows)), np.argmax(np.where(np.isnan(fused), -np.inf, fused), axis=1)])
    return np.array(selected_accuracies)


def _best_setting(accuracy: np.ndarray, settings: Sequence[FusionSetting]) -> int:
    """Index of the best setting; ties go to the one nearest to the configured setting, which comes first."""
    form, weights = settings[0]
    configured = _proportions(weights)

    def distance(index: int) -> tuple[bool, float]:
        return settings[index][0] != form, float(np.abs(_proportions(settings[index][1]) - configured).sum())

    return min(np.flatnonzero(accuracy > accuracy.max() - _TOLERANCE).tolist(), key=distance)


def _proportions(weights: RerankWeights) -> np.ndarray:
    values = np.array([weights.likelihood, weights.clip, weights.self_evaluation])
    return np.asarray(values / values.sum())


def _tune_skipped_question_types(
    rows: Sequence[ValidationExample], groups: np.ndarray, plan: RerankPlan, resamples: int, seed: int
) -> tuple[RerankPlan, dict[str, QuestionTypeGain]]:
    """Keep skipping the question types without a significant gain (Holm over the types). Returns the plan and figures per type.

    Skipped questions did not influence the plan's weights, so the measured gain is not due to overfitting.
    """
    reranked = _accuracies(rows, [(plan.clip_score_form, plan.weights)])[0]
    first = np.array([example.accuracies[0] for example in rows])
    masks = {kind: np.array([example.kind == kind for example in rows]) for kind in plan.skipped_question_types}
    differences = {kind: _gain(reranked[mask], first[mask], groups[mask], resamples, seed) for kind, mask in masks.items() if mask.any()}
    report = {
        kind: QuestionTypeGain(int(masks[kind].sum()), gain.difference, gain.p_value, gain.p_holm, gain.verdict != "a")
        for kind, gain in zip(differences, with_verdicts(list(differences.values())), strict=True)
    }
    skipped = tuple(kind for kind in plan.skipped_question_types if kind not in report or report[kind].skipped)
    return replace(plan, skipped_question_types=skipped), {str(kind): gain for kind, gain in report.items()}


def _gain(chosen: np.ndarray, others: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Difference:
    """Mean accuracy [questions] of the chosen candidates minus that of others."""
    _, part = np.unique(groups, return_inverse=True)
    (difference,) = compare(chosen[:, None], others[:, None], part, resamples, seed)
    return difference


def _fit_system(
    examples: Sequence[ValidationExample],
    shared_plan: RerankPlan,
    rerank: RerankConfig,
    seed: int,
    images: Sequence[ImageInput],
) -> tuple[RerankPlan, SystemValidation]:
    """A system's own plan: the shared plan plus learned fusion and confidence, if the questions have at least two clusters."""
    groups = _clusters(examples)
    if len(set(groups.tolist())) < 2:
        return shared_plan, SystemValidation(len(examples))
    learned, accuracy = _fit_fusion(examples, groups, shared_plan.skipped_question_types, seed)
    plan = replace(shared_plan, learned=learned)
    selections = [select_candidates(example.prediction.candidates, example.prediction.signals, plan, example.kind) for example in examples]
    indices = [selection[displayed_choice(selection)] for selection in selections]
    confidence, error = _fit_confidence(examples, indices, groups, rerank, seed, images)
    return replace(plan, confidence=confidence), SystemValidation(len(examples), accuracy, error)


def _fit_fusion(
    examples: Sequence[ValidationExample], groups: np.ndarray, skipped_types: Sequence[SkippableQuestionType], seed: int
) -> tuple[LogisticModel, float]:
    """Fit the learned fusion; nested cross-validation chooses the L2 penalty.

    Returns the model fitted on all examples, and the accuracy on questions held out from both the fit and the choice of the
    penalty. Questions of skipped types keep their first candidate.
    """
    tables = [features(example.prediction.candidates, example.prediction.signals) for example in examples]
    names = tuple(tables[0])
    stacked = [np.array([table[name] for name in names]).T for table in tables]

    def fit(rows: np.ndarray, l2: float) -> LogisticModel:
        return fit_logistic(names, np.concatenate([stacked[i] for i in rows]), np.concatenate([examples[i].accuracies for i in rows]), l2)

    def selected_accuracies(model: LogisticModel, rows: np.ndarray) -> list[float]:
        indices = [0 if examples[i].kind in skipped_types else int(np.argmax(model.probabilities(tables[i]))) for i in rows]
        return [float(examples[i].accuracies[index]) for i, index in zip(rows, indices, strict=True)]

    def held_out(rows: np.ndarray, l2: float) -> float:
        parts = [
            selected_accuracies(fit(rows[train_mask], l2), rows[held_out_mask])
            for train_mask, held_out_mask in group_k_fold(groups[rows], seed)
        ]
        return sum(map(sum, parts)) / len(rows)

    def best(rows: np.ndarray) -> LogisticModel:
        return fit(rows, max(L2_STRENGTHS, key=lambda l2: (held_out(rows, l2), l2)))

    all_rows = np.arange(len(examples))
    held_out_accuracies = [
        selected_accuracies(best(all_rows[train_mask]), all_rows[held_out_mask]) for train_mask, held_out_mask in group_k_fold(groups, seed)
    ]
    return best(all_rows), sum(map(sum, held_out_accuracies)) / len(examples)


def _fit_confidence(
    examples: Sequence[ValidationExample],
    indices: Sequence[int],
    groups: np.ndarray,
    rerank: RerankConfig,
    seed: int,
    images: Sequence[ImageInput],
) -> tuple[Confidence, float]:
    """Fit the calibrated confidence of the candidates at `indices`, and the range of questions it holds for.

    Returns the confidence, and its calibration error on held-out questions. images: of the whole split; none for those of the questions
    alone.
    """
    tables = [
        confidence_features(example.prediction.candidates, index, example.prediction.signals)
        for example, index in zip(examples, indices, strict=True)
    ]
    names = tuple(tables[0])
    x = np.array([[table[name] for name in names] for table in tables])
    accuracies = np.array([example.accuracies[index] for example, index in zip(examples, indices, strict=True)])

    def fit(rows: np.ndarray, own_groups: np.ndarray) -> Confidence:
        model = fit_logistic(names, x[rows], accuracies[rows])
        if rerank.calibration == "logistic":
            return Confidence(model)
        # The isotonic steps are fitted to out-of-fold predictions of the logistic model.
        predicted, observed = np.empty(len(rows)), accuracies[rows]
        for train_mask, held_out_mask in group_k_fold(own_groups, seed + 1):
            predicted[held_out_mask] = _probabilities(
                fit_logistic(names, x[rows][train_mask], observed[train_mask]), x[rows][held_out_mask]
            )
        return Confidence(model, isotonic(predicted, observed))

    all_rows = np.arange(len(examples))
    held_out = np.empty(len(examples))
    for train_mask, held_out_mask in group_k_fold(groups, seed):
        held_out[held_out_mask] = _predict_confidence(fit(all_rows[train_mask], groups[train_mask]), x[held_out_mask])
    known_images = [tuple(images)] if images else [example.question.request.images for example in examples]
    calibration_range = fit_calibration_range([example.question.text for example in examples], known_images)
    return replace(fit(all_rows, groups), calibration_range=calibration_range), reliability(held_out, accuracies).ece


def _probabilities(model: LogisticModel, x: np.ndarray) -> np.ndarray:
    return np.array(model.probabilities({name: x[:, i].tolist() for i, name in enumerate(model.names)}))


def _predict_confidence(confidence: Confidence, x: np.ndarray) -> np.ndarray:
    values = _probabilities(confidence.model, x)
    return values if confidence.steps is None else np.array([confidence.steps(value) for value in values.tolist()])


def _pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, longest row], padded with NaN."""
    return np.array(list(zip_longest(*rows, fillvalue=np.nan))).T
