"""Metrics of one short answer against its reference answers. Every metric returns a fraction in 0..1."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from evaluation.metrics.answer_normalisation import normalise_m4c, normalise_vqa, split_words, strip_whitespace

Metric = Callable[[str, Sequence[object]], float]
"""(answer, references) -> score in 0..1."""
PRIMARY_METRIC = "vqa_accuracy"
"""The metric that intervals, comparisons and verdicts are based on."""
OFFICIAL_REFERENCES = 10
"""References of a question for which the official accuracy is defined."""
_NON_ANSWERS = frozenset({"unanswerable", "none", "unknown"})


def vqa_accuracy(prediction: str, references: Sequence[object]) -> float:
    """Official VQA v2 accuracy (Antol et al. 2015, arXiv:1505.00468; vqaEval.py): the ten-choose-nine average.

    As in the official script, nothing is normalised (not even case) when all references are identical.
    """
    texts, prediction = [strip_whitespace(text) for text in text_references(references)], strip_whitespace(prediction)
    if len(set(texts)) > 1:
        texts, prediction = [normalise_vqa(text) for text in texts], normalise_vqa(prediction)
    return leave_one_out(texts.count(prediction), len(texts))


def vqa_accuracy_m4c(prediction: str, references: Sequence[object]) -> float:
    """The same average, always with M4C normalisation (as M4C and lmms-eval score TextVQA), extended to Chinese."""
    texts = [normalise_m4c(text) for text in text_references(references)]
    return leave_one_out(texts.count(normalise_m4c(prediction)), len(texts))


def leave_one_out(matches: int, n: int) -> float:
    """Mean over the n references, each left out once, of min(1, matches among the others / 3).

    Ten references with k = 1, 2, 3, 4 matches give .3, .6, .9, 1. With fewer than four references there are fewer than three
    others, so all of them must match: k matches of n <= 4 give k / n, and a single reference gives 0 or 1.
    """
    if n == 0:
        return 0.0
    if n == 1:
        return float(matches)
    required = min(3, n - 1)
    return (matches * min(1.0, (matches - 1) / required) + (n - matches) * min(1.0, matches / required)) / n


def exact(prediction: str, references: Sequence[object]) -> float:
    """1 if the answer equals any reference after M4C normalisation."""
    return float(normalise_m4c(prediction) in {normalise_m4c(text) for text in text_references(references)})


def contains(prediction: str, references: Sequence[object]) -> float:
    """1 if the answer contains a valid reference as consecutive whole words (for Chinese: characters)."""
    predicted = split_words(normalise_m4c(prediction))
    return float(any(_contains_run(split_words(normalise_m4c(text)), predicted) for text in valid_references(references)))


def bidirectional(prediction: str, references: Sequence[object]) -> float:
    """1 if the answer contains a valid reference, or is contained in one, as consecutive whole words."""
    predicted = split_words(normalise_m4c(prediction))
    expected = [split_words(normalise_m4c(text)) for text in valid_references(references)]
    return float(any(_contains_run(reference, predicted) or _contains_run(predicted, reference) for reference in expected))


def anls(prediction: str, references: Sequence[object]) -> float:
    """Average normalised Levenshtein similarity (Biten et al. 2019, arXiv:1905.13648), for text that is read off an image.

    1 - edit distance / longer length to the nearest reference, in lower case; 0 if half or more of it differs. At exactly one half
    the paper's formula, with a strict inequality, gives 0; lmms-eval and VLMEvalKit give .5 there.
    """
    predicted = " ".join(prediction.lower().split())
    return max((_similarity(predicted, " ".join(text.lower().split())) for text in set(text_references(references))), default=0.0)


def fuzzy(prediction: str, references: Sequence[object]) -> float:
    """1 if the answer contains more than 70 % of the distinct words (for Chinese: characters) of a valid reference."""
    predicted = set(split_words(normalise_m4c(prediction)))
    expected = [set(split_words(normalise_m4c(text))) for text in valid_references(references)]
    # Ten times the count instead of a quotient: 7 of 10 is exactly 70 %, which is not more.
    return float(any(10 * len(reference & predicted) > 7 * len(reference) for reference in expected))


def contains_legacy(prediction: str, references: Sequence[object]) -> float:
    """1 if a valid reference is a substring of the answer ("no" in "snow"); only for comparison with older reports."""
    predicted = prediction.strip().lower()
    return float(any(text.strip().lower() in predicted for text in valid_references(references)))


def bidirectional_legacy(prediction: str, references: Sequence[object]) -> float:
    """1 if a valid reference is a substring of the answer or the reverse; only for comparison with older reports."""
    predicted = prediction.strip().lower()
    texts = [text.strip().lower() for text in valid_references(references)]
    return float(bool(predicted) and any(text in predicted or predicted in text for text in texts))


def text_references(references: Sequence[object]) -> list[str]:
    """References that are strings."""
    return [text for text in references if isinstance(text, str)]


def valid_references(references: Sequence[object]) -> list[str]:
    """References that are non-empty strings other than "unanswerable", "none" and "unknown"."""
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
    """Smallest number of insertions, deletions and substitutions of characters that turn a into b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, char_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, char_b in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char_a != char_b))
    return row[-1]


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (vqa_accuracy, vqa_accuracy_m4c, exact, fuzzy, contains, bidirectional, anls, contains_legacy, bidirectional_legacy)
}
"""Metric name, as in summary.json -> metric."""
GAMEABLE_METRICS = ("fuzzy", "contains", "bidirectional")
"""Metrics that do not count what an answer says too much, so that a list of frequent answers scores high: they stand apart from the
others and decide nothing."""
BINARY_METRICS = frozenset({"exact", "fuzzy", "contains", "bidirectional", "contains_legacy", "bidirectional_legacy"})
"""Metrics that are 0 or 1, to which McNemar's test applies."""
