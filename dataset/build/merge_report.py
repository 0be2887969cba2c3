"""Counts of a merge: `report.json`, the list of all dropped records, and the table printed on the terminal."""

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from dataset.build.deduplication import MergeResult
from dataset.build.image_check_cache import ImageCheck
from dataset.build.splits import SPLITS
from dataset.config import DataConfig
from dataset.loading.source_mix import describe_shares, source_shares
from dataset.record_validation import DropReason
from dataset.remote_files import FilePath
from dataset.source_base import Split
from dataset.sources.record import RecordLocation
from errors import TesseraError

DROPPED_FILE = "dropped.jsonl"
"""List of all dropped records."""
MAX_EXAMPLES = 3
"""Number of examples that the report names for each reason."""
_MAX_EXAMPLE_CHARS = 400


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


@dataclass
class SourceReport:
    """Counts of one source; read = kept + the sum of dropped.

    Args:
        name: Name of the source.
        format: Format of the source.
        read: Records read.
        kept: Records kept.
        samples: Rows in samples.parquet, repeats included.
        training_samples: Those of the training split.
        training_share: Share in the samples of a training epoch that the configuration asks for; None if every sample is used once.
        moved: Kept records that were moved out of the source's own split, so that each image is in one split only.
        dropped: Dropped records by reason.
        examples: Locations of the first dropped records by reason, at most MAX_EXAMPLES each.
    """

    name: str
    format: str
    read: int = 0
    kept: int = 0
    samples: int = 0
    training_samples: int = 0
    training_share: float | None = None
    moved: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: DropReason, example: str) -> None:
        """Count one dropped record."""
        self.dropped[reason.value] = self.dropped.get(reason.value, 0) + 1
        examples = self.examples.setdefault(reason.value, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(_one_line(example))


@dataclass
class MergeReport:
    """Counts of a merge.

    Args:
        sources: Counts of each source.
        images: Rows in images.parquet.
        samples: Rows in samples.parquet.
        by_split: Rows in samples.parquet by split.
        by_language: Rows in samples.parquet by language.
        image_files: How many of the checked image files are equal to another one.
        near_duplicates: Images that look like images of another split.
        reused: Nothing had changed since the last merge, so this is its report.
        images_compared: Whether images were compared with each other; they are not while records are streamed.
    """

    sources: list[SourceReport]
    images: int = 0
    samples: int = 0
    by_split: dict[str, int] = field(default_factory=dict)
    by_language: dict[str, int] = field(default_factory=dict)
    image_files: EqualFiles = field(default_factory=EqualFiles)
    near_duplicates: list[NearDuplicates] = field(default_factory=list)
    reused: bool = field(default=False, compare=False)
    images_compared: bool = field(default=True, compare=False)

    def count_duplicates(self, checks: Sequence[ImageCheck], merged: MergeResult) -> None:
        """Fill in `image_files` and `near_duplicates`: of two splits with images that look alike, those of the one of higher priority
        (test, validation) are counted."""
        usable = [check for check in checks if not check.reason]
        num_bytes, num_contents = len({check.sha256 for check in usable}), len({check.content for check in usable})
        self.image_files = EqualFiles(len(usable), len(usable) - num_bytes, num_bytes - num_contents)
        counted: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        image_splits, paths = merged.images["split"].to_pylist(), merged.images["path"]
        for pair in merged.near_duplicates.tolist():
            low, high = sorted(pair, key=image_splits.__getitem__)
            if image_splits[low] != image_splits[high]:
                counted[image_splits[high], image_splits[low]].setdefault(high, low)
        for (split, other), images in sorted(counted.items(), reverse=True):
            examples = [f"{paths[image]} looks like {paths[like]}" for image, like in itertools.islice(images.items(), MAX_EXAMPLES)]
            self.near_duplicates.append(NearDuplicates(SPLITS[split], SPLITS[other], len(images), examples))

    def to_json(self) -> dict[str, object]:
        """The content of report.json."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in ("reused", "images_compared")}

    @classmethod
    def load(cls, path: Path) -> "MergeReport":
        """Read a report.json. Raises TesseraError when it is not one."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for key, kind in (("sources", SourceReport), ("near_duplicates", NearDuplicates)):
                content[key] = [kind(**entry) for entry in content[key]]
            return cls(**{**content, "image_files": EqualFiles(**content["image_files"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TesseraError(f"{path}: not a merge report ({error})") from error

    def empty_message(self) -> str:
        """One line for a merge that kept no sample: the dropped records, with the first example of each reason."""
        dropped = [
            f"{source.name}: {count:,} dropped, {reason} ({source.examples[reason][0]})"
            for source in self.sources
            for reason, count in source.dropped.items()
        ]
        return "; ".join([f"no sample is left of {sum(source.read for source in self.sources):,} records", *dropped])

    def table(self) -> str:
        """Table for the terminal: counts by source, reasons with example locations, totals."""
        return "\n".join([*self._counts(), *self._reasons(), *self._shares(), *self._totals()])

    def _counts(self) -> Iterator[str]:
        width = max(len("source"), *(len(source.name) for source in self.sources))
        yield f"{'source':{width}}  {'read':>9}  {'kept':>9}  {'dropped':>9}  {'samples':>9}"
        for source in self.sources:
            dropped = sum(source.dropped.values())
            yield f"{source.name:{width}}  {source.read:9,}  {source.kept:9,}  {dropped:9,}  {source.samples:9,}"

    def add_shares(self, config: DataConfig) -> None:
        """Add the share that each source has in a training epoch."""
        shares = source_shares(config, [source.training_samples for source in self.sources])
        for source, share in zip(self.sources, [None] * len(self.sources) if shares is None else shares.tolist(), strict=True):
            source.training_share = share

    def _shares(self) -> Iterator[str]:
        if any(shares := [source.training_share for source in self.sources]):
            described = describe_shares([source.name for source in self.sources], np.array(shares, dtype=float))
            yield f"shares of the sources in a training epoch: {described}"

    def _reasons(self) -> Iterator[str]:
        for source in self.sources:
            for reason, count in sorted(source.dropped.items(), key=lambda item: -item[1]):
                yield f"{source.name}: {count:,} dropped, {reason}:"
                yield from (f"    {example}" for example in source.examples[reason])
                if count > len(source.examples[reason]):
                    yield "    ..."
            if source.moved:
                yield f"{source.name}: {source.moved:,} left the source's own split, so that no image is in two splits"

    def _totals(self) -> Iterator[str]:
        yield from self._images()
        yield "by split: " + ", ".join(f"{name} {count:,}" for name, count in self.by_split.items())
        yield "by language: " + ", ".join(f"{name} {count:,}" for name, count in self.by_language.items())

    def _images(self) -> Iterator[str]:
        if not self.images_compared:
            yield f"{self.samples:,} samples"
            return
        files = self.image_files
        yield (
            f"{files.checked:,} image files checked, {files.same_bytes + files.same_pixels:,} of them equal to another one "
            f"({files.same_bytes:,} in their bytes, {files.same_pixels:,} in their pixels only)"
        )
        for entry in self.near_duplicates:
            look_alike = f"{entry.images:,} {entry.split} images look like images of {entry.other}"
            yield f"{look_alike} (data.split.near_duplicates=together keeps them in one split):"
            yield from (f"    {example}" for example in entry.examples)
        if not self.near_duplicates:
            yield "no two images of different splits look alike"
        yield f"{self.images:,} images, {self.samples:,} samples"


class DroppedRecords:
    """Counts dropped records in a report, and writes a line of JSON for each. A context manager: drop records inside.

    Args:
        report: The report with a `SourceReport` of each source.
        file: The list, replaced.
        annotations: Annotation file of each source.
    """

    def __init__(self, report: MergeReport, file: Path, annotations: Sequence[FilePath]):
        self.report, self.annotations = report, annotations
        # A lone surrogate in a text becomes its JSON escape.
        self._lines = file.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def drop(self, source: int, location: RecordLocation, reason: DropReason, detail: str) -> None:
        """Count and list one record, by the index of its source and its location in the annotation file."""
        report, annotations = self.report.sources[source], location.file or str(self.annotations[source])
        report.drop(reason, f"{annotations}: {location}: {detail}")
        row = {"source": report.name, "file": annotations, location.kind: location.number, "reason": reason, "detail": _one_line(detail)}
        self._lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _one_line(text: str) -> str:
    """Shorten to one line of valid UTF-8: examples quote records, which may contain anything."""
    line = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _MAX_EXAMPLE_CHARS else f"{line[:_MAX_EXAMPLE_CHARS]} ..."
