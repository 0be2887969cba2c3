"""What a reader must know about the main metric: when it may be called official, and when its intervals say little."""

from typing import Any

from evaluation.confidence_intervals import MIN_CLUSTERS

OFFICIAL_REFERENCES = 10
"""References a question that the official VQA accuracy is defined for."""


def is_official(summary: dict[str, Any]) -> bool:
    """Whether every question has the references that the official metric needs; so it is where there are no short questions at all."""
    return bool(summary["dataset"].get("fewest_references", OFFICIAL_REFERENCES) >= OFFICIAL_REFERENCES)


def accuracy_name(summary: dict[str, Any]) -> str:
    """Name of the main metric, as it begins a heading."""
    return "Official VQA accuracy" if is_official(summary) else "VQA accuracy"


def accuracy_definition(summary: dict[str, Any]) -> str:
    """What the main metric is, and where it is not the official one the reason; a clause without a full stop."""
    form = "nothing is normalised where all annotators agree verbatim"
    if is_official(summary):
        return f"the official metric of VQA v2, a ten-choose-nine average; {form}"
    fewest = summary["dataset"]["fewest_references"]
    have = "only one reference" if fewest == 1 else f"only {fewest} references" if fewest else "no reference"
    return (
        f"the average of the official metric of VQA v2 over the references that there are; {form}. It is not the official score, which "
        f"needs {OFFICIAL_REFERENCES} references a question: some question here has {have}, and then fewer matches give a full score"
    )


def few_images_remark(summary: dict[str, Any]) -> list[str]:
    """That intervals say little, where there are fewer images than their coverage was simulated for; else empty."""
    numbers = [choice["clusters"] for results in summary["systems"].values() for choice in results["choices"].values()]
    if not numbers or min(numbers) >= MIN_CLUSTERS:
        return []
    images = "1 image or group of images that share questions" if min(numbers) == 1 else f"{min(numbers)} images or groups of images"
    unknown = "no difference can be shown, and how often an interval covers the true value is not known"
    return [f"Only {images}: with fewer than {MIN_CLUSTERS}, {unknown}."]
