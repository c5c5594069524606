"""What is varied and differentiated."""

import copy
from typing import Any

import pyadjoint
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, StaleTapeError
from pyadjoint_utils.tapes import UPDATES, state_of
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
        self._seen = False  # whether the variable was found on that tape

    def __repr__(self) -> str:
        return f"Control({self.control!r})"

    def update(self, value: Any) -> None:
        """Give the variable another value; evaluations that do not vary it use that value from now on.

        Args:
            value: an array of any engine or a number, of the variable's shape.

        Raises:
            StaleTapeError: the value was recorded on another tape than the working one and the one on which this Control
                was made, which would not notice.
        """
        value = checked_value(self.control, value, "Control.update")
        tapes = self._tapes()
        super().update(value)
        self.block_variable.updated = self.block_variable._checkpoint
        UPDATES.count += 1
        for tape in tapes:
            state_of(tape).update(self.block_variable)

    def _tapes(self) -> list[pyadjoint.Tape]:
        """The tapes that have the variable, of those that are known here; the first one if nothing was recorded yet."""
        known = [tape for tape in {id(t): t for t in (self._tape, get_working_tape())}.values() if tape is not None]
        found = [tape for tape in known if self._is_on(tape)]
        if not found and self._is_recorded():
            raise StaleTapeError(
                f"Control.update: {self!r} was recorded on another tape, which would not notice its new value. Make that "
                "tape the working tape meanwhile: with set_working_tape(tape): control.update(value)."
            )
        return found or known[:1]

    def _is_on(self, tape: pyadjoint.Tape) -> bool:
        if tape is self._tape and self._seen:
            return True
        bv = self.block_variable
        found = any(bv in block.get_dependencies() or bv in block.get_outputs() for block in tape.get_blocks())
        self._seen = self._seen or (found and tape is self._tape)
        return found

    def _is_recorded(self) -> bool:
        return self.block_variable.creation_timestep >= 0 or self.block_variable.last_use >= 0

    def get_derivative(self, apply_riesz: bool = False) -> Any:
        return self._result(super().get_derivative(apply_riesz))

    def get_hessian(self, apply_riesz: bool = False) -> Any:
        return self._result(super().get_hessian(apply_riesz))

    def __getattr__(self, name: str) -> Any:
        if name == "control":  # of an object that is being made
            raise AttributeError(name)
        return getattr(self.control, name)

    def __copy__(self) -> "Control":
        other = type(self)(self.control, self.riesz_map)
        other.block_variable, other._tape = self.block_variable, self._tape
        return other

    def __deepcopy__(self, memo: Any) -> "Control":
        return _rebuilt(type(self), copy.deepcopy(self._data(), memo), self.riesz_map)

    def __reduce__(self) -> Any:
        # The data travel, the tape does not.
        return _rebuilt, (type(self), self._data(), self.riesz_map)

    def _data(self) -> Any:
        value = self.block_variable._checkpoint
        if isinstance(self.control, AdjFloat):
            return float(self.control if value is None else value)
        if isinstance(self.control, ndarray):
            return ndarray(self.control._value if value is None else value, self.control._engine)
        return self.block_variable.saved_output

    def _result(self, value: Any) -> Any:
        return self.control._like(value) if isinstance(self.control, ndarray) else value


def _rebuilt(cls: type[Control], data: Any, riesz_map: Any) -> Control:
    return cls(AdjFloat(data) if type(data) is float else data, riesz_map)


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
            f"{given.engine}). Reshape or broadcast it first, or record the program anew with this shape; "
            "rf.compile(respecialize=True) does that by itself."
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
