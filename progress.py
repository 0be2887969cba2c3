"""Progress of long-running work: a tqdm bar on a terminal, plain log lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """Counter of finished items; `update` is cheap enough to call for every item.

    On a terminal a tqdm bar; elsewhere (log file, CI) at most one line every `interval` seconds, and one at the end.

    Args:
        title: printed before the count.
        total: number of items; None: unknown.
        unit: name of an item.
        interval: least seconds between two lines.
    """

    def __init__(self, title: str, total: int | None, unit: str = "it", interval: float = 10.0):
        self.title, self.total, self.unit, self.interval = title, total, unit, interval
        self.done, self.note = 0, ""
        self.printed_count = -1
        self.started = self.last_printed = time.monotonic()
        self.bar = tqdm(total=total, desc=title, unit=unit, leave=True) if sys.stderr.isatty() else None

    def update(self, n: int = 1, note: str = "") -> None:
        """Add `n` finished items. `note` is a short text printed after the count, such as a running accuracy."""
        self.done += n
        self.note = note or self.note
        if self.bar is not None:
            self.bar.update(n)
            if note:
                self.bar.set_postfix_str(note)
        elif time.monotonic() - self.last_printed >= self.interval:
            self._line()

    def _line(self) -> None:
        self.last_printed, self.printed_count = time.monotonic(), self.done
        seconds = self.last_printed - self.started
        rate = f"{self.done / seconds:,.1f} {self.unit}/s" if seconds > 0 else ""
        total = f"/{self.total:,}" if self.total is not None else ""
        parts = [f"{self.title}: {self.done:,}{total} {self.unit}", f"{seconds:.0f} s", rate, self.note]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.printed_count != self.done:
            self._line()


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield `items` and show the progress."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(title, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
