"""Metrics of captions and descriptions against several references: BLEU, ROUGE-L, CIDEr-D, per corpus and per caption.

Hypotheses are one token list per caption; references are one list of token lists per caption, with at least one reference.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataset.chinese_characters import CJK
from dataset.sample import Language
from evaluation.metrics.answer_normalisation import fold_width

Tokens = list[str]
Ngrams = Counter[tuple[str, ...]]

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")
_MERGED_WORDS = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_PTB_TOKEN = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)+|\w+(?:-\w+)*")
_WORD = re.compile(r"\w")
_CHARACTER_TOKEN = re.compile(rf"[{CJK}]|\d+(?:[.,:]\d+)*|[^\W{CJK}]+")


Tokenisation = Literal["ptb", "characters", "jieba"]
TOKENISATIONS: dict[Language, tuple[Tokenisation, ...]] = {"en": ("ptb",), "zh": ("characters", "jieba")}
"""Tokenisations that captions of a language are scored with; results of the first one carry no suffix in reports."""


def tokenise(text: str, tokenisation: Tokenisation) -> Tokens:
    """Lower-case tokens without punctuation.

    ptb: as in the Penn Treebank, with separate clitics (do n't, dog 's) and unsplit hyphenated words. characters: one token per
    Chinese character, Latin words and numbers unsplit. jieba: Chinese words, as in the AI Challenger captioning task.
    """
    text = fold_width(text).lower().replace("\u2019", "'")
    if tokenisation == "characters":
        return _CHARACTER_TOKEN.findall(text)
    if tokenisation == "jieba":
        import jieba

        # jieba logs how long loading the dictionary took, on first use.
        jieba.setLogLevel(logging.WARNING)
        return [word for word in jieba.lcut(text) if _WORD.search(word)]
    text = _MERGED_WORDS.sub(lambda match: " ".join(part for part in match.groups() if part), _CLITIC.sub(r" \1", text))
    return _PTB_TOKEN.findall(text)


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], n: int) -> float:
    """Corpus BLEU of order n without smoothing (Papineni et al. 2002), 0..1.

    The reference length is that of the reference closest in length; of two equally close ones, the shorter.
    """
    matched, proposed = np.zeros(n), np.zeros(n)
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        for order in range(1, n + 1):
            counts = _ngrams(hypothesis, order)
            max_counts: Ngrams = Counter()
            for reference in alternatives:
                max_counts |= _ngrams(reference, order)
            matched[order - 1] += (counts & max_counts).total()
            proposed[order - 1] += counts.total()
    if not matched.all():
        return 0.0
    hypothesis_length = sum(map(len, hypotheses))
    reference_length = sum(
        min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in alternatives)[1]
        for hypothesis, alternatives in zip(hypotheses, references, strict=True)
    )
    brevity = min(1.0, math.exp(1 - reference_length / hypothesis_length))
    return brevity * math.exp(float(np.log(matched / proposed).mean()))


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """ROUGE-L (Lin 2004) of each caption, 0..1, as COCO captions are scored: best precision and best recall, beta = 1.2."""
    return np.array([_rouge_l(*pair) for pair in zip(hypotheses, references, strict=True)])


def _rouge_l(hypothesis: Tokens, references: Sequence[Tokens], beta: float = 1.2) -> float:
    common = [_longest_common(hypothesis, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(hypothesis)
    recall = max(hypothesis_length / len(reference) for hypothesis_length, reference in zip(common, references, strict=True) if reference)
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


def cider_d(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """CIDEr-D of each caption (Vedantam et al. 2015, arXiv:1411.5726, section 7), 0..10; document frequencies from the references.

    N-grams of up to four tokens; the standard deviation of the Gaussian length penalty is six tokens. A corpus of one image gives 0, since
    every n-gram occurs for every image.
    """
    n, sigma = 4, 6.0
    frequencies: Counter[tuple[str, ...]] = Counter()
    for alternatives in references:
        frequencies.update({gram for reference in alternatives for order in range(1, n + 1) for gram in _ngrams(reference, order)})
    num_images = len(references)

    def vector(tokens: Tokens, order: int) -> dict[tuple[str, ...], float]:
        return {gram: count * math.log(num_images / max(1, frequencies[gram])) for gram, count in _ngrams(tokens, order).items()}

    scores = []
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        hypothesis_vectors = [vector(hypothesis, order) for order in range(1, n + 1)]
        total = 0.0
        for reference in alternatives:
            penalty = math.exp(-((len(hypothesis) - len(reference)) ** 2) / (2 * sigma**2))
            total += (
                penalty * sum(_clipped_cosine(hypothesis_vectors[order - 1], vector(reference, order)) for order in range(1, n + 1)) / n
            )
        scores.append(10 * total / len(alternatives))
    return np.array(scores)


def _clipped_cosine(hypothesis: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    product = sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in hypothesis.items())
    norm = math.sqrt(sum(value**2 for value in hypothesis.values()) * sum(value**2 for value in reference.values()))
    return product / norm if norm else 0.0


def _ngrams(tokens: Tokens, order: int) -> Ngrams:
    return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """bleu_1 .. bleu_4, rouge_l (0..1) and cider_d (0..10): `corpus` of all captions, `per_sample` [captions] of each.

    The corpus value of ROUGE-L and CIDEr-D is the mean over captions; that of BLEU is not.
    """

    corpus: dict[str, float]
    per_sample: dict[str, np.ndarray]


def score(texts: Sequence[str], references: Sequence[Sequence[str]], tokenisation: Tokenisation) -> CaptionScores:
    """Score captions of one language; `references` holds the references of each caption."""
    hypotheses = [tokenise(text, tokenisation) for text in texts]
    alternatives = [[tokenise(text, tokenisation) for text in group] for group in references]
    corpus, per_sample = {}, {}
    for n in range(1, 5):
        corpus[f"bleu_{n}"] = bleu(hypotheses, alternatives, n)
        per_sample[f"bleu_{n}"] = np.array(
            [bleu([hypothesis], [group], n) for hypothesis, group in zip(hypotheses, alternatives, strict=True)]
        )
    for name, measure in (("rouge_l", rouge_l), ("cider_d", cider_d)):
        per_sample[name] = measure(hypotheses, alternatives)
        corpus[name] = float(per_sample[name].mean())
    return CaptionScores(corpus, per_sample)


def clip_score(cosines: Sequence[float]) -> np.ndarray:
    """CLIPScore of each caption (Hessel et al. 2021, arXiv:2104.08718): 2.5 times the cosine of image and text, at least 0."""
    return 2.5 * np.maximum(np.asarray(cosines, dtype=np.float64), 0.0)
