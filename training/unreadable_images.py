"""Images that can no longer be read during training: which sample takes a place, and how many a run puts up with.

A loading worker replaces the sample (`substitutes`) and names the image in its batch; the trainer collects the names from all ranks
(`UnreadableImages`). They stand in the History, so checkpoints hold them, and a resumed run goes on counting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.loading.collators import UnreadableImage
from errors import TesseraError
from process_group import ProcessGroup
from training.monitoring.metrics_history import History

MAX_SUBSTITUTES = 4
"""Samples that are tried in the place of one. When their images cannot be read either, the place stays empty."""
SIMILAR_LENGTHS = 32
"""Substitutes are chosen among this many samples: the longest of those that fit into the place."""


def substitutes(lengths: np.ndarray, index: int, seed: int, epoch: int) -> list[int]:
    """The samples to try in the place of sample `index`, best first. They are no longer, so that a packed row does not overflow.

    The arguments alone decide, so every process and a resumed run choose alike. lengths: int [n], tokens of each in this epoch.
    """
    fitting = np.flatnonzero(lengths <= lengths[index])
    fitting = fitting[fitting != index]
    longest = fitting[np.argsort(-lengths[fitting], kind="stable")][:SIMILAR_LENGTHS]
    chosen: list[int] = np.random.default_rng((seed, epoch, index)).permutation(longest)[:MAX_SUBSTITUTES].tolist()
    return chosen


@dataclass(frozen=True, slots=True)
class UnreadableLimit:
    """How many different images of a run may be unreadable. share: train.max_unreadable_images; images: images of the run."""

    share: float
    images: int

    @property
    def allowed(self) -> int:
        """A share above 0 allows at least one image, however few there are."""
        return max(1, int(self.share * self.images)) if self.share else 0

    def check(self, count: int, last_error: str) -> None:
        """Raise TesseraError when `count` images are too many. last_error: about the last of them, for the message."""
        if count > self.allowed:
            raise TesseraError(
                f"{count} of {self.images:,} images cannot be read any more, train.max_unreadable_images={self.share:g} allows "
                f"{self.allowed}; the last one: {last_error}"
            )


class UnreadableImages:
    """Counts and names the unreadable images of a run, each once, over all ranks and stages.

    Args:
        history: Gets a row for each image.
        limit: How many there may be.
        group: Rank and world size.
        print_once: Prints a line on rank 0.
    """

    def __init__(self, history: History, limit: UnreadableLimit, group: ProcessGroup, print_once: Callable[[str], None]):
        self._history, self._limit, self._group, self._print_once = history, limit, group, print_once
        self._known = {row["unreadable_image"] for row in history.rows if "unreadable_image" in row}
        self._pending: list[UnreadableImage] = []

    def __len__(self) -> int:
        return len(self._known)

    def metrics(self) -> dict[str, int]:
        """The count for the status line; empty while all images could be read."""
        return {"unreadable_images": len(self)} if self._known else {}

    def add(self, images: Sequence[UnreadableImage]) -> None:
        """Note images of a batch of this rank."""
        self._pending += images

    def add_step(self, images: Sequence[UnreadableImage], step: int, stage: str) -> None:
        """Note images of a training step, and collect them at once where no other rank must be asked."""
        self.add(images)
        if self._pending and self._group.world_size == 1:
            self.collect(step, stage)

    def collect(self, step: int, stage: str) -> None:
        """Name the images that are new, and count them. A collective operation: every rank must call it.

        Raises TesseraError, on all ranks alike, when they are too many.
        """
        gathered = self._group.gather(self._pending)
        self._pending = []
        for image in (image for images in gathered for image in images):
            if image.path in self._known:
                continue
            self._known.add(image.path)
            self._history.rows.append({"step": step, "stage": stage, "unreadable_image": image.path, "sample": image.sample_id})
            effect = f"is replaced by {image.replaced_by}" if image.replaced_by else "is left out"
            self._print_once(
                f"step {step:,}: {image.error}; sample {image.sample_id} {effect} "
                f"({len(self)} unreadable of at most {self._limit.allowed:,} images)"
            )
            self._limit.check(len(self), image.error)
