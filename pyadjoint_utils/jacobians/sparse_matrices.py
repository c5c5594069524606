"""Sparse Jacobians and Hessians of a tape: where there are entries, and how few products give them all."""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from pyadjoint_utils import memory
from pyadjoint_utils.black_boxes.differences import precision
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.jacobians.colouring import Compression
from pyadjoint_utils.jacobians.dependencies import Dependencies, UnknownPatternError
from pyadjoint_utils.jacobians.hessian_matrix import hessian_of
from pyadjoint_utils.jacobians.jacobian import Jacobian
from pyadjoint_utils.jacobians.multiplied import Multiplied, Product
from pyadjoint_utils.jacobians.patterns import DensePatternError, Pattern
from pyadjoint_utils.jacobians.seeds import bytes_of
from pyadjoint_utils.memory import check_matrix
from pyadjoint_utils.plan import aval_of

_log = logging.getLogger(__name__)


def sparse_jacobian(rf: Any, sparsity: Any) -> Any:
    """Return the Jacobian of a reduced function as sparse matrices; see :meth:`ReducedFunction.jac_matrix`."""
    rf._linearize()
    jacobian = Jacobian(rf._plan, rf._outputs, rf._controls)
    jacobian.check_holomorphic()
    outputs, controls = [[aval_of(bv) for bv in side] for side in (jacobian.outputs, jacobian.controls)]
    real = all(aval.dtype.kind != "c" for aval in (*outputs, *controls))
    rows, columns = _Side("outputs", rf._outputs.listed, outputs), _Side("controls", rf._controls.listed, controls)

    def found(push: Product, pull: Product | None) -> Any:
        search = _Search(
            "Jacobian",
            _multiplied(outputs, controls, push, pull, {*rf._plan.touched, *jacobian.controls, *jacobian.outputs}),
            rf._plan.patterns.setdefault("Jacobian" if pull is not None else "Jacobian by columns", {}),
            lambda: Dependencies(rf._plan, jacobian.controls).jacobian(jacobian.outputs),
        )
        return _blocks(_searched(search, sparsity, rows, columns), outputs, controls)

    push: Product = lambda rows: _joined(jacobian.push(_parted(rows, controls)))  # noqa: E731
    try:
        blocks = found(push, (lambda rows: _joined(jacobian.pull(_parted(rows, outputs)))) if real else None)
    except NotDifferentiableError:
        if not real:
            raise
        blocks = found(push, None)  # there may be a rule by hand for tangents alone
    return rf._outputs.delist([rf._controls.delist(row) for row in blocks])


def sparse_hessian(rf: Any, adj: Any, sparsity: Any) -> Any:
    """Return the second derivatives of a reduced function as sparse matrices; see :meth:`ReducedFunction.hess_matrix`."""
    rf._linearize()
    hessian = hessian_of(rf, adj)
    hessian.check_real()
    controls, outputs = [aval_of(bv) for bv in hessian.controls], list(hessian.seeds)
    multiplied = _multiplied(
        controls,
        controls,
        lambda rows: _joined(hessian.times(_parted(rows, controls))),
        None,
        {*rf._plan.touched, *hessian.controls, *outputs},
    )
    search = _Search(
        "Hessian",
        multiplied,
        rf._plan.patterns.setdefault(tuple(outputs), {}),
        lambda: Dependencies(rf._plan, hessian.controls).hessian(outputs),
    )
    side = _Side("controls", rf._controls.listed, controls)
    blocks = _blocks(_searched(search, sparsity, side, side), controls, controls)
    return rf._controls.delist([rf._controls.delist(row) for row in blocks])


def _searched(search: "_Search", sparsity: Any, rows: "_Side", columns: "_Side") -> Any:
    if isinstance(sparsity, str) and sparsity == "detect":
        return search.detected()
    pattern = _given(sparsity, rows, columns)
    return search.of(pattern + pattern.T if rows is columns else pattern)


class _Found(NamedTuple):
    """What is known of a matrix.

    Attributes:
        compression: how it is computed; None for one product for each column or row.
        traced: whether it follows from the programs, at every point.
        checked: whether it is not compared with the true one any more.
    """

    compression: Compression | None
    traced: bool
    checked: bool = False


class _Search:
    """Computes a sparse matrix, and keeps what it finds out about its pattern.

    Args:
        name: ``"Jacobian"`` or ``"Hessian"``.
        multiplied: the matrix.
        kept: what was found out before, by pattern; None stands for detection.
        traced: returns the pattern if that can be told without evaluating anything.
    """

    def __init__(
        self, name: str, multiplied: Multiplied, kept: dict[Any, _Found], traced: Callable[[], Pattern]
    ) -> None:
        self._name, self._multiplied, self._kept, self._traced = name, multiplied, kept, traced
        self._label = f"{name} {multiplied.shape[0]} x {multiplied.shape[1]}"

    def of(self, pattern: Pattern) -> Any:
        """Return the matrix, whose entries are where the user says; that is checked each time."""
        key = (pattern.indptr.tobytes(), pattern.indices.tobytes())
        if key not in self._kept:
            self._kept[key] = self._compressed(pattern, traced=False)
        found = self._kept[key]
        matrix, wrong = self._matrix(found)
        if found.compression is None:
            wrong = _outside(matrix, pattern)
        if wrong is None:
            return matrix
        places = ", ".join(f"({i}, {j})" for i, j in wrong[:3]) or "where, one product does not tell"
        raise ArgumentValueError(
            f"The sparsity pattern, with {pattern.nnz} entries, misses entries of the {self._label}: {places}. A product "
            'along a random direction shows it. Add them, or write sparsity="detect".'
        )

    def detected(self) -> Any:
        """Return the matrix, whose entries are found."""
        found = self._kept.get(None) or self._structure()
        for _ in range(2):
            matrix, wrong = self._matrix(found)
            if wrong is None:
                # Where one sweep does everything, a check is one more direction; without it, another program is compiled.
                self._kept[None] = found._replace(checked=found.traced and self._multiplied.reverse is not None)
                return matrix
            found = self._probed(found)
        return self._matrix(_Found(None, traced=False))[0]

    def _structure(self) -> _Found:
        try:
            return self._compressed(self._traced(), traced=True)
        except UnknownPatternError:
            return self._probed(None)
        except DensePatternError:
            return _Found(None, traced=True, checked=True)

    def _probed(self, before: _Found | None) -> _Found:
        """Look where there are entries at this point; at another one there may be more."""
        if before is not None and before.traced:
            _log.warning("%s: there are entries where no function on the tape declared any.", self._label)
        pattern = self._multiplied.probed()
        if pattern is None:
            return _Found(None, traced=False, checked=True)
        if before is not None and before.compression is not None:
            pattern = pattern + before.compression.pattern
        return self._compressed(pattern, traced=False)

    def _compressed(self, pattern: Pattern, *, traced: bool) -> _Found:
        pattern.sort_indices()
        compression = self._multiplied.compression(pattern)
        if compression is not None:
            counts = pattern.nnz, compression.forward, compression.reverse
            _log.info("%s: %d entries from %d products and %d with the transpose.", self._label, *counts)
        return _Found(compression, traced, checked=compression is None)

    def _matrix(self, found: _Found) -> tuple[Any, list[tuple[int, int]] | None]:
        """The matrix, and places where it lacks an entry."""
        if found.compression is not None:
            return self._multiplied.entries(found.compression, check=not found.checked)
        _log.info("%s: colours save no products; it is computed by one for each column or row.", self._label)
        shape = self._multiplied.shape
        size = math.prod(shape) * (self._multiplied.dtype.itemsize + 4)
        check_matrix(self._name, [shape], size, "linear_operator, or the actions")
        return self._multiplied.one_by_one(), None


def _outside(matrix: Any, pattern: Pattern) -> list[tuple[int, int]] | None:
    """Entries outside of a pattern, None if there are none."""
    there = (matrix != 0).astype(np.int8)
    places = (there - there.multiply(pattern)).nonzero()
    return list(zip(*[place.tolist() for place in places], strict=True)) or None


# Between flat and shaped -------------------------------------------------------------------------------------------------


def _multiplied(
    rows: Sequence[Aval], columns: Sequence[Aval], forward: Product, reverse: Product | None, variables: set[Any]
) -> Multiplied:
    """A matrix of derivatives, whose rows and columns are the numbers of some variables, one after the other.

    Args:
        rows: shapes and dtypes of the variables that are its rows.
        columns: of those that are its columns; the same object where the matrix is symmetric.
        forward: its product.
        reverse: the product with its transpose.
        variables: all those on the way.
    """
    dtypes = [aval.dtype for aval in map(aval_of, variables) if aval.differentiable]
    return Multiplied(
        shape=(_count(rows), _count(columns)),
        dtype=np.result_type(np.float64, *[aval.dtype for aval in rows if aval.dtype.kind == "c"]),
        forward=forward,
        reverse=reverse,
        symmetric=rows is columns,
        at_once=max(1, memory.SWEEP // bytes_of(variables)),
        eps=max([precision(dtype) for dtype in dtypes]),
    )


def _count(avals: Sequence[Aval]) -> int:
    return sum(math.prod(aval.shape) for aval in avals)


def _parted(rows: np.ndarray, avals: Sequence[Aval]) -> list[np.ndarray]:
    """Flat directions as directions of each variable."""
    parts = np.split(rows, np.cumsum([math.prod(aval.shape) for aval in avals])[:-1], axis=1)
    return [part.reshape((len(rows), *aval.shape)) for part, aval in zip(parts, avals, strict=True)]


def _joined(results: Sequence[np.ndarray]) -> np.ndarray:
    rows = [result.reshape((len(result), math.prod(result.shape[1:]))) for result in results]  # there may be none
    return np.concatenate(rows, axis=1)


def _blocks(matrix: Any, rows: Sequence[Aval], columns: Sequence[Aval]) -> list[list[Any]]:
    """The matrix of each pair of variables, in the dtype of its rows."""
    starts = [np.cumsum([0, *[math.prod(aval.shape) for aval in side]]) for side in (rows, columns)]
    return [
        [matrix[a:b, c:d].astype(_storable(aval.dtype)) for c, d in itertools.pairwise(starts[1])]
        for aval, (a, b) in zip(rows, itertools.pairwise(starts[0]), strict=True)
    ]


def _storable(dtype: np.dtype) -> np.dtype:
    """SciPy has no sparse matrices of half precision."""
    return dtype if dtype.kind in "fc" and dtype.itemsize >= 4 else np.dtype(np.float32)


# Patterns of the user ----------------------------------------------------------------------------------------------------


class _Side(NamedTuple):
    """The outputs or controls, as patterns are laid out.

    Attributes:
        what: ``"outputs"`` or ``"controls"``.
        listed: whether they were given in a list.
        avals: their shapes and dtypes.
    """

    what: str
    listed: bool
    avals: Sequence[Aval]

    def items(self, given: Any, path: str) -> list[tuple[str, Any]]:
        """Return what was given for each of them, with what messages call it."""
        if not self.listed:
            return [(path, given)]
        if not isinstance(given, (list, tuple)) or len(given) != len(self.avals):
            got = f"{len(given)} of them" if isinstance(given, (list, tuple)) else type(given).__name__
            raise ArgumentValueError(
                f"{path} must be a list with a pattern for each of the {len(self.avals)} {self.what}, in the layout of the "
                f'result; got {got}. Or write sparsity="detect".'
            )
        return [(f"{path}[{k}]", item) for k, item in enumerate(given)]


def _given(sparsity: Any, rows: _Side, columns: _Side) -> Pattern:
    """The patterns of all pairs as one."""
    blocks = []
    for (path, line), row in zip(rows.items(sparsity, "sparsity"), rows.avals, strict=True):
        items = zip(columns.items(line, path), columns.avals, strict=True)
        blocks.append([_pattern(item, where, _count([row]), _count([column])) for (where, item), column in items])
    pattern = sparse.block_array(blocks, format="csr")
    pattern.sort_indices()
    return pattern


def _pattern(given: Any, path: str, rows: int, columns: int) -> Pattern:
    if not sparse.issparse(given):
        raise ArgumentTypeError(
            f'{path} must be "detect" or a matrix of scipy.sparse, whose entries say where there may be derivatives; got '
            f"{given!r:.60}. Write scipy.sparse.csr_array(array) for a dense one."
        )
    if given.shape != (rows, columns):
        raise ArgumentValueError(
            f"{path} has the shape {given.shape}, but the matrix has the shape {(rows, columns)}: a row for each number of "
            "the output and a column for each number of the control, in row-major order."
        )
    pattern = sparse.csr_array(given)
    pattern.sum_duplicates()
    return sparse.csr_array((np.ones(pattern.nnz, bool), pattern.indices, pattern.indptr), shape=pattern.shape)
