"""Whether a score between 0 and 1 can be read as a probability of being right."""

from typing import Any

import numpy as np

BINS = 10


def reliability(scores: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Answers sorted into BINS equal parts of 0..1 by their score (Guo et al. 2017, arXiv:1706.04599, section 2).

    scores, right: [questions], 0..1. `bins`: of each part that holds answers, its ends, how many, mean score, mean accuracy.
    `ece`: expected calibration error, the mean distance of score and accuracy over the bins, weighted by answers.
    """
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": i / BINS,
            "to": (i + 1) / BINS,
            "questions": int(inside.sum()),
            "score": float(scores[inside].mean()),
            "vqa_accuracy": float(right[inside].mean()),
        }
        for i in range(BINS)
        if (inside := place == i).any()
    ]
    ece = sum(part["questions"] * abs(part["score"] - part["vqa_accuracy"]) for part in bins) / len(scores)
    return {"ece": ece, "bins": bins}
