"""Counts of the first pass over each source while it is streamed, in the form of a merge's report."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, get_args

from dataset.build.merge_report import MAX_EXAMPLES, MergeReport, SourceReport
from dataset.build.splits import SPLITS
from dataset.config import DataConfig
from dataset.sample import Language
from dataset.sources.record import RecordLocation, RejectedRecord
from dataset.streaming.checked_sample import CheckedSample


@dataclass
class StreamReport:
    """What one stream has counted.

    Args:
        sources: Counts of each source.
        by_split: Samples by split, repeats included.
        by_language: Samples by language.
        ended: Whether the first pass over each source has ended.
    """

    sources: list[SourceReport]
    by_split: Counter[str] = field(default_factory=Counter)
    by_language: Counter[str] = field(default_factory=Counter)
    ended: list[bool] = field(default_factory=list)

    @classmethod
    def empty(cls, names: Sequence[str], formats: Sequence[str]) -> Self:
        """The report before anything is read."""
        return cls([SourceReport(name, kind) for name, kind in zip(names, formats, strict=True)], ended=[False] * len(names))

    @classmethod
    def load(cls, content: dict[str, Any]) -> Self:
        """What `to_json` returned."""
        sources = [SourceReport(**source) for source in content["sources"]]
        return cls(sources, Counter(content["by_split"]), Counter(content["by_language"]), list(content["ended"]))

    def to_json(self) -> dict[str, Any]:
        """The counts, for JSON."""
        sources = [dataclasses.asdict(source) for source in self.sources]
        return {"sources": sources, "by_split": dict(self.by_split), "by_language": dict(self.by_language), "ended": self.ended[:]}

    def count(self, source: int, location: RecordLocation, checked: CheckedSample | RejectedRecord, config: DataConfig) -> None:
        """Count one record of a source, by its index."""
        report = self.sources[source]
        report.read += 1
        if isinstance(checked, RejectedRecord):
            file = location.file or config.sources[source].annotation_files[0]
            report.drop(checked.reason, f"{file}: {location}: {checked.detail}")
            return
        sample = checked.sample
        copies = config.sources[source].repeat if sample.split == "train" else 1
        report.kept += 1
        report.samples += copies
        report.training_samples += copies if sample.split == "train" else 0
        self.by_split[sample.split] += copies
        self.by_language[sample.language] += copies

    def end(self, source: int) -> None:
        """Note that a pass over a source has ended."""
        self.ended[source] = True

    def merged(self, others: Sequence["StreamReport"]) -> MergeReport:
        """The report of this stream and others together."""
        reports = [self, *others]
        by_split, by_language = (sum((getattr(report, name) for report in reports), Counter[str]()) for name in ("by_split", "by_language"))
        return MergeReport(
            [_added([report.sources[i] for report in reports]) for i in range(len(self.sources))],
            samples=sum(by_split.values()),
            by_split={split: by_split[split] for split in SPLITS},
            by_language={language: by_language[language] for language in get_args(Language)},
            images_compared=False,
        )


def _added(reports: Sequence[SourceReport]) -> SourceReport:
    """The sums of the counts of one source, with the first examples."""
    total = SourceReport(reports[0].name, reports[0].format)
    for report in reports:
        for name in ("read", "kept", "samples", "training_samples"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        for reason, count in report.dropped.items():
            total.dropped[reason] = total.dropped.get(reason, 0) + count
            total.examples[reason] = [*total.examples.get(reason, []), *report.examples[reason]][:MAX_EXAMPLES]
    return total
