"""Calibration of a score in 0..1: can it be read as the probability of being right?"""

import numpy as np

from evaluation.schema.answer_figures import Reliability, ReliabilityBin

BINS = 10
"""Number of equal-width bins over 0..1."""


def reliability(scores: np.ndarray, accuracies: np.ndarray) -> Reliability:
    """Reliability diagram and expected calibration error (Guo et al. 2017, arXiv:1706.04599, section 2).

    Args:
        scores: [questions], 0..1
        accuracies: [questions], 0..1

    Returns:
        The bins that are not empty, and the expected calibration error: the mean distance of score and accuracy over the bins,
        weighted by their questions.
    """
    bin_index = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        ReliabilityBin(
            low=i / BINS,
            high=(i + 1) / BINS,
            questions=int(in_bin.sum()),
            score=float(scores[in_bin].mean()),
            vqa_accuracy=float(accuracies[in_bin].mean()),
        )
        for i in range(BINS)
        if (in_bin := bin_index == i).any()
    ]
    ece = sum(bin_.questions * abs(bin_.score - bin_.vqa_accuracy) for bin_ in bins) / len(scores)
    return Reliability(ece, bins)
