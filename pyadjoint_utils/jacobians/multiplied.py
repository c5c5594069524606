"""A matrix that is known by its products alone: computed by few of them, or one by one, and compared with another one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse

from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.jacobians.colouring import Compression, compressed, compressed_symmetric
from pyadjoint_utils.jacobians.group_probing import probed
from pyadjoint_utils.jacobians.patterns import Pattern

Product = Callable[[np.ndarray], np.ndarray]

# How many rows or columns are looked at where a product differs from the true one.
LINES = 8


@dataclass(frozen=True)
class Multiplied:
    """A matrix of derivatives that can be multiplied.

    Attributes:
        shape: the numbers of rows and columns.
        dtype: of its entries.
        forward: takes directions ``(k, columns)``, returns the matrix times each, ``(k, rows)``.
        reverse: the same with the transpose; None where that is not the adjoint.
        symmetric: whether the matrix is.
        at_once: how many products fit in memory.
        eps: relative rounding of the coarsest numbers on the way.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    forward: Product
    reverse: Product | None
    symmetric: bool
    at_once: int
    eps: float

    def compression(self, pattern: Pattern) -> Compression | None:
        """Return how few products give the entries of a pattern; None if one by one they are not more."""
        if self.symmetric:
            return compressed_symmetric(pattern)
        return compressed(pattern, reverse=self.reverse is not None)

    def entries(self, compression: Compression, *, check: bool = False) -> tuple[Any, list[tuple[int, int]] | None]:
        """Return the matrix, read from the products of a compression; and the entries that it misses, if that is checked.

        Args:
            compression: how few products give its entries.
            check: compare a product along a random direction with the true one, by the other sweep where there is one.

        Returns:
            The matrix; None if it agrees to rounding or is not checked, else places where it lacks an entry, as far as one
            more product tells.
        """
        along = self._direction(self.shape[1])[None] if check and self.reverse is None else np.zeros((0, self.shape[1]))
        data = np.zeros(compression.pattern.nnz, self.dtype)
        order, ends = compression.order, compression.ends
        found = np.zeros((0, self.shape[0]))
        for multiply, numbers, first, last in (
            (self.reverse, compression.of_rows, compression.forward, compression.products),
            (self.forward, compression.of_columns, 0, compression.forward),
        ):
            for start, stop in self._parts(first, last):
                seeds = np.zeros((stop - start, len(numbers)))
                (mine,) = np.nonzero((numbers >= start) & (numbers < stop))
                seeds[numbers[mine] - start, mine] = 1.0
                # The direction of the check joins the last part: another number of directions may have to be compiled.
                found = multiply(np.concatenate([seeds, along]) if stop == compression.forward else seeds)  # type: ignore[misc]
                read = order[ends[start] : ends[stop]]
                data[read] = found[compression.product[read] - start, compression.place[read]]
        pattern = compression.pattern
        matrix = sparse.csr_array((data, pattern.indices.copy(), pattern.indptr.copy()), shape=self.shape)
        if not check:
            return matrix, None
        if len(along) and compression.forward:
            return matrix, self._missed_along(matrix, found[-1])
        return matrix, self.missed(matrix, forward=compression.forward > 0)

    def one_by_one(self) -> Any:
        """Return the matrix by a product for each column, or for each row if these are fewer."""
        rows, columns = self.shape
        by_rows = self.reverse is not None and rows < columns
        multiply, count = (self.reverse, rows) if by_rows else (self.forward, columns)
        found = [sparse.csr_array((0, columns if by_rows else rows), dtype=self.dtype)]
        for start, stop in self._parts(0, count):
            found.append(sparse.csr_array(multiply(np.eye(stop - start, count, k=start))))  # type: ignore[misc]
        stacked = sparse.vstack(found, format="csr", dtype=self.dtype)
        return stacked if by_rows else stacked.T.tocsr()

    def probed(self) -> Pattern | None:
        """Return where the matrix has entries, found by products; None if that takes half as many as one by one."""
        pattern = probed(self.forward, *self.shape, most=min(self.shape) // 2)
        return pattern + pattern.T if self.symmetric and pattern is not None else pattern

    def missed(self, matrix: Any, *, forward: bool) -> list[tuple[int, int]] | None:
        """Compare a matrix with the true one along a random direction.

        Args:
            matrix: what is compared.
            forward: whether it was computed by products with the matrix itself; then the transpose is asked first, so that
                the two sweeps are compared with each other, too.

        Returns:
            As :meth:`entries`.
        """
        if forward and self.reverse is not None:
            try:
                return self._missed_across(matrix)
            except NotDifferentiableError:  # a rule by hand for one sweep alone
                pass
        return self._missed_along(matrix, self.forward(self._direction(self.shape[1])[None])[0])

    def _missed_across(self, matrix: Any) -> list[tuple[int, int]] | None:
        """Compare with the transpose, whose sums show what a small row lacks only if all rows are brought to one size."""
        direction = self._direction(self.shape[0])[None]
        sizes = _sizes(matrix, self.eps)
        even = self._divided(sizes)
        wrong = even._missed(_divided(matrix, sizes), even.reverse(direction)[0], transposed=True)  # type: ignore[misc]
        if wrong == []:  # that may be the rounding of a row in which everything cancels
            wrong = self._missed(matrix, self.reverse(direction)[0], transposed=True)  # type: ignore[misc]
        return wrong

    def _missed_along(self, matrix: Any, product: np.ndarray) -> list[tuple[int, int]] | None:
        """Compare with the product along the random direction in the same way."""
        sizes = _sizes(matrix, self.eps)
        wrong = self._divided(sizes)._missed(_divided(matrix, sizes), product / sizes, transposed=False)
        return self._missed(matrix, product, transposed=False) if wrong == [] else wrong

    def _divided(self, sizes: np.ndarray) -> "Multiplied":
        """The matrix whose rows are divided by numbers."""
        back = self.forward if self.symmetric else self.reverse
        reverse = None if back is None else lambda rows: back(rows / sizes)
        return replace(self, forward=lambda rows: self.forward(rows) / sizes, reverse=reverse, symmetric=False)

    def _direction(self, length: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.uniform(0.5, 1.5, length) * rng.choice([-1.0, 1.0], length)

    def _missed(self, matrix: Any, product: np.ndarray, *, transposed: bool) -> list[tuple[int, int]] | None:
        """Compare products of a matrix, or of its transpose, with the true one; look closer at where they differ most."""
        lines = matrix.T.tocsr() if transposed else matrix
        direction = self._direction(lines.shape[1])
        excess = self._excess(product, lines @ direction, abs(lines) @ abs(direction))
        (apart,) = np.nonzero(excess > 0.0)
        if not len(apart):
            return None
        worst = apart[np.argsort(-excess[apart])][: min(LINES, self.at_once)]
        crossing = self.forward if transposed or self.symmetric else self.reverse
        units = np.zeros((len(worst), lines.shape[0]))
        units[np.arange(len(worst)), worst] = 1.0
        try:
            found = crossing(units) if crossing is not None else units[:0]
        except NotDifferentiableError:
            found = units[:0]
        places: list[tuple[int, int]] = []
        for k, values in zip(worst.tolist(), found, strict=False):
            line = lines[[k]]
            expected = line.toarray()[0]
            outside = self._excess(values, expected, abs(expected)) > 0.0
            outside[line.indices] = False
            places += [(m, k) if transposed else (k, m) for m in np.flatnonzero(outside).tolist()]
        return places

    def _excess(self, found: np.ndarray, expected: np.ndarray, size: np.ndarray) -> np.ndarray:
        """How far two vectors differ by more than rounding, given the size of the terms behind each number."""
        finite = np.isfinite(size)
        largest = np.max(size, initial=0.0, where=finite)
        with np.errstate(invalid="ignore"):
            excess = np.abs(found - expected) - self.eps ** (2 / 3) * size - 1e3 * self.eps * largest
        return np.where(np.isfinite(found) & finite, excess, np.where(np.isfinite(found) == finite, -1.0, np.inf))

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for start in range(first, last, self.at_once):
            yield start, min(start + self.at_once, last)


def _sizes(matrix: Any, eps: float) -> np.ndarray:
    """The size of each row beside that of the smallest one; rows of zeros count as still smaller."""
    sizes = abs(matrix) @ np.ones(matrix.shape[1])
    there = sizes[np.isfinite(sizes) & (sizes > 0.0)]
    smallest, largest = (there.min(), there.max()) if len(there) else (1.0, 1.0)
    sizes = np.where(np.isfinite(sizes), sizes, largest) / smallest
    return np.where(sizes > 0.0, sizes, eps)


def _divided(matrix: Any, sizes: np.ndarray) -> Any:
    """The matrix with each row divided by a number."""
    data = matrix.data / np.repeat(sizes, np.diff(matrix.indptr))
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
