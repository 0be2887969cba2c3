"""Scores of captions and descriptions against several references: BLEU, ROUGE-L, CIDEr-D, all over a corpus.

`Tokens` of hypotheses: [captions]; of references: [captions][references], at least one each.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dataset.sample import Language
from evaluation.normalise import CJK, fold_width

Tokens = list[str]
Ngrams = Counter[tuple[str, ...]]

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")
_JOINED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_ENGLISH = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)+|\w+(?:-\w+)*")
_CHINESE = re.compile(rf"[{CJK}]|\d+(?:[.,:]\d+)*|[^\W{CJK}]+")


def tokenise(text: str, language: Language) -> Tokens:
    """Lower-case tokens without punctuation.

    English as in the Penn Treebank: clitics apart (do n't, dog 's), hyphenated words whole. Chinese: characters, with
    Latin words and numbers whole.
    """
    text = fold_width(text).lower().replace("\u2019", "'")
    if language == "zh":
        return _CHINESE.findall(text)
    text = _JOINED.sub(lambda match: " ".join(part for part in match.groups() if part), _CLITIC.sub(r" \1", text))
    return _ENGLISH.findall(text)


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int) -> float:
    """Corpus BLEU of order n without smoothing (Papineni et al. 2002), 0..1; the closest reference gives the length.

    Of two references equally close the shorter one counts.
    """
    matched, proposed = np.zeros(n), np.zeros(n)
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        for order in range(1, n + 1):
            counts = _ngrams(hypothesis, order)
            most: Ngrams = Counter()
            for reference in alternatives:
                most |= _ngrams(reference, order)
            matched[order - 1] += (counts & most).total()
            proposed[order - 1] += counts.total()
    if not matched.all():
        return 0.0
    length = sum(map(len, hypotheses))
    closest = sum(
        min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in alternatives)[1]
        for hypothesis, alternatives in zip(hypotheses, references, strict=True)
    )
    brevity = min(1.0, math.exp(1 - closest / length))
    return brevity * math.exp(float(np.log(matched / proposed).mean()))


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean ROUGE-L (Lin 2004), 0..1, as COCO captions are scored: best precision and best recall, beta = 1.2."""
    return float(np.mean([_rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)]))


def _rouge_l(hypothesis: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    common = [_longest_common(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True) if reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _longest_common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if token == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def cider_d(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int = 4, sigma: float = 6.0) -> float:
    """Mean CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726, section 7), 0..10; document frequencies from the references.

    A corpus of a single picture gives 0: every n-gram stands in every picture.
    """
    frequencies: Counter[tuple[str, ...]] = Counter()
    for alternatives in references:
        frequencies.update({gram for reference in alternatives for order in range(1, n + 1) for gram in _ngrams(reference, order)})
    pictures = len(references)

    def vector(tokens: Tokens, order: int) -> dict[tuple[str, ...], float]:
        return {gram: count * math.log(pictures / max(1, frequencies[gram])) for gram, count in _ngrams(tokens, order).items()}

    scores = []
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        mine = [vector(hypothesis, order) for order in range(1, n + 1)]
        total = 0.0
        for reference in alternatives:
            penalty = math.exp(-((len(hypothesis) - len(reference)) ** 2) / (2 * sigma**2))
            total += penalty * sum(_clipped_cosine(mine[order - 1], vector(reference, order)) for order in range(1, n + 1)) / n
        scores.append(10 * total / len(alternatives))
    return float(np.mean(scores))


def _clipped_cosine(hypothesis: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    product = sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in hypothesis.items())
    norm = math.sqrt(sum(value**2 for value in hypothesis.values()) * sum(value**2 for value in reference.values()))
    return product / norm if norm else 0.0


def _ngrams(tokens: Tokens, order: int) -> Ngrams:
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


def score(texts: Sequence[str], references: Sequence[Sequence[str]], language: Language) -> dict[str, float]:
    """bleu_1 .. bleu_4, rouge_l (0..1) and cider_d (0..10) of captions in one language."""
    hypotheses = [tokenise(text, language) for text in texts]
    alternatives = [[tokenise(text, language) for text in group] for group in references]
    scores = {f"bleu_{n}": bleu(hypotheses, alternatives, n) for n in range(1, 5)}
    return scores | {"rouge_l": rouge_l(hypotheses, alternatives), "cider_d": cider_d(hypotheses, alternatives)}
