"""Reduced functions over flat NumPy vectors."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.memory import check_matrix
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import entered

_KINDS = (ndarray, AdjFloat)


class ReducedFunctionNumPy:
    """A reduced function of one flat vector with one flat result, for code that speaks NumPy alone.

    Controls and outputs stand one after the other, each in row-major order: float64, or complex128 if any of them is
    complex. No list of numbers is made on the way. A vector of one number may be given as that number. A real scalar
    function has :meth:`derivative` and :meth:`value_and_derivative` as well, which SciPy's solvers take.

    Args:
        rf: a :class:`ReducedFunction` or :class:`ReducedFunctional` of arrays and AdjFloats.

    Raises:
        ArgumentTypeError: ``rf`` is no reduced function, or has values of other types.

    Example:
        >>> import numpy as np
        >>> from pyadjoint_utils import Control, ReducedFunction, ReducedFunctionNumPy, array
        >>> x = array([[1.0, 2.0], [3.0, 4.0]])
        >>> flat = ReducedFunctionNumPy(ReducedFunction(x * x, Control(x)))
        >>> flat(np.array([1.0, 0.0, 2.0, 0.0])).tolist()
        [1.0, 0.0, 4.0, 0.0]
        >>> flat.jac_action(np.ones(4)).tolist()
        [2.0, 0.0, 4.0, 0.0]
    """

    def __init__(self, rf: ReducedFunction | ReducedFunctional) -> None:
        if not isinstance(rf, (ReducedFunction, ReducedFunctional)):
            raise ArgumentTypeError(
                f"ReducedFunctionNumPy takes a ReducedFunction or ReducedFunctional; got {type(rf).__name__}."
            )
        self.rf = rf
        self._function = rf._function if isinstance(rf, ReducedFunctional) else rf
        self._controls = [c.control for c in self._function._controls]
        self._outputs = list(self._function._outputs)
        for value in (*self._controls, *self._outputs):
            if not isinstance(value, _KINDS):
                raise ArgumentTypeError(f"ReducedFunctionNumPy takes arrays and AdjFloats; got {type(value).__name__}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Length of the result and of the argument."""
        return sum(map(_size, self._outputs)), sum(map(_size, self._controls))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Evaluate at a flat vector of control values."""
        return self.get_outputs_array(self.rf(self.get_rf_input(x)))

    def jac_action(self, x_dot: np.ndarray) -> np.ndarray:
        """Return ``J x_dot`` where the function was evaluated last."""
        return self.get_outputs_array(self.rf.jac_action(self.get_rf_input(x_dot)))

    def adj_jac_action(self, y: np.ndarray) -> np.ndarray:
        """Return ``J^H y`` where the function was evaluated last."""
        return self.obj_to_array(
            self.rf.adj_jac_action(self._unflat(y, self._outputs, "seed", self._function._outputs))
        )

    def derivative(self) -> np.ndarray:
        """Return the gradient of a real scalar function where it was evaluated last, one number for each of the controls.

        Raises:
            NotDifferentiableError: the function is no real scalar.
        """
        return self.obj_to_array(self.rf.derivative())

    def value_and_derivative(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Return a real scalar function and its gradient, as :func:`scipy.optimize.minimize` takes them with ``jac=True``.

        Args:
            x: a flat vector of control values.

        Returns:
            A Python number, and a float64 or complex128 vector like ``x``.

        Raises:
            NotDifferentiableError: the function is no real scalar; it was not evaluated then.

        Example:
            >>> from scipy.optimize import minimize
            >>> from pyadjoint_utils import Control, ReducedFunctional, ReducedFunctionNumPy, array
            >>> x = array([[3.0, -2.0]])
            >>> flat = ReducedFunctionNumPy(ReducedFunctional(((x - 1.0) ** 2).sum(), Control(x)))
            >>> minimize(flat.value_and_derivative, flat.get_controls(), jac=True).x.round(6).tolist()
            [1.0, 1.0]
        """
        self._function._unit_seed()
        value, derivative = self.rf.value_and_derivative(self.get_rf_input(x))
        return float(self.get_outputs_array(value)[0]), self.obj_to_array(derivative)

    def hessian(self, x_dot: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """Return the derivative of ``J^H y`` in direction ``x_dot``; without ``y`` that of a real scalar's gradient."""
        direction = self.get_rf_input(x_dot)
        if y is None:
            return self.obj_to_array(self.rf.hessian(direction))
        seed = self._unflat(y, self._outputs, "seed", self._function._outputs)
        return self.obj_to_array(self.rf.hess_action(direction, seed))

    hess_action = hessian

    def jac_matrix(self, m_jac: np.ndarray | None = None, sparsity: Any = None) -> Any:
        """Return the Jacobian where the function was evaluated last.

        Args:
            m_jac: None for the Jacobian itself; or a matrix of shape ``(columns, ...)`` to return the Jacobian times it.
            sparsity: ``"detect"``, or a pattern of the whole matrix; as for :meth:`ReducedFunction.jac_matrix`.

        Returns:
            A NumPy array of shape :attr:`shape`, float64 or complex128; with ``m_jac`` of shape ``(rows, ...)``; with
            ``sparsity`` a :class:`scipy.sparse.csr_array`.

        Raises:
            As :meth:`ReducedFunction.jac_matrix`.

        Example:
            >>> from pyadjoint_utils import Control, ReducedFunction, ReducedFunctionNumPy, array
            >>> x = array([[1.0, 2.0]])
            >>> ReducedFunctionNumPy(ReducedFunction(x * x, Control(x))).jac_matrix().tolist()
            [[2.0, 0.0], [0.0, 4.0]]
        """
        rows, columns = self._function._outputs, self._function._controls
        if m_jac is not None:
            given = self._parts(np.asarray(m_jac))
            found = Enlist(self.rf.jac_matrix(columns.delist(given), sparsity))
            return _joined([np.asarray(block.numpy()) for block in found], self._outputs)
        if sparsity is None:
            self._check_memory(
                "Jacobian", self._outputs, 'jac_matrix(sparsity="detect"), linear_operator() or jac_action'
            )
        blocks = self.rf.jac_matrix(sparsity=self._split(sparsity, self._outputs, rows))
        return _assembled(blocks, rows, columns, self._outputs, self._controls)

    def hess_matrix(self, y: np.ndarray | None = None, sparsity: Any = None) -> Any:
        """Return all second derivatives of ``<y, self>`` where the function was evaluated last.

        Args:
            y: a flat cotangent; None for 1, which only a real scalar takes.
            sparsity: ``"detect"``, or a pattern of the whole matrix; as for :meth:`ReducedFunction.hess_matrix`.

        Returns:
            A symmetric float64 array, or a :class:`scipy.sparse.csr_array` with ``sparsity``.

        Raises:
            As :meth:`ReducedFunction.hess_matrix`.
        """
        seed = None if y is None else self._unflat(y, self._outputs, "seed", self._function._outputs)
        if sparsity is None:
            self._check_memory("Hessian", self._controls, 'hess_matrix(sparsity="detect") or hess_action')
        columns = self._function._controls
        blocks = self.rf.hess_matrix(seed, self._split(sparsity, self._controls, columns))
        return _assembled(blocks, columns, columns, self._controls, self._controls)

    def get_rf_input(self, x: np.ndarray) -> Any:
        """Return a flat vector as values for the reduced function."""
        return self._unflat(x, self._controls, "vector of controls", self._function._controls)

    def get_outputs_array(self, values: Any) -> np.ndarray:
        """Return the reduced function's outputs as a flat vector."""
        return _flat(Enlist(values))

    def obj_to_array(self, values: Any) -> np.ndarray:
        """Return values like the controls, one or a list, as a flat vector."""
        return _flat(Enlist(values))

    def get_controls(self) -> np.ndarray:
        """Return the controls' values at the last evaluation."""
        return self.obj_to_array(self._function._values())

    def set_controls(self, x: np.ndarray) -> Any:
        """Give the controls other values without evaluating, and return them."""
        values = self.get_rf_input(x)
        for control, value in zip(self._function._controls, Enlist(values), strict=True):
            control.update(value)
        return values

    def _unflat(self, x: np.ndarray, likes: Sequence[Any], what: str, enlisted: Any) -> Any:
        x = np.asarray(x)
        length = sum(map(_size, likes))
        if length == 1 and not x.shape:
            x = x.reshape(1)
        if x.shape != (length,):
            raise ArgumentValueError(f"The {what} must be flat, of shape ({length},); got {x.shape}.")
        values, offset = [], 0
        for like in likes:
            part = x[offset : offset + _size(like)]
            values.append(_shaped(part, like, what))
            offset += _size(like)
        return enlisted.delist(values)

    # Matrices ----------------------------------------------------------------------------------------------------------

    def _parts(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The rows of a matrix by control."""
        length = self.shape[1]
        if matrix.shape[:1] != (length,):
            raise ArgumentValueError(
                f"m_jac must have {length} rows, one for each number of the controls; got {matrix.shape}."
            )
        parts = np.split(matrix, np.cumsum([_size(c) for c in self._controls])[:-1])
        return [p.reshape((*_shape(c), *matrix.shape[1:])) for p, c in zip(parts, self._controls, strict=True)]

    def _split(self, sparsity: Any, rows: Sequence[Any], enlisted: Any) -> Any:
        """A pattern of the whole matrix in the layout of the blocks."""
        from scipy import sparse  # imported where it is used

        if not sparse.issparse(sparsity):
            return sparsity
        shape = sum(map(_size, rows)), self.shape[1]
        if sparsity.shape != shape:
            raise ArgumentValueError(f"sparsity has the shape {sparsity.shape}, but the matrix has the shape {shape}.")
        pattern = sparse.csr_array(sparsity)
        ends = [np.cumsum([0, *map(_size, side)]) for side in (rows, self._controls)]
        blocks = [
            self._function._controls.delist([pattern[a:b, c:d] for c, d in itertools.pairwise(ends[1])])
            for a, b in itertools.pairwise(ends[0])
        ]
        return enlisted.delist(blocks)

    def _check_memory(self, what: str, rows: Sequence[Any], remedy: str) -> None:
        shape = sum(map(_size, rows)), self.shape[1]
        itemsize = np.result_type(np.float64, *map(_dtype, rows)).itemsize
        check_matrix(what, [shape], shape[0] * shape[1] * itemsize, remedy)


def _assembled(blocks: Any, rows: Any, columns: Any, outputs: Sequence[Any], controls: Sequence[Any]) -> Any:
    """The blocks of all pairs as one matrix."""
    lines = [_listed(line, columns) for line in _listed(blocks, rows)]
    if not isinstance(lines[0][0], ndarray):
        from scipy import sparse  # imported where it is used

        wide = np.result_type(np.float64, *[block.dtype for line in lines for block in line])
        return sparse.block_array(lines, format="csr", dtype=wide)
    pairs = [zip(line, controls, strict=True) for line in lines]
    parts = [[_dense(block.numpy(), y, x) for block, x in line] for y, line in zip(outputs, pairs, strict=True)]
    return np.block(parts).astype(np.result_type(np.float64, *[part for line in parts for part in line]), copy=False)


def _listed(values: Any, enlisted: Any) -> list[Any]:
    return list(values) if enlisted.listed else [values]


def _dense(block: np.ndarray, output: Any, control: Any) -> np.ndarray:
    """A block as a matrix; what holds the blocks of points has one axis less and stands on the diagonal."""
    shape = _size(output), _size(control)
    if block.ndim == len(_shape(output)) + len(_shape(control)):
        return block.reshape(shape)
    count = max(1, len(block))
    full = np.zeros((count, shape[0] // count, count, shape[1] // count), block.dtype)
    points = np.arange(len(block))
    full[points, :, points] = block.reshape(len(block), *full.shape[1::2])
    return full.reshape(shape)


def _joined(parts: Sequence[np.ndarray], likes: Sequence[Any]) -> np.ndarray:
    """The rows of all outputs in one matrix."""
    rows = [part.reshape((_size(y), *part.shape[len(_shape(y)) :])) for part, y in zip(parts, likes, strict=True)]
    return np.concatenate(rows, dtype=np.result_type(np.float64, *rows))


def _shape(value: Any) -> tuple[int, ...]:
    return value.shape if isinstance(value, ndarray) else ()


def _size(value: Any) -> int:
    return value.size if isinstance(value, ndarray) else 1


def _dtype(value: Any) -> np.dtype:
    return value.dtype if isinstance(value, ndarray) else np.dtype(np.float64)


def _flat(values: Sequence[Any]) -> np.ndarray:
    parts = [value.numpy().reshape(-1) if isinstance(value, ndarray) else np.array([float(value)]) for value in values]
    wide = np.complex128 if any(part.dtype.kind == "c" for part in parts) else np.float64
    return np.concatenate(parts, dtype=wide) if len(parts) > 1 else parts[0].astype(wide)


def _shaped(part: np.ndarray, like: Any, what: str) -> Any:
    """A copy of a part of a flat vector, in the type of a value."""
    if part.dtype.kind == "c" and _dtype(like).kind != "c":
        if np.any(part.imag):
            raise ArgumentTypeError(f"The {what} has an imaginary part where the value is real ({_dtype(like)}).")
        part = part.real
    if not isinstance(like, ndarray):
        return AdjFloat(part[0])
    data = part.reshape(like.shape).astype(like.dtype)
    return ndarray(entered(data, like.aval, like._engine), like._engine)
