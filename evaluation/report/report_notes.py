"""The notes of a report: systems and their settings, failed questions, speed, reranking, statistics, what is missing; and what a reader
must know about the main metric: when it may be called official, and when its intervals say little."""

from answering.rendering import MISSING_FONT, chinese_font
from answering.rerank.calibration_range import UNLIKE_CONFIDENCE
from evaluation.confidence_intervals import MIN_CLUSTERS
from evaluation.metrics.short_answers import OFFICIAL_REFERENCES
from evaluation.schema.answer_figures import CanChange, ConfidenceFigures
from evaluation.schema.summary_file import RerankFigures, Summary, SystemFigures

POOR_CALIBRATION, MIN_QUESTIONS = 0.1, 30
"""Calibration error from which, and number of questions with which, the report warns of the confidence for a kind of question."""
_CHOSEN_ON = {"default": "as configured", "validation": "chosen on the validation split"}
CURVE_REMARK = "Choosing the best checkpoint of this curve overfits to this split: pick it on the validation split, report the test split."


def remarks(summary: Summary) -> list[str]:
    """Notes on the figures: systems and their settings, failed questions, speed, rerank weights, statistics."""
    data = summary.dataset
    lines = [f"{data.questions:,} questions about {data.images:,} images ({data.name}, split {data.split})."]
    for name, results in summary.systems.items():
        speed = f", {results.questions_per_second:.1f} questions/s" if results.questions_per_second is not None else ""
        lines.append(f"{name}: {describe_system(results)}.")
        if results.without_cuda_graphs is not None:
            lines.append(f"{name}: decoding ran without CUDA graphs and was slower: {results.without_cuda_graphs}.")
        lines.append(f"{name}: {results.distinct_candidates:.1f} distinct candidates per question{speed}; {failure_count(results.errors)}.")
    lines += rerank_remarks(summary)
    if (missing := missing_font(summary)) is not None:
        lines.append(f"{missing[0].upper()}{missing[1:]}.")
    lines.append("random is a lower bound and oracle an upper bound that uses the references; neither is a method.")
    lines.append(
        "Intervals: 95 %, by a jackknife over images and Student's t. p: randomisation test that flips the sign of each image's "
        "difference at random."
    )
    lines += few_images_remark(summary)
    lines.append(
        "detectable: the smallest true difference in points that this many images show with a probability of 80 %; smaller ones may "
        "exist undetected. McNemar: exact test on exact matches, which treats questions as independent."
    )
    if summary.curve:
        lines.append(CURVE_REMARK)
    if summary.groups is not None:
        lines.append(
            "A group is compared by each question's mean score over its seeds; intervals cover questions, the spread covers seeds."
        )
    return lines


def describe_system(results: SystemFigures) -> str:
    """One line about a system: kind, path, quantisation, decoding, and the suffix of short questions."""
    model, decoding = results.model, results.decoding
    parts = [" ".join(str(part) for part in (results.kind, model.get("path")) if part is not None)]
    if "quantization" in model:
        parts.append(f"quantization {model['quantization']}")
    parts.append(f"{decoding['strategy']} with {decoding['num_candidates']} candidates, at most {decoding['max_new_tokens']} tokens")
    suffixes = [model[key] for key in ("short_answer_prompt", "short_answer_prompt_zh") if model.get(key)]
    parts.append("short questions end in " + " or ".join(f'"{suffix}"' for suffix in suffixes) if suffixes else "no prompt suffix")
    return ", ".join(parts)


def missing_font(summary: Summary) -> str | None:
    """What to say where Chinese questions are drawn and no installed font has their characters; else None."""
    measures = [choice for results in summary.systems.values() for choice in results.choices.values()]
    chinese = any("zh" in figures.by_language for figures in measures)
    return MISSING_FONT if chinese and chinese_font() is None else None


def failure_count(errors: int) -> str:
    """How many questions failed, in words."""
    if errors == 0:
        return "no question failed"
    message = "1 question failed and counts as wrong" if errors == 1 else f"{errors:,} questions failed and count as wrong"
    return f"{message} (reasons in the predictions file)"


def is_official(summary: Summary) -> bool:
    """Whether every question has the references that the official metric needs; so it is where there are no short questions at all."""
    fewest = summary.dataset.fewest_references
    return fewest is None or fewest >= OFFICIAL_REFERENCES


def accuracy_name(summary: Summary) -> str:
    """Name of the main metric, as it begins a heading."""
    return "Official VQA accuracy" if is_official(summary) else "VQA accuracy"


def accuracy_definition(summary: Summary) -> str:
    """What the main metric is, and where it is not the official one the reason; a clause without a full stop."""
    form = "nothing is normalised where all annotators agree verbatim"
    if is_official(summary):
        return f"the official metric of VQA v2, a ten-choose-nine average; {form}"
    fewest = summary.dataset.fewest_references
    have = "only one reference" if fewest == 1 else f"only {fewest} references" if fewest else "no reference"
    return (
        f"the average of the official metric of VQA v2 over the references that there are; {form}. It is not the official score, which "
        f"needs {OFFICIAL_REFERENCES} references a question: some question here has {have}, and then fewer matches give a full score"
    )


def few_images_remark(summary: Summary) -> list[str]:
    """That intervals say little, where there are fewer images than their coverage was simulated for; else empty."""
    numbers = [choice.clusters for results in summary.systems.values() for choice in results.choices.values()]
    if not numbers or min(numbers) >= MIN_CLUSTERS:
        return []
    images = "1 image or group of images that share questions" if min(numbers) == 1 else f"{min(numbers)} images or groups of images"
    unknown = "no difference can be shown, and how often an interval covers the true value is not known"
    return [f"Only {images}: with fewer than {MIN_CLUSTERS}, {unknown}."]


def can_change_sentence(figures: CanChange | None) -> str:
    """The same percentages of one system as a sentence; empty if there are none."""
    if figures is None:
        return ""
    sentence = (
        f"Choosing another candidate could change the score of {100 * figures.score_can_change:.1f} % of the questions, "
        f"and raise it for {100 * figures.score_can_rise:.1f} %."
    )
    if figures.skipped is None or figures.rerank_can_change is None or figures.rerank_can_rise is None:
        return sentence
    return (
        f"{sentence} Reranking skips {100 * figures.skipped:.1f} %, so it can change the score of {100 * figures.rerank_can_change:.1f} %, "
        f"and raise it for {100 * figures.rerank_can_rise:.1f} %."
    )


def _confidence_remarks(name: str, values: ConfidenceFigures) -> list[str]:
    """Sentences about the kinds of questions for which a system's confidence does not hold, and about those unlike the calibration's."""
    lines = [
        f"{name}: do not trust the confidence for {label}: {100 * part.confidence:.0f} % on average where "
        f"{100 * part.vqa_accuracy:.0f} % are right, calibration error {100 * part.ece:.0f}."
        for label, part in values.parts()
        if part.questions >= MIN_QUESTIONS and part.ece >= POOR_CALIBRATION
    ]
    if (unlike := values.unlike) is not None:
        lines.append(
            f"{name}: {unlike.questions:,} of {values.questions:,} questions are unlike those that the confidence was learnt from, "
            f"by their image or their words; their confidence is limited to {100 * UNLIKE_CONFIDENCE:.0f} %."
        )
    return lines


def rerank_remarks(summary: Summary) -> list[str]:
    """Notes: rerank weights and where they were chosen, fitted models, and the effect of abstaining."""
    if summary.rerank is None:
        return []
    rerank = summary.rerank
    weights = ", ".join(f"{name} {weight:g}" for name, weight in rerank.weights.items())
    scorers = rerank.scorers or {}
    details = [f"Rerank weights ({_CHOSEN_ON[rerank.chosen_on]}): {weights}"]
    if list(scorers) == ["clip"]:
        details.append(f"scorer {rerank.scorer}")
    elif scorers:
        details.append(f"scorers {', '.join(f'{name} {path}' for name, path in scorers.items())}")
    if rerank.clip_score_form is not None:
        details += [f"form of the CLIP scores: {rerank.clip_score_form}", f"statement form: {rerank.statement_form}"]
    lines = [f"{'; '.join(details)}."]
    lines += [sentence] if (sentence := tuning_sentence(summary).strip()) else []
    lines.append(_skipped_types_sentence(rerank))
    if rerank.learned is not None:
        lines.append(
            "learned: a logistic model per system over all scores, fitted on the validation split; no reference of the evaluated split is "
            "read in any fit."
        )
    if any(results.confidence is not None for results in summary.systems.values()):
        lines.append("Confidence: fitted and calibrated per system on the validation split only. AURC: mean error over all coverages.")
    for name, results in summary.systems.items():
        if results.confidence is None:
            continue
        lines += _confidence_remarks(name, results.confidence)
        if (values := results.confidence.abstaining) is not None:
            accuracy = f", {100 * values.vqa_accuracy:.1f} % of these right" if values.vqa_accuracy is not None else ""
            lines.append(
                f"{name} answers {100 * values.answered:.1f} % of the questions, abstaining below confidence {values.below:g}{accuracy}."
            )
    return lines


def tuning_sentence(summary: Summary) -> str:
    """Whether weights chosen on the validation split beat the configured ones on held-out folds of it; empty without tuning."""
    rerank = summary.rerank
    gain = None if rerank is None or rerank.validation is None else rerank.validation.tuned_gain
    if rerank is None or gain is None:
        return ""
    points = f"{100 * gain.difference:+.1f} points, p = {gain.p_value:.3f}"
    if rerank.chosen_on == "default":
        return f" On held-out folds of the validation split, tuned weights do not beat the configured ones ({points}), which are used."
    if gain.verdict == "a":
        return f" On held-out folds of the validation split, tuned weights beat the configured ones ({points}) and are used."
    return (
        f" Tuned weights are used because they score higher than the configured ones on held-out folds of the validation split ({points}), "
        "but are not shown to beat them."
    )


def _skipped_types_sentence(rerank: RerankFigures) -> str:
    """Which question types reranking skips, and the evidence from the validation split."""
    skipped, by_type = rerank.skipped_question_types, (rerank.validation and rerank.validation.skipped_question_types) or {}
    reranked = [
        f"{kind} ({100 * values.gain:+.1f} points, p = {values.p_holm:.3f} after Holm)"
        for kind, values in by_type.items()
        if not values.skipped
    ]
    sentence = f"Reranking skips {' and '.join(skipped)} questions." if skipped else "Reranking skips no question type."
    if reranked:
        return f"{sentence} The validation split shows a gain for {' and '.join(reranked)} questions."
    return f"{sentence} The validation split shows no gain for them." if by_type else sentence
