"""Reduced functions over flat NumPy vectors, and their Jacobians as SciPy's linear operators."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.functional import ReducedFunctional
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import entered

_KINDS = (ndarray, AdjFloat)


class ReducedFunctionNumPy:
    """A reduced function of one flat vector with one flat result, for code that speaks NumPy alone.

    Controls and outputs stand one after the other, each in row-major order: float64, or complex128 if any of them is
    complex. No list of numbers is made on the way.

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

    def hessian(self, x_dot: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the derivative of ``J^H y`` in direction ``x_dot``."""
        seed = self._unflat(y, self._outputs, "seed", self._function._outputs)
        return self.obj_to_array(self.rf.hess_action(self.get_rf_input(x_dot), seed))

    hess_action = hessian

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
        if x.shape != (length,):
            raise ArgumentValueError(f"The {what} must be flat, of shape ({length},); got {x.shape}.")
        values, offset = [], 0
        for like in likes:
            part = x[offset : offset + _size(like)]
            values.append(_shaped(part, like, what))
            offset += _size(like)
        return enlisted.delist(values)


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
