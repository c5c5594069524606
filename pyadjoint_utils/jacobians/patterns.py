"""Which numbers depend on which: boolean sparse matrices, exact or with too many entries, never with too few."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

Pattern = Any  # a boolean scipy.sparse.csr_array; SciPy says nothing of types

# A pattern with more entries, or one that takes more steps to compute, is as good as dense.
ENTRIES, STEPS = 5 * 10**7, 10**9


class DensePatternError(Exception):
    """A pattern has so many entries that it is not worth having."""


def identity(rows: int, columns: int | None = None, at: int = 0) -> Pattern:
    """Return the pattern of numbers that are columns ``at`` and following, each by itself."""
    return sparse.eye_array(rows, rows if columns is None else columns, k=at, dtype=bool, format="csr")


def full(rows: int, columns: int) -> Pattern:
    """Return the pattern where everything depends on everything."""
    _check(rows * columns)
    return sparse.csr_array(np.ones((rows, columns), bool))


def entries(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Pattern:
    """Return the pattern with entries at some places."""
    return sparse.csr_array((np.ones(np.size(rows), bool), (np.ravel(rows), np.ravel(columns))), shape=shape)


def nothing(rows: int, columns: int) -> Pattern:
    """Return the pattern without entries."""
    return sparse.csr_array((rows, columns), dtype=bool)


def product(a: Pattern, b: Pattern) -> Pattern:
    """Return what depends through ``b`` and then ``a``."""
    counts = np.diff(b.indptr)
    if counts[a.indices].sum(dtype=np.int64) > STEPS:
        raise DensePatternError
    found = a @ b
    _check(found.nnz)
    return found


def union(first: Pattern, *others: Pattern) -> Pattern:
    """Return what depends in any of some patterns of one shape."""
    for other in others:
        first = first + other
    _check(first.nnz)
    return first


def rows_at(pattern: Pattern, index: np.ndarray) -> Pattern:
    """Return the rows of a pattern by number; -1 stands for a row without entries."""
    index = np.asarray(index).reshape(-1)
    counts = np.append(np.diff(pattern.indptr), 0)
    _check(counts[index].sum(dtype=np.int64))
    if np.any(index < 0):
        pattern = sparse.vstack([pattern, nothing(1, pattern.shape[1])], format="csr")
        index = np.where(index < 0, pattern.shape[0] - 1, index)
    return pattern[index]


def gathered(pattern: Pattern, group: np.ndarray, count: int) -> Pattern:
    """Return a row for each of some groups: what any of its rows depends on.

    Args:
        pattern: the pattern.
        group: the number of the group of each row, -1 for none.
        count: how many groups there are.
    """
    group = np.asarray(group).reshape(-1)
    (rows,) = np.nonzero(group >= 0)
    return product(entries(group[rows], rows, (count, len(group))), pattern)


def everything(patterns: Sequence[Pattern], rows: int) -> Pattern:
    """Return rows that all depend on whatever any row of some patterns depends on."""
    stacked = sparse.vstack(patterns, format="csr")
    line = gathered(stacked, np.zeros(stacked.shape[0], int), 1)
    return rows_at(line, np.zeros(rows, int))


def _check(count: int) -> None:
    if count > ENTRIES:
        raise DensePatternError
