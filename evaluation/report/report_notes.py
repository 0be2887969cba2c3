"""The notes of a report: systems and their settings, failed questions, speed, statistics, what is missing; and what a reader must know
about the main metric: when it may be called official, and when its intervals say little."""

from answering.rendering import MISSING_FONT, chinese_font
from evaluation.confidence_intervals import MIN_CLUSTERS
from evaluation.report import rerank_tables
from evaluation.schema.summary_file import Summary, SystemFigures

OFFICIAL_REFERENCES = 10
"""References a question that the official VQA accuracy is defined for."""
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
    lines += rerank_tables.remarks(summary)
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
