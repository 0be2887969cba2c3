"""What the validation split teaches: weights, form and guard for all systems, a learned fusion and a credibility for each.

Here references meet candidates of the validation split, and only of it. Out come plans of plain numbers, and what cross-validation
says they are worth; the test split is not seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from answering.config import RerankConfig, RerankWeights
from answering.question_types import SkippableQuestionType, skippable_question_type
from answering.rerank.candidate_scores import SELF_EVALUATION, Signal
from answering.rerank.choose_answer import RerankPlan, displayed_choice, select_candidates
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.learned_fusion import features
from answering.rerank.logistic_regression import LogisticModel
from answering.rerank.score_fusion import Form, components, fuse
from evaluation.answer_selection import RerankPlans, fill_missing_signals
from evaluation.calibration.probability_fits import fit_logistic, group_k_fold, isotonic
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import vqa_accuracy
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.statistics import Difference, clusters, compare, holm, verdict

LIKELIHOOD_WEIGHTS = tuple(round(step * 0.05, 2) for step in range(21))
"""Weights of the likelihood that are tried; CLIP has the rest."""
SELF_EVALUATION_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Shares of the self-score that are tried, where there is one."""
L2_STRENGTHS = (0.3, 3.0, 30.0)
_TOLERANCE = 1e-9

FusionSetting = tuple[Form, RerankWeights]


@dataclass(frozen=True, slots=True)
class ValidationExample:
    """A question of the validation split, its candidates, and the official accuracy of each."""

    prediction: Prediction
    signals: dict[str, Signal]
    kind: SkippableQuestionType | None
    accuracies: np.ndarray


def tune(
    answered: Mapping[str, tuple[Sequence[Question], Sequence[Prediction]]],
    references: Mapping[str, Sequence[str]],
    rerank: RerankConfig,
    resamples: int,
    seed: int,
) -> RerankPlans:
    """Plans by system. answered: each system's short questions of the validation split and what it said to them.

    Weights, form and guard are common to all systems, so that none is favoured. The configured ones stay unless cross-validation
    finds better; the guard of a kind of questions is lifted only where the gain there is shown as a verdict is, with weights that
    were chosen on other questions.
    """
    examples = {name: _validation_examples(questions, predictions, references) for name, (questions, predictions) in answered.items()}
    groups = {name: clusters([question.image_ids for question in _with_candidates(*pair)]) for name, pair in answered.items()}
    configured_plan = RerankPlan(rerank.weights, rerank.clip_score_form, rerank.skipped_question_types)
    rows = [example for own in examples.values() for example in own]
    pooled_clusters = _pooled_clusters(answered)
    if len(set(pooled_clusters.tolist())) < 2:
        return RerankPlans(configured_plan, {}, "default", {"questions": len(rows)})
    plan, chosen_on, report = _tune_weights(rows, pooled_clusters, configured_plan, seed)
    plan, report["guard"] = _tune_skipped_question_types(rows, pooled_clusters, plan, resamples, seed)
    plans, by_system = {}, {}
    for name, own in examples.items():
        plans[name], by_system[name] = _fit_system(own, groups[name], plan, rerank, seed)
    return RerankPlans(plan, plans, chosen_on, {**report, "systems": by_system})


def _with_candidates(questions: Sequence[Question], predictions: Sequence[Prediction]) -> list[Question]:
    return [question for question, prediction in zip(questions, predictions, strict=True) if prediction.candidates]


def _pooled_clusters(answered: Mapping[str, tuple[Sequence[Question], Sequence[Prediction]]]) -> np.ndarray:
    """Cluster of each row of all systems: their questions about one picture share one."""
    return clusters([question.image_ids for pair in answered.values() for question in _with_candidates(*pair)])


def _validation_examples(
    questions: Sequence[Question], predictions: Sequence[Prediction], references: Mapping[str, Sequence[str]]
) -> list[ValidationExample]:
    """The questions that were answered, in order."""
    pairs = [(q, p) for q, p in zip(questions, fill_missing_signals(predictions), strict=True) if p.candidates]
    return [
        ValidationExample(
            prediction,
            prediction.signals,
            skippable_question_type(question.text, question.request.language),
            np.array([vqa_accuracy(candidate.text, references[prediction.sample_id]) for candidate in prediction.candidates]),
        )
        for question, prediction in pairs
    ]


def _tune_weights(
    rows: Sequence[ValidationExample], groups: np.ndarray, configured_plan: RerankPlan, seed: int
) -> tuple[RerankPlan, str, dict[str, Any]]:
    """The default or better weights and form, where they were chosen, and what cross-validation found.

    A guarded question counts with its first answer, whatever the weights, and so has no say in them.
    """
    settings = _settings_grid(rows, configured_plan)
    first = np.array([example.accuracies[0] for example in rows])
    table = np.where([example.kind in configured_plan.skipped_question_types for example in rows], first, _accuracies(rows, settings))
    held_out = np.empty(len(rows))
    for train_mask, held_out_mask in group_k_fold(groups, seed):
        held_out[held_out_mask] = table[_best_setting(table[:, train_mask].mean(axis=1), settings), held_out_mask]
    found = {
        "questions": len(rows),
        "first": float(first.mean()),
        "configured": float(table[0].mean()),
        "tuned_held_out": float(held_out.mean()),
        "oracle": float(np.mean([example.accuracies.max() for example in rows])),
    }
    if held_out.mean() <= table[0].mean() + _TOLERANCE:
        return configured_plan, "default", found
    form, weights = settings[_best_setting(table.mean(axis=1), settings)]
    return replace(configured_plan, weights=weights, clip_score_form=form), "validation", found


def _settings_grid(rows: Sequence[ValidationExample], configured_plan: RerankPlan) -> list[FusionSetting]:
    """What is tried, the configured setting first."""
    signals = [example.signals for example in rows]
    forms: list[Form] = ["softmax", "raw"]
    if all(one.prior is not None for own in signals for name, one in own.items() if name != SELF_EVALUATION):
        forms.append("prior_corrected")
    self_weights = SELF_EVALUATION_WEIGHTS if any(SELF_EVALUATION in own for own in signals) else (0.0,)
    found: list[FusionSetting] = [(configured_plan.clip_score_form, configured_plan.weights)]
    for form, self_weight, likelihood in product(forms, self_weights, LIKELIHOOD_WEIGHTS):
        rest = 1 - self_weight
        weights = RerankWeights(likelihood=round(rest * likelihood, 3), clip=round(rest * (1 - likelihood), 3), self_evaluation=self_weight)
        found.append((form, weights))
    return found


def _accuracies(rows: Sequence[ValidationExample], settings: Sequence[FusionSetting]) -> np.ndarray:
    """Accuracy [settings, rows] of the candidate that each setting takes."""
    accuracies = _pad_rows([example.accuracies for example in rows])
    parts = {}
    for form in dict.fromkeys(form for form, _ in settings):
        each = [components(example.prediction.candidates, example.signals, form) for example in rows]
        # Not every system judges itself: a signal that a row lacks is flat there, and so decides nothing.
        names = dict.fromkeys(name for one in each for name in one)
        zeros = [np.zeros(len(example.accuracies)) for example in rows]
        parts[form] = {name: _pad_rows([one.get(name, none) for one, none in zip(each, zeros, strict=True)]) for name in names}
    selected_accuracies = []
    for form, weights in settings:
        by_name = {"likelihood": weights.likelihood, "clip": weights.clip, SELF_EVALUATION: weights.self_evaluation}
        if sum(by_name[name] for name in parts[form]) == 0.0:
            # Nothing that there is has a weight: no setting at all.
            selected_accuracies.append(np.full(len(rows), -1.0))
            continue
        fused = fuse(parts[form], weights)
        selected_accuracies.append(accuracies[np.arange(len(rows)), np.argmax(np.where(np.isnan(fused), -np.inf, fused), axis=1)])
    return np.array(selected_accuracies)


def _best_setting(accuracy: np.ndarray, settings: Sequence[FusionSetting]) -> int:
    """The best setting; of equally good ones that nearest to the configured one, which stands first."""
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
) -> tuple[RerankPlan, dict[str, Any]]:
    """The plan with the guard of those kinds only where no gain is shown (Holm over the kinds), and what was found at each kind.

    The guarded questions had no part in the plan's weights, so that the gain is not one of fitting.
    """
    reranked = _accuracies(rows, [(plan.clip_score_form, plan.weights)])[0]
    first = np.array([example.accuracies[0] for example in rows])
    own = {kind: np.array([example.kind == kind for example in rows]) for kind in plan.skipped_question_types}
    differences = {kind: _gain(reranked[mask], first[mask], groups[mask], resamples, seed) for kind, mask in own.items() if mask.any()}
    adjusted = dict(zip(differences, holm([gain.p_value for gain in differences.values()]), strict=True))
    found: dict[str, Any] = {
        kind: {
            "questions": int(own[kind].sum()),
            "gain": gain.difference,
            "p_value": gain.p_value,
            "p_holm": adjusted[kind],
            "left_alone": verdict(gain, adjusted[kind]) != "a",
        }
        for kind, gain in differences.items()
    }
    return replace(
        plan, skipped_question_types=tuple(kind for kind in plan.skipped_question_types if kind not in found or found[kind]["left_alone"])
    ), found


def _gain(reranked: np.ndarray, first: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Difference:
    _, part = np.unique(groups, return_inverse=True)
    (difference,) = compare(reranked[:, None], first[:, None], part, resamples, seed)
    return difference


def _fit_system(
    examples: Sequence[ValidationExample], groups: np.ndarray, common: RerankPlan, rerank: RerankConfig, seed: int
) -> tuple[RerankPlan, dict[str, Any]]:
    """A system's own plan: the common one with a learned fusion and a credibility, where there is enough to learn from."""
    if len(set(groups.tolist())) < 2:
        return common, {"questions": len(examples)}
    learned, accuracy = _fit_fusion(examples, groups, common.skipped_question_types, seed)
    plan = replace(common, learned=learned)
    selections = [select_candidates(example.prediction.candidates, example.signals, plan, example.kind) for example in examples]
    indices = [own[displayed_choice(own)] for own in selections]
    confidence, error = _fit_confidence(examples, indices, groups, rerank, seed)
    found = {"questions": len(examples), "learned_held_out": accuracy, "ece_held_out": error}
    return replace(plan, confidence=confidence), found


def _fit_fusion(
    examples: Sequence[ValidationExample], groups: np.ndarray, guard: Sequence[SkippableQuestionType], seed: int
) -> tuple[LogisticModel, float]:
    """The fusion with the ridge that chooses best on held-out questions, and its accuracy on questions that had no part in fit
    or ridge. Guarded questions keep their first answer."""
    tables = [features(example.prediction.candidates, example.signals) for example in examples]
    names = tuple(tables[0])
    stacked = [np.array([table[name] for name in names]).T for table in tables]

    def fit(rows: np.ndarray, l2: float) -> LogisticModel:
        return fit_logistic(names, np.concatenate([stacked[i] for i in rows]), np.concatenate([examples[i].accuracies for i in rows]), l2)

    def selected_accuracies(model: LogisticModel, rows: np.ndarray) -> list[float]:
        indices = [0 if examples[i].kind in guard else int(np.argmax(model.probabilities(tables[i]))) for i in rows]
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
    examples: Sequence[ValidationExample], indices: Sequence[int], groups: np.ndarray, rerank: RerankConfig, seed: int
) -> tuple[Confidence, float]:
    """The calibrated credibility of the answers at `places`, and its expected calibration error on held-out questions."""
    tables = [
        confidence_features(example.prediction.candidates, index, example.signals) for example, index in zip(examples, indices, strict=True)
    ]
    names = tuple(tables[0])
    x = np.array([[table[name] for name in names] for table in tables])
    accuracies = np.array([example.accuracies[index] for example, index in zip(examples, indices, strict=True)])

    def fit(rows: np.ndarray, own_groups: np.ndarray) -> Confidence:
        model = fit_logistic(names, x[rows], accuracies[rows])
        if rerank.calibration == "logistic":
            return Confidence(model)
        # The steps are fitted to what the model says of questions that it was not fitted on.
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
    return fit(all_rows, groups), float(reliability(held_out, accuracies)["ece"])


def _probabilities(model: LogisticModel, x: np.ndarray) -> np.ndarray:
    return np.array(model.probabilities({name: x[:, i].tolist() for i, name in enumerate(model.names)}))


def _predict_confidence(confidence: Confidence, x: np.ndarray) -> np.ndarray:
    values = _probabilities(confidence.model, x)
    return values if confidence.steps is None else np.array([confidence.steps(value) for value in values.tolist()])


def _pad_rows(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, longest], filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table
