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
from answering.question_types import Guarded, guarded_kind
from answering.rerank.candidate_scores import SELF, Signal
from answering.rerank.choose_answer import Plan, choose, shown_choice
from answering.rerank.confidence import Credibility, evidence
from answering.rerank.learned_fusion import features
from answering.rerank.logistic_regression import Logistic
from answering.rerank.score_fusion import Form, components, fuse
from evaluation.answer_selection import Weighting, completed
from evaluation.calibration.probability_fits import fit_logistic, folds, isotonic
from evaluation.metrics.reliability import reliability
from evaluation.metrics.short_answers import vqa_accuracy
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.statistics import Difference, clusters, compare, holm, verdict

GRID = tuple(round(step * 0.05, 2) for step in range(21))
"""Weights of the likelihood that are tried; CLIP has the rest."""
SELF_GRID = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Shares of the self-score that are tried, where there is one."""
RIDGES = (0.3, 3.0, 30.0)
_EQUAL = 1e-9

Setting = tuple[Form, RerankWeights]


@dataclass(frozen=True, slots=True)
class Case:
    """A question of the validation split, its candidates, and the official accuracy of each."""

    prediction: Prediction
    signals: dict[str, Signal]
    kind: Guarded | None
    right: np.ndarray


def tune(
    answered: Mapping[str, tuple[Sequence[Question], Sequence[Prediction]]],
    references: Mapping[str, Sequence[str]],
    rerank: RerankConfig,
    resamples: int,
    seed: int,
) -> Weighting:
    """Plans by system. answered: each system's short questions of the validation split and what it said to them.

    Weights, form and guard are common to all systems, so that none is favoured. The configured ones stay unless cross-validation
    finds better; the guard of a kind of questions is lifted only where the gain there is shown as a verdict is, with weights that
    were chosen on other questions.
    """
    cases = {name: _cases(questions, predictions, references) for name, (questions, predictions) in answered.items()}
    groups = {name: clusters([question.image_ids for question in _scored(*pair)]) for name, pair in answered.items()}
    default = Plan(rerank.weights, rerank.form, rerank.guard)
    rows = [case for own in cases.values() for case in own]
    pooled = _pooled(answered)
    if len(set(pooled.tolist())) < 2:
        return Weighting(default, {}, "default", {"questions": len(rows)})
    plan, chosen_on, report = _weighed(rows, pooled, default, seed)
    plan, report["guard"] = _guarded(rows, pooled, plan, resamples, seed)
    plans, by_system = {}, {}
    for name, own in cases.items():
        plans[name], by_system[name] = _fitted(own, groups[name], plan, rerank, seed)
    return Weighting(plan, plans, chosen_on, {**report, "systems": by_system})


def _scored(questions: Sequence[Question], predictions: Sequence[Prediction]) -> list[Question]:
    return [question for question, prediction in zip(questions, predictions, strict=True) if prediction.candidates]


def _pooled(answered: Mapping[str, tuple[Sequence[Question], Sequence[Prediction]]]) -> np.ndarray:
    """Cluster of each row of all systems: their questions about one picture share one."""
    return clusters([question.image_ids for pair in answered.values() for question in _scored(*pair)])


def _cases(questions: Sequence[Question], predictions: Sequence[Prediction], references: Mapping[str, Sequence[str]]) -> list[Case]:
    """The questions that were answered, in order."""
    pairs = [(q, p) for q, p in zip(questions, completed(predictions), strict=True) if p.candidates]
    return [
        Case(
            prediction,
            prediction.signals,
            guarded_kind(question.text, question.request.language),
            np.array([vqa_accuracy(candidate.text, references[prediction.sample_id]) for candidate in prediction.candidates]),
        )
        for question, prediction in pairs
    ]


def _weighed(rows: Sequence[Case], groups: np.ndarray, default: Plan, seed: int) -> tuple[Plan, str, dict[str, Any]]:
    """The default or better weights and form, where they were chosen, and what cross-validation found.

    A guarded question counts with its first answer, whatever the weights, and so has no say in them.
    """
    settings = _settings(rows, default)
    first = np.array([case.right[0] for case in rows])
    table = np.where([case.kind in default.guard for case in rows], first, _accuracies(rows, settings))
    held_out = np.empty(len(rows))
    for fitted, left in folds(groups, seed):
        held_out[left] = table[_best(table[:, fitted].mean(axis=1), settings), left]
    found = {
        "questions": len(rows),
        "first": float(first.mean()),
        "configured": float(table[0].mean()),
        "tuned_held_out": float(held_out.mean()),
        "oracle": float(np.mean([case.right.max() for case in rows])),
    }
    if held_out.mean() <= table[0].mean() + _EQUAL:
        return default, "default", found
    form, weights = settings[_best(table.mean(axis=1), settings)]
    return replace(default, weights=weights, form=form), "validation", found


def _settings(rows: Sequence[Case], default: Plan) -> list[Setting]:
    """What is tried, the configured setting first."""
    signals = [case.signals for case in rows]
    forms: list[Form] = ["softmax", "raw"]
    if all(one.prior is not None for own in signals for name, one in own.items() if name != SELF):
        forms.append("prior_corrected")
    selves = SELF_GRID if any(SELF in own for own in signals) else (0.0,)
    found: list[Setting] = [(default.form, default.weights)]
    for form, share, likelihood in product(forms, selves, GRID):
        rest = 1 - share
        weights = RerankWeights(likelihood=round(rest * likelihood, 3), clip=round(rest * (1 - likelihood), 3), self_score=share)
        found.append((form, weights))
    return found


def _accuracies(rows: Sequence[Case], settings: Sequence[Setting]) -> np.ndarray:
    """Accuracy [settings, rows] of the candidate that each setting takes."""
    right = _padded([case.right for case in rows])
    parts = {}
    for form in dict.fromkeys(form for form, _ in settings):
        each = [components(case.prediction.candidates, case.signals, form) for case in rows]
        # Not every system judges itself: a signal that a row lacks is flat there, and so decides nothing.
        names = dict.fromkeys(name for one in each for name in one)
        flat = [np.zeros(len(case.right)) for case in rows]
        parts[form] = {name: _padded([one.get(name, none) for one, none in zip(each, flat, strict=True)]) for name in names}
    taken = []
    for form, weights in settings:
        by_name = {"likelihood": weights.likelihood, "clip": weights.clip, SELF: weights.self_score}
        if sum(by_name[name] for name in parts[form]) == 0.0:
            # Nothing that there is has a weight: no setting at all.
            taken.append(np.full(len(rows), -1.0))
            continue
        fused = fuse(parts[form], weights)
        taken.append(right[np.arange(len(rows)), np.argmax(np.where(np.isnan(fused), -np.inf, fused), axis=1)])
    return np.array(taken)


def _best(accuracy: np.ndarray, settings: Sequence[Setting]) -> int:
    """The best setting; of equally good ones that nearest to the configured one, which stands first."""
    form, weights = settings[0]
    usual = _proportions(weights)

    def distance(place: int) -> tuple[bool, float]:
        return settings[place][0] != form, float(np.abs(_proportions(settings[place][1]) - usual).sum())

    return min(np.flatnonzero(accuracy > accuracy.max() - _EQUAL).tolist(), key=distance)


def _proportions(weights: RerankWeights) -> np.ndarray:
    values = np.array([weights.likelihood, weights.clip, weights.self_score])
    return np.asarray(values / values.sum())


def _guarded(rows: Sequence[Case], groups: np.ndarray, plan: Plan, resamples: int, seed: int) -> tuple[Plan, dict[str, Any]]:
    """The plan with the guard of those kinds only where no gain is shown (Holm over the kinds), and what was found at each kind.

    The guarded questions had no part in the plan's weights, so that the gain is not one of fitting.
    """
    reranked = _accuracies(rows, [(plan.form, plan.weights)])[0]
    first = np.array([case.right[0] for case in rows])
    own = {kind: np.array([case.kind == kind for case in rows]) for kind in plan.guard}
    gains = {kind: _gain(reranked[at], first[at], groups[at], resamples, seed) for kind, at in own.items() if at.any()}
    adjusted = dict(zip(gains, holm([gain.p_value for gain in gains.values()]), strict=True))
    found: dict[str, Any] = {
        kind: {
            "questions": int(own[kind].sum()),
            "gain": gain.difference,
            "p_value": gain.p_value,
            "p_holm": adjusted[kind],
            "left_alone": verdict(gain, adjusted[kind]) != "a",
        }
        for kind, gain in gains.items()
    }
    return replace(plan, guard=tuple(kind for kind in plan.guard if kind not in found or found[kind]["left_alone"])), found


def _gain(reranked: np.ndarray, first: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> Difference:
    _, part = np.unique(groups, return_inverse=True)
    (difference,) = compare(reranked[:, None], first[:, None], part, resamples, seed)
    return difference


def _fitted(cases: Sequence[Case], groups: np.ndarray, common: Plan, rerank: RerankConfig, seed: int) -> tuple[Plan, dict[str, Any]]:
    """A system's own plan: the common one with a learned fusion and a credibility, where there is enough to learn from."""
    if len(set(groups.tolist())) < 2:
        return common, {"questions": len(cases)}
    learned, accuracy = _learned(cases, groups, common.guard, seed)
    plan = replace(common, learned=learned)
    chosen = [choose(case.prediction.candidates, case.signals, plan, case.kind) for case in cases]
    places = [own[shown_choice(own)] for own in chosen]
    credibility, error = _credible(cases, places, groups, rerank, seed)
    found = {"questions": len(cases), "learned_held_out": accuracy, "ece_held_out": error}
    return replace(plan, credibility=credibility), found


def _learned(cases: Sequence[Case], groups: np.ndarray, guard: Sequence[Guarded], seed: int) -> tuple[Logistic, float]:
    """The fusion with the ridge that chooses best on held-out questions, and its accuracy on questions that had no part in fit
    or ridge. Guarded questions keep their first answer."""
    tables = [features(case.prediction.candidates, case.signals) for case in cases]
    names = tuple(tables[0])
    stacked = [np.array([table[name] for name in names]).T for table in tables]

    def fit(rows: np.ndarray, l2: float) -> Logistic:
        return fit_logistic(names, np.concatenate([stacked[i] for i in rows]), np.concatenate([cases[i].right for i in rows]), l2)

    def taken(model: Logistic, rows: np.ndarray) -> list[float]:
        places = [0 if cases[i].kind in guard else int(np.argmax(model.probabilities(tables[i]))) for i in rows]
        return [float(cases[i].right[place]) for i, place in zip(rows, places, strict=True)]

    def held_out(rows: np.ndarray, l2: float) -> float:
        parts = [taken(fit(rows[fitted], l2), rows[left]) for fitted, left in folds(groups[rows], seed)]
        return sum(map(sum, parts)) / len(rows)

    def best(rows: np.ndarray) -> Logistic:
        return fit(rows, max(RIDGES, key=lambda l2: (held_out(rows, l2), l2)))

    everything = np.arange(len(cases))
    outside = [taken(best(everything[fitted]), everything[left]) for fitted, left in folds(groups, seed)]
    return best(everything), sum(map(sum, outside)) / len(cases)


def _credible(
    cases: Sequence[Case], places: Sequence[int], groups: np.ndarray, rerank: RerankConfig, seed: int
) -> tuple[Credibility, float]:
    """The calibrated credibility of the answers at `places`, and its expected calibration error on held-out questions."""
    tables = [evidence(case.prediction.candidates, place, case.signals) for case, place in zip(cases, places, strict=True)]
    names = tuple(tables[0])
    x = np.array([[table[name] for name in names] for table in tables])
    right = np.array([case.right[place] for case, place in zip(cases, places, strict=True)])

    def fit(rows: np.ndarray, own_groups: np.ndarray) -> Credibility:
        model = fit_logistic(names, x[rows], right[rows])
        if rerank.calibration == "logistic":
            return Credibility(model)
        # The steps are fitted to what the model says of questions that it was not fitted on.
        said, truth = np.empty(len(rows)), right[rows]
        for fitted, left in folds(own_groups, seed + 1):
            said[left] = _probabilities(fit_logistic(names, x[rows][fitted], truth[fitted]), x[rows][left])
        return Credibility(model, isotonic(said, truth))

    everything = np.arange(len(cases))
    held_out = np.empty(len(cases))
    for fitted, left in folds(groups, seed):
        held_out[left] = _calibrated(fit(everything[fitted], groups[fitted]), x[left])
    return fit(everything, groups), float(reliability(held_out, right)["ece"])


def _probabilities(model: Logistic, x: np.ndarray) -> np.ndarray:
    return np.array(model.probabilities({name: x[:, i].tolist() for i, name in enumerate(model.names)}))


def _calibrated(credibility: Credibility, x: np.ndarray) -> np.ndarray:
    values = _probabilities(credibility.model, x)
    return values if credibility.steps is None else np.array([credibility.steps(value) for value in values.tolist()])


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[rows, longest], filled up with NaN."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table
