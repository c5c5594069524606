"""A matrix that is known by its products alone: computed by few of them, or one by one, and compared with another one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.jacobians.colouring import Compression, compressed, compressed_symmetric
from pyadjoint_utils.jacobians.group_probing import probed
from pyadjoint_utils.jacobians.patterns import Pattern

Product = Callable[[np.ndarray], np.ndarray]


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
            return matrix, self._missed(matrix, found[-1], transposed=False)
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
                product = self.reverse(self._direction(self.shape[0])[None])[0]
                return self._missed(matrix.T.tocsr(), product, transposed=True)
            except NotDifferentiableError:  # a rule by hand for one sweep alone
                pass
        return self._missed(matrix, self.forward(self._direction(self.shape[1])[None])[0], transposed=False)

    def _direction(self, length: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.uniform(0.5, 1.5, length) * rng.choice([-1.0, 1.0], length)

    def _missed(self, matrix: Any, product: np.ndarray, *, transposed: bool) -> list[tuple[int, int]] | None:
        direction = self._direction(matrix.shape[1])
        excess = self._excess(product, matrix @ direction, abs(matrix) @ abs(direction))
        if not np.any(excess > 0.0):
            return None
        row = int(np.argmax(excess))
        crossing = self.forward if transposed or self.symmetric else self.reverse
        try:
            found = crossing(np.eye(1, matrix.shape[0], k=row))[0] if crossing is not None else None
        except NotDifferentiableError:
            found = None
        if found is None:
            return []
        line = matrix[[row]]
        expected = line.toarray()[0]
        outside = self._excess(found, expected, abs(expected)) > 0.0
        outside[line.indices] = False
        return [(int(k), row) if transposed else (row, int(k)) for k in np.flatnonzero(outside)]

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
