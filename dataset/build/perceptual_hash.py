"""Perceptual hashes of images, and the pairs of images that look alike.

pHash (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions): which of the lowest frequencies of the image,
scaled to 32 x 32 grey pixels, are stronger than their median. Scaling, compression and small changes of brightness leave it nearly as it
is. Since it knows neither colours nor flat areas, a thumbnail of 8 x 8 colours must agree as well.

Shapes: n images, p pairs.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

MAX_BITS = 6
"""Largest number of differing bits, of 64, of near duplicates. At most 6: `_candidates` would overlook more."""

MAX_COLOUR_DIFFERENCE = 8.0
"""Largest mean difference of the thumbnails' colours, 0..255, of near duplicates, after their mean brightness was made equal."""

MAX_BRIGHTNESS_DIFFERENCE = 32.0
"""Largest difference of the mean brightness of near duplicates, 0..255."""

_GRID, _SIDE, _FREQUENCIES = 32, 8, 8
THUMBNAIL_BYTES = _SIDE * _SIDE * 3

_MIN_STRENGTH = 1.0
"""A frequency counts as stronger from here on (standard deviation of the 32 x 32 grey values); below is the noise of compression."""

_PARTS = 8
_MAX_COMPARISONS = 500_000_000
_MIN_NEIGHBOURS = 256


def _cosines() -> np.ndarray:
    """Orthonormal DCT-II, float32 [frequencies, grid]."""
    k, x = np.arange(_FREQUENCIES)[:, None], np.arange(_GRID)[None, :]
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * _GRID)) * np.sqrt(2 / _GRID)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, dtype=np.float32)


_DCT = _cosines()


def appearance(preview: Image.Image) -> tuple[int, bytes]:
    """What an RGB image looks like: its hash, 64 bits as a signed integer, and its thumbnail, 8 x 8 RGB by rows. A preview of 32 pixels a
    side is enough."""
    grid = preview.resize((_GRID, _GRID), Image.Resampling.BOX)
    grey = np.frombuffer(grid.convert("L").tobytes(), dtype=np.uint8).reshape(_GRID, _GRID)
    strengths = (_DCT @ grey.astype(np.float32) @ _DCT.T).ravel()
    strengths[0] = 0  # the mean grey value is no structure
    bits = strengths > np.sort(strengths)[len(strengths) // 2] + _MIN_STRENGTH
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True), grid.reduce(_GRID // _SIDE).tobytes()


def near_duplicates(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The pairs of images that look alike, by index, the smaller first, int64 [p, 2], in ascending order.

    Args:
        hashes: Perceptual hashes, int64 [n].
        thumbnails: uint8 [n, THUMBNAIL_BYTES].
    """
    unsigned = hashes.astype(np.int64).view(np.uint64)
    found = [np.empty((0, 2), dtype=np.int64)]
    for first, second in _candidates(unsigned):
        close = np.bitwise_count(unsigned[first] ^ unsigned[second]) <= MAX_BITS
        first, second = first[close], second[close]
        alike = _have_like_colours(thumbnails[first], thumbnails[second])
        found.append(np.sort(np.stack([first[alike], second[alike]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _have_like_colours(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails, uint8 [p, THUMBNAIL_BYTES] each, agree apart from their brightness, bool [p]."""
    difference = first.astype(np.float32) - second
    brightness = difference.mean(1, keepdims=True)
    alike = np.abs(difference - brightness).mean(1) <= MAX_COLOUR_DIFFERENCE
    return np.asarray(alike & (np.abs(brightness[:, 0]) <= MAX_BRIGHTNESS_DIFFERENCE))


def _candidates(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that agree in two of the hash's eight bytes, as all with at most 6 differing bits do (Norouzi et al. 2012, multi-index
    hashing). Where very many images share two bytes, each is compared with a limited number of them."""
    most = max(_MIN_NEIGHBOURS, _MAX_COMPARISONS // (28 * max(1, len(hashes))))
    octets = hashes.view(np.uint8).reshape(-1, _PARTS)
    return itertools.chain.from_iterable(
        _pairs_with_equal_keys(octets[:, i].astype(np.uint16) << 8 | octets[:, j], most)
        for i, j in itertools.combinations(range(_PARTS), 2)
    )


def _pairs_with_equal_keys(keys: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of pairs with the same key, each compared with at most `most` others, one array of pairs for each distance in key order."""
    order = np.argsort(keys, kind="stable")
    in_order, positions = keys[order], np.arange(len(keys))
    for distance in range(1, most + 1):
        positions = positions[positions + distance < len(keys)]
        positions = positions[in_order[positions] == in_order[positions + distance]]
        if not len(positions):
            return
        yield order[positions], order[positions + distance]
