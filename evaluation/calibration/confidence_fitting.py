"""Fit the confidence of a system's answers on the validation split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from answering.config import RerankConfig
from answering.protocol import ImageInput
from answering.rerank.calibration_range import fit_calibration_range
from answering.rerank.confidence import Confidence, confidence_features
from answering.rerank.logistic_regression import LogisticModel
from evaluation.calibration.probability_fits import fit_logistic, group_k_fold, isotonic
from evaluation.calibration.validation_examples import ValidationExample
from evaluation.metrics.reliability import reliability


def fit_confidence(
    examples: Sequence[ValidationExample],
    indices: Sequence[int],
    groups: np.ndarray,
    rerank: RerankConfig,
    seed: int,
    images: Sequence[ImageInput] = (),
) -> tuple[Confidence, float]:
    """Fit the calibrated confidence of the candidates at `indices`, and the range of questions it holds for.

    Args:
        examples: the validation questions
        indices: index of the displayed candidate of each
        groups: cluster of each
        rerank: the kind of calibration
        seed: seed of the folds
        images: of the whole split; none for those of the questions alone

    Returns:
        The confidence, and its calibration error on held-out questions.
    """
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
    known_images = [tuple(images)] if images else [example.images for example in examples]
    calibration_range = fit_calibration_range([example.question for example in examples], known_images)
    return replace(fit(all_rows, groups), calibration_range=calibration_range), reliability(held_out, accuracies).ece


def _probabilities(model: LogisticModel, x: np.ndarray) -> np.ndarray:
    return np.array(model.probabilities({name: x[:, i].tolist() for i, name in enumerate(model.names)}))


def _predict_confidence(confidence: Confidence, x: np.ndarray) -> np.ndarray:
    values = _probabilities(confidence.model, x)
    return values if confidence.steps is None else np.array([confidence.steps(value) for value in values.tolist()])
