"""Whether a score between 0 and 1 can be read as a probability of being right."""

from typing import Any

import numpy as np

BINS = 10


def reliability(scores: np.ndarray, accuracies: np.ndarray) -> dict[str, Any]:
    """Answers sorted into BINS equal parts of 0..1 by their score (Guo et al. 2017, arXiv:1706.04599, section 2).

    scores, right: [questions], 0..1. `bins`: of each part that holds answers, its ends, how many, mean score, mean accuracy.
    `ece`: expected calibration error, the mean distance of score and accuracy over the bins, weighted by answers.
    """
    bin_index = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "questions": int(in_bin.sum()),
            "score": float(scores[in_bin].mean()),
            "vqa_accuracy": float(accuracies[in_bin].mean()),
        }
        for i in range(BINS)
        if (in_bin := bin_index == i).any()
    ]
    ece = sum(bin_["questions"] * abs(bin_["score"] - bin_["vqa_accuracy"]) for bin_ in bins) / len(scores)
    return {"ece": ece, "bins": bins}
