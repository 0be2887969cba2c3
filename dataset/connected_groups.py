"""Groups of things that are connected with each other, directly or through others."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def connected_groups(size: int, pairs: np.ndarray) -> np.ndarray:
    """The group of each member 0..size-1, int64 [size], numbered in the order of their first members.

    pairs: members that are connected, integers [p, 2].
    """
    first, second = pairs.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, dtype=np.int64)
