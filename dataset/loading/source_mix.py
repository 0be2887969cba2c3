"""How much each source takes part in an epoch: by weights, by a temperature, or by a number of its own epochs.

The plan depends on the seed alone, so that it is the same for any number of processes and after a resume. A source's samples are walked
through in an endless sequence of shuffled passes, from epoch to epoch: none is repeated before all others were used.

Shapes: n conversations, S sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset.config import DataConfig
from errors import UsageError


@dataclass(frozen=True, slots=True)
class SourceMix:
    """Which conversations an epoch has.

    Args:
        source: Index of the source of each conversation, int [n].
        counts: Conversations of each source in an epoch, int [S].
        samples: Number of samples of each conversation, int [n].
    """

    source: np.ndarray
    counts: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, config: DataConfig, source: np.ndarray, samples: np.ndarray) -> "SourceMix | None":
        """The mix that a configuration asks for; None if every sample is used once. source, samples: see above."""
        num_sources = len(config.sources)
        available = np.bincount(source, samples, num_sources)
        shares = source_shares(config, available)
        if shares is None:
            return None
        conversations = np.bincount(source, minlength=num_sources)
        per_epoch = available.sum() * epoch_length(config, available) * shares
        counts = np.rint(per_epoch * np.divide(conversations, available, out=np.zeros(num_sources), where=available > 0))
        return cls(source, np.maximum(counts, shares > 0).astype(np.int64), samples)

    def indices(self, seed: int, epoch: int) -> np.ndarray:
        """The conversations of an epoch, source by source, int64 [sum of counts]."""
        chosen = []
        for number, count in enumerate(self.counts.tolist()):
            members = np.flatnonzero(self.source == number)
            if count and len(members):
                first, last = divmod(epoch * count, len(members))[0], ((epoch + 1) * count - 1) // len(members)
                passes = [np.random.default_rng((seed, number, each)).permutation(members) for each in range(first, last + 1)]
                begin = epoch * count - first * len(members)
                chosen.append(np.concatenate(passes)[begin : begin + count])
        return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)

    def shares(self, indices: np.ndarray) -> np.ndarray:
        """The share of each source in the samples of some conversations, float [S]."""
        counted = np.bincount(self.source[indices], self.samples[indices], len(self.counts))
        share: np.ndarray = counted / max(counted.sum(), 1)
        return share


def source_shares(config: DataConfig, available: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """The share of each source in the training samples of an epoch, float [S]; None if nothing but its size decides.

    Args:
        config: Weights, temperature or epochs of the sources.
        available: Number of training samples of each source.

    Raises:
        UsageError: A source with a weight has no training sample.
    """
    sizes = np.array(available, dtype=np.float64)
    if config.weights is not None:
        if missing := [i for i, size in enumerate(sizes) if not size]:
            raise UsageError(f"data.sources.{missing[0]}.weight: the source has no training sample")
        portions = np.array(config.weights)
    elif config.mix_temperature is not None:
        portions = np.where(sizes > 0, sizes ** (1 / config.mix_temperature), 0.0)
    elif any(source.epochs is not None for source in config.sources):
        portions = sizes * _source_epochs(config)
    else:
        return None
    shares: np.ndarray = portions / max(portions.sum(), 1e-12)
    return shares


def epoch_length(config: DataConfig, available: np.ndarray) -> float:
    """Samples of an epoch as a multiple of all training samples: 1, unless sources have epochs of their own."""
    if config.weights is not None or config.mix_temperature is not None:
        return 1.0
    return float((available * _source_epochs(config)).sum() / max(available.sum(), 1))


def _source_epochs(config: DataConfig) -> np.ndarray:
    return np.array([1.0 if source.epochs is None else source.epochs for source in config.sources])


def describe_shares(names: Sequence[str], shares: np.ndarray) -> str:
    """The shares in words: `coco 30.0 %, vqa 70.0 %`."""
    return ", ".join(f"{name} {share:.1%}".replace("%", " %") for name, share in zip(names, shares.tolist(), strict=True))
