"""What is varied and differentiated."""

from typing import Any

import pyadjoint
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError
from pyadjoint_utils.tapes import state_of
from pyadjoint_utils.values import array, ndarray
from pyadjoint_utils.variable import as_float, bare, entered


class Control(pyadjoint.Control):
    """A value of the tape that functions are reduced to and differentiated by.

    Args:
        control: an :class:`ndarray` of floating or complex dtype, an AdjFloat, or another overloaded object.
        riesz_map: how a derivative becomes a gradient; arrays know ``"l2"``.

    Raises:
        ArgumentTypeError: the value cannot be differentiated (integer, boolean, string) or is not on the tape's side.

    Example:
        >>> from pyadjoint_utils import Control, ReducedFunctional, array
        >>> x = array([1.0, 2.0])
        >>> rf = ReducedFunctional((x * x).sum(), Control(x))
        >>> rf.derivative().tolist()
        [2.0, 4.0]
    """

    def __init__(self, control: Any, riesz_map: Any = None) -> None:
        if not isinstance(control, OverloadedType):
            raise ArgumentTypeError(
                f"A Control is made of a value that was recorded; got {type(control).__name__}. "
                "Wrap it with array(x) before the computation and pass that: x = array(x); y = f(x); Control(x)."
            )
        if isinstance(control, ndarray) and not control.aval.differentiable:
            raise ArgumentTypeError(
                f"A Control must be of floating or complex dtype to be differentiated; got {control.aval}. "
                "Use array(x, dtype=float), or pass it as an input (inputs=) that is not differentiated."
            )
        super().__init__(control, riesz_map)
        self._tape = get_working_tape()

    def __repr__(self) -> str:
        return f"Control({self.control!r})"

    def update(self, value: Any) -> None:
        """Give the variable another value; evaluations that do not vary it use that value from now on."""
        super().update(checked_value(self.control, value, "Control.update"))
        if self._tape is not None:
            state_of(self._tape).update(self.block_variable)

    def get_derivative(self, apply_riesz: bool = False) -> Any:
        return self._result(super().get_derivative(apply_riesz))

    def get_hessian(self, apply_riesz: bool = False) -> Any:
        return self._result(super().get_hessian(apply_riesz))

    def _result(self, value: Any) -> Any:
        return self.control._like(value) if isinstance(self.control, ndarray) else value


def checked_value(like: Any, value: Any, where: str) -> Any:
    """Return a value in the type, engine, shape and dtype of another one.

    Args:
        like: the value to resemble.
        value: an array of any engine, a number or an overloaded object.
        where: what the value is, for messages: ``"controls[0]"``.

    Returns:
        An overloaded object of the type of ``like``.
    """
    if isinstance(like, AdjFloat):
        return _checked_float(value, where)
    if not isinstance(like, ndarray):
        if not isinstance(value, type(like)):
            raise ArgumentTypeError(f"{where} must be a {type(like).__name__}; got {type(value).__name__}.")
        return value
    try:
        given = value if isinstance(value, ndarray) else array(value)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{where} must be an array like {like.aval}; got {type(value).__name__}.") from error
    if given.shape != like.shape:
        raise ArgumentValueError(
            f"{where} must have the shape of the variable, {like.shape}; got {given.shape} ({given.dtype}, "
            f"{given.engine}). Reshape or broadcast it first."
        )
    if given.dtype.kind == "c" and like.dtype.kind != "c":
        raise ArgumentTypeError(
            f"{where} must be real, the variable is {like.aval}; got {given.aval}. Take x.real, or record with a complex "
            "array: array(x, dtype=complex)."
        )
    if given._engine is like._engine and given.dtype == like.dtype:
        return given
    return ndarray(entered(given, like.aval, like._engine), like._engine)


def _checked_float(value: Any, where: str) -> AdjFloat:
    value = bare(value)
    shape = getattr(value, "shape", ())
    if tuple(shape) != ():
        raise ArgumentValueError(f"{where} must be a number (the variable is an AdjFloat); got shape {tuple(shape)}.")
    try:
        return AdjFloat(as_float(value))
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"{where} must be a real number; got {type(value).__name__} {value!r}.") from error
