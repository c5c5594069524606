"""Compression: which columns and rows of a sparse matrix can share a product, and where each entry is read.

The colourings are greedy. Colours that are taken are the bits of a number, so that a colouring takes a few steps for each
entry. The graph of all pairs of columns that meet, which colouring libraries want, is never made.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pyadjoint_utils.jacobians.patterns import Pattern

# One product for each column or row is the alternative to more colours than these.
COLOURS = 4096
# The same where colours save less than a quarter of them: looking for colours then takes longer than they save.
WORTH = 0.75


@dataclass(frozen=True)
class Compression:
    """How a matrix of a pattern is computed from a few products with sums of unit vectors, and of its transpose.

    Attributes:
        pattern: where the matrix may have entries, in sorted rows.
        of_columns: for each column the number of the product ``J s`` that it takes part in, -1 for none.
        of_rows: for each row the number of the product ``J^T s``, likewise.
        forward: how many products ``J s`` there are.
        reverse: how many products ``J^T s``.
        product: for each entry the number of the product that it is read from; those with ``J`` come first.
        place: for each entry its place in the product.
    """

    pattern: Pattern
    of_columns: np.ndarray
    of_rows: np.ndarray
    forward: int
    reverse: int
    product: np.ndarray
    place: np.ndarray

    @property
    def products(self) -> int:
        """How many products there are."""
        return self.forward + self.reverse

    @cached_property
    def order(self) -> np.ndarray:
        """The entries in the order of the products that they are read from."""
        return np.argsort(self.product, kind="stable")

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each product's entries begin in that order, and where the last one's end."""
        return np.searchsorted(self.product[self.order], np.arange(self.products + 1))


def compressed(pattern: Pattern, *, reverse: bool = True) -> Compression | None:
    """Return the compression with the fewest products: by columns, by rows, or both.

    Args:
        pattern: a boolean matrix by rows.
        reverse: whether there are products with the transpose.

    Returns:
        The compression; None if it has hardly fewer products than one for each column, or each row.
    """
    rows, columns = _places(pattern)
    most = WORTH * (min(pattern.shape) if reverse else pattern.shape[1])
    found = []
    groups = _groups(pattern, most, apart=reverse)
    if groups is not None:
        of_columns, of_rows = groups
        found.append(_reading(pattern, of_columns, of_rows, of_rows[rows] >= 0))
    groups = _groups(pattern.T.tocsr(), most, apart=True) if reverse else None
    if groups is not None:
        of_rows, of_columns = groups
        found.append(_reading(pattern, of_columns, of_rows, of_columns[columns] < 0))
    best = min(found, key=lambda c: c.products, default=None)
    return best if best is not None and best.products <= most else None


def compressed_symmetric(pattern: Pattern) -> Compression | None:
    """Return a compression of a symmetric matrix, whose entries may be read at either of their places.

    Args:
        pattern: a symmetric boolean matrix by rows.

    Returns:
        The compression; None if it has hardly fewer products than one for each column.
    """
    most = WORTH * pattern.shape[0]
    colours = _Stars(pattern).colours if pattern.nnz <= most * pattern.shape[0] else None
    if colours is None or (count := max(colours, default=-1) + 1) > most:
        return None
    of_columns = np.array(colours, int)
    rows, columns = _places(pattern)
    # Where a row meets a colour twice, the entry is read at its other place.
    _, which, times = np.unique(rows * count + of_columns[columns], return_inverse=True, return_counts=True)
    other = times[which] > 1
    number = of_columns[np.where(other, rows, columns)]
    return Compression(pattern, of_columns, _none(pattern.shape[0]), count, 0, number, np.where(other, columns, rows))


def _none(count: int) -> np.ndarray:
    return np.full(count, -1)


def _places(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each entry."""
    return np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr)), pattern.indices.astype(int)


def _reading(pattern: Pattern, of_columns: np.ndarray, of_rows: np.ndarray, from_row: np.ndarray) -> Compression:
    """The compression where some entries are read from their row's product, the others from their column's."""
    rows, columns = _places(pattern)
    forward, reverse = int(np.max(of_columns, initial=-1)) + 1, int(np.max(of_rows, initial=-1)) + 1
    of_rows = np.where(of_rows < 0, -1, of_rows + forward)
    product = np.where(from_row, of_rows[rows], of_columns[columns])
    return Compression(pattern, of_columns, of_rows, forward, reverse, product, np.where(from_row, columns, rows))


# Columns that no row meets twice -----------------------------------------------------------------------------------------


def _groups(pattern: Pattern, most: float, *, apart: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Colour columns so that no row has two of one colour; a few dense rows, which would forbid that, may stand apart.

    Returns:
        The colour of each column, and that of each row that stands apart, -1 for the others; None for too many colours,
        which the fullest row and column often tell without colouring.
    """
    alone = _dense(np.diff(pattern.indptr)) if apart else np.zeros(pattern.shape[0], bool)
    rest, dense = pattern[np.flatnonzero(~alone)], pattern[np.flatnonzero(alone)].T.tocsr()
    if sum(int(np.max(np.diff(part.indptr), initial=0)) for part in (rest, dense)) > most:
        return None
    of_columns, colours = coloured(rest), coloured(dense)
    if of_columns is None or colours is None:
        return None
    of_rows = _none(pattern.shape[0])
    of_rows[alone] = colours
    return of_columns, of_rows


def _dense(counts: np.ndarray) -> np.ndarray:
    """Mark the rows that are better computed apart: the rest needs as many products as its fullest row has entries."""
    order = np.argsort(-counts, kind="stable")
    total = np.append(counts[order], 0) + np.arange(len(counts) + 1)
    apart = np.zeros(len(counts), bool)
    apart[order[: int(np.argmin(total))]] = True
    return apart


def coloured(pattern: Pattern) -> np.ndarray | None:
    """Colour the columns of a pattern so that no row has two of one colour.

    Returns:
        The colour of each column, -1 for those without entries; None if these are too many.
    """
    items = pattern.tocsc()
    counts, least = np.diff(items.indptr), int(np.max(np.diff(pattern.indptr), initial=0))
    if least > COLOURS:
        return None
    colours = _greedy(items, range(pattern.shape[1]), pattern.shape[0])
    if colours is None or max(colours, default=-1) + 1 > least:  # another order may need fewer
        again = _greedy(items, np.argsort(-counts, kind="stable").tolist(), pattern.shape[0])
        colours = min([c for c in (colours, again) if c is not None], key=max, default=None)
    return None if colours is None else np.where(counts, np.array(colours, int), -1)


def _greedy(items: Pattern, order: Iterable[int], rows: int) -> list[int] | None:
    """Give each column in turn the first colour that none of its rows has seen; bits are colours."""
    indices, starts = items.indices.tolist(), items.indptr.tolist()
    colours, seen = [0] * (len(starts) - 1), [0] * rows
    for item in order:
        met, taken = indices[starts[item] : starts[item + 1]], 0
        for k in met:
            taken |= seen[k]
        free = ~taken & (taken + 1)
        if free >> COLOURS:
            return None
        colours[item] = free.bit_length() - 1
        for k in met:
            seen[k] |= free
    return colours


# Colours that touch in stars ---------------------------------------------------------------------------------------------


class _Stars:
    """Colours the vertices of a graph so that neighbours differ, and any two colours touch in stars alone.

    Of the two ends of an edge, one then has a colour that no other neighbour of the other end has. Bits are colours.

    Args:
        pattern: a symmetric pattern, whose entries are the edges.
    """

    def __init__(self, pattern: Pattern) -> None:
        neighbours, ends = pattern.indices.tolist(), pattern.indptr.tolist()
        self.neighbours = [[w for w in neighbours[a:b] if w != v] for v, (a, b) in enumerate(itertools.pairwise(ends))]
        count = len(self.neighbours)
        self.colours: list[int] | None = None
        self._colours = [-1] * count
        self._seen = [0] * count  # the colours of the neighbours
        self._centres = [0] * count  # the colours of neighbours that have another neighbour of this vertex's colour
        self._alone: list[dict[int, int]] = [{} for _ in range(count)]  # the neighbour of a colour, -1 for several
        for v in np.argsort(-np.diff(pattern.indptr), kind="stable").tolist():
            free = self._free(v)
            if free >> COLOURS:
                return
            self._colour(v, free.bit_length() - 1, free)
        self.colours = self._colours

    def _free(self, v: int) -> int:
        """The first colour that no neighbour has and that closes no path over four vertices with two colours."""
        taken = 0
        for w in self.neighbours[v]:
            colour = self._colours[w]
            if colour >= 0:
                taken |= self._centres[w] | 1 << colour
                if self._alone[v][colour] < 0:
                    taken |= self._seen[w]
        return ~taken & (taken + 1)

    def _colour(self, v: int, colour: int, bit: int) -> None:
        self._colours[v] = colour
        for x in self.neighbours[v]:
            self._seen[x] |= bit
            theirs = self._colours[x]
            other = self._alone[x].setdefault(colour, v)
            if other != v:
                self._alone[x][colour] = -1
                if theirs >= 0:
                    self._centres[v] |= 1 << theirs
                    if other >= 0:
                        self._centres[other] |= 1 << theirs
            if theirs >= 0 and self._alone[v][theirs] < 0:
                self._centres[x] |= bit
