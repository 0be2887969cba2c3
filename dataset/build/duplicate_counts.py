"""Counts of equal image files and of near duplicates in different splits, for the report of a merge."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataset.build.deduplication import MergeResult
from dataset.build.image_validation import ImageCheck
from dataset.build.splits import SPLITS
from dataset.config import Split

MAX_EXAMPLES = 3
"""Number of examples that the report of a merge names for each reason."""


@dataclass
class EqualFiles:
    """How many of the image files are equal to another one that was named before.

    Args:
        checked: Image files that were checked and can be used.
        same_bytes: Files with the same bytes as one before.
        same_pixels: Files with other bytes, but the same pixels as one before.
    """

    checked: int = 0
    same_bytes: int = 0
    same_pixels: int = 0

    def line(self) -> str:
        """One line for the terminal."""
        equal = self.same_bytes + self.same_pixels
        return (
            f"{self.checked:,} image files checked, {equal:,} of them equal to another one "
            f"({self.same_bytes:,} in their bytes, {self.same_pixels:,} in their pixels only)"
        )


@dataclass
class NearDuplicates:
    """Images of one split that look like images of another one.

    Args:
        split: The split, test or validation.
        other: A split that is trained on or validated on before.
        images: Number of images of `split` that look like one of `other`.
        examples: Paths of the first pairs, at most MAX_EXAMPLES.
    """

    split: Split
    other: Split
    images: int = 0
    examples: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for the terminal."""
        return f"{self.images:,} {self.split} images look like images of {self.other}"


def count_equal_files(checks: Sequence[ImageCheck]) -> EqualFiles:
    """Counts over the usable files, in the order in which the records name them."""
    counts, bytes_seen, contents_seen = EqualFiles(), set[str](), set[str]()
    for check in checks:
        if check.reason:
            continue
        counts.checked += 1
        if check.sha256 in bytes_seen:
            counts.same_bytes += 1
        elif check.content in contents_seen:
            counts.same_pixels += 1
        bytes_seen.add(check.sha256)
        contents_seen.add(check.content)
    return counts


def near_duplicates_between_splits(merged: MergeResult) -> list[NearDuplicates]:
    """One entry for each two splits with images that look alike; the one of higher priority (test, validation) is counted."""
    counted: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    image_splits = merged.images["split"].to_pylist()
    for pair in merged.near_duplicates.tolist():
        low, high = sorted(pair, key=image_splits.__getitem__)
        splits = image_splits[high], image_splits[low]
        if splits[0] != splits[1]:
            counted[splits].setdefault(high, low)
    return [
        NearDuplicates(SPLITS[split], SPLITS[other], len(images), [_example(merged, *pair) for pair in list(images.items())[:MAX_EXAMPLES]])
        for (split, other), images in sorted(counted.items(), reverse=True)
    ]


def _example(merged: MergeResult, image: int, like: int) -> str:
    path, other = (merged.images["path"][index].as_py() for index in (image, like))
    return f"{path} looks like {other}"
