"""Scores of one short answer against its reference answers. Every function gives a fraction in 0..1."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from evaluation.metrics.answer_normalisation import normalise_m4c, normalise_vqa, split_words, strip_whitespace

Metric = Callable[[str, Sequence[object]], float]
"""From an answer and its references to a score."""
PRIMARY_METRIC = "vqa_accuracy"
"""The metric of intervals, comparisons and verdicts."""
_NON_ANSWERS = frozenset({"unanswerable", "none", "unknown"})


def vqa_accuracy(prediction: str, references: Sequence[object]) -> float:
    """Official VQA v2 accuracy (Antol et al. 2015, arXiv:1505.00468; vqaEval.py): the ten-choose-nine average.

    As in the official script, nothing is normalised (not even lower case) when all references agree verbatim.
    """
    texts, prediction = [strip_whitespace(text) for text in text_references(references)], strip_whitespace(prediction)
    if len(set(texts)) > 1:
        texts, prediction = [normalise_vqa(text) for text in texts], normalise_vqa(prediction)
    return leave_one_out(texts.count(prediction), len(texts))


def vqa_accuracy_m4c(prediction: str, references: Sequence[object]) -> float:
    """The same average with M4C normalisation always on (TextVQA as scored by M4C and lmms-eval), fit for Chinese."""
    return leave_one_out(
        [normalise_m4c(text) for text in text_references(references)].count(normalise_m4c(prediction)), len(text_references(references))
    )


def leave_one_out(matches: int, n: int) -> float:
    """Mean over the n references, each left out once, of min(1, matches among the others / 3).

    Ten references with k = 1, 2, 3, 4 matches give .3, .6, .9, 1. Fewer than four references have fewer than three
    others, so all the others must match: k matches of n <= 4 give k / n, and a single reference is matched or not.
    """
    if n == 0:
        return 0.0
    if n == 1:
        return float(matches)
    required = min(3, n - 1)
    return (matches * min(1.0, (matches - 1) / required) + (n - matches) * min(1.0, matches / required)) / n


def exact(prediction: str, references: Sequence[object]) -> float:
    """Equal to any reference after M4C normalisation."""
    return float(normalise_m4c(prediction) in {normalise_m4c(text) for text in text_references(references)})


def contains(prediction: str, references: Sequence[object]) -> float:
    """A valid reference stands in the prediction as a run of whole words (for Chinese: characters)."""
    predicted = split_words(normalise_m4c(prediction))
    return float(any(_contains_run(split_words(normalise_m4c(text)), predicted) for text in valid_references(references)))


def bidirectional(prediction: str, references: Sequence[object]) -> float:
    """A valid reference stands in the prediction, or the prediction in a valid reference, as a run of whole words."""
    predicted = split_words(normalise_m4c(prediction))
    expected = [split_words(normalise_m4c(text)) for text in valid_references(references)]
    return float(any(_contains_run(reference, predicted) or _contains_run(predicted, reference) for reference in expected))


def anls(prediction: str, references: Sequence[object]) -> float:
    """Average normalised Levenshtein similarity (Biten et al. 2019, arXiv:1905.13648), for answers that are read off a picture.

    1 - distance / longer length to the nearest reference, in lower case; 0 where half or more of it differs.
    """
    predicted = " ".join(prediction.lower().split())
    return max((_similarity(predicted, " ".join(text.lower().split())) for text in set(text_references(references))), default=0.0)


def fuzzy(prediction: str, references: Sequence[object]) -> float:
    """More than 70 % of a valid reference's distinct words (for Chinese: characters) stand in the prediction."""
    predicted = set(split_words(normalise_m4c(prediction)))
    expected = [set(split_words(normalise_m4c(text))) for text in valid_references(references)]
    # Ten times the count instead of a quotient: 7 of 10 is exactly 70 %, which is not more.
    return float(any(10 * len(reference & predicted) > 7 * len(reference) for reference in expected))


def contains_legacy(prediction: str, references: Sequence[object]) -> float:
    """A valid reference is a character substring of the prediction ("no" in "snow"): only to compare with older reports."""
    predicted = prediction.strip().lower()
    return float(any(text.strip().lower() in predicted for text in valid_references(references)))


def bidirectional_legacy(prediction: str, references: Sequence[object]) -> float:
    """Character substring one way or the other: only to compare with older reports."""
    predicted = prediction.strip().lower()
    texts = [text.strip().lower() for text in valid_references(references)]
    return float(bool(predicted) and any(text in predicted or predicted in text for text in texts))


def text_references(references: Sequence[object]) -> list[str]:
    """References that are text."""
    return [text for text in references if isinstance(text, str)]


def valid_references(references: Sequence[object]) -> list[str]:
    """References that say something: text, not empty, and none of "unanswerable", "none", "unknown"."""
    return [text for text in text_references(references) if text.strip() and text.strip().lower() not in _NON_ANSWERS]


def _contains_run(part: list[str], whole: list[str]) -> bool:
    return bool(part) and any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@lru_cache(maxsize=1 << 16)
def _similarity(a: str, b: str) -> float:
    longer = max(len(a), len(b))
    if 2 * abs(len(a) - len(b)) >= longer:
        return float(a == b)
    distance = edit_distance(a, b)
    return 1 - distance / longer if 2 * distance < longer else 0.0


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that make b of a (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, char_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, char_b in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char_a != char_b))
    return row[-1]


METRICS: dict[str, Metric] = {
    "vqa_accuracy": vqa_accuracy,
    "vqa_accuracy_m4c": vqa_accuracy_m4c,
    "exact": exact,
    "fuzzy": fuzzy,
    "contains": contains,
    "bidirectional": bidirectional,
    "anls": anls,
    "contains_legacy": contains_legacy,
    "bidirectional_legacy": bidirectional_legacy,
}
"""Every metric by the name that it has in summary.json."""
BINARY_METRICS = frozenset({"exact", "fuzzy", "contains", "bidirectional", "contains_legacy", "bidirectional_legacy"})
"""Those that are 0 or 1, for which McNemar's test is made."""
