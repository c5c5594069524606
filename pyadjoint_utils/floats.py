"""AdjFloat on the tapes of this project: small variables, literals that are stored once, and no operator that drops it."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.tapes import Tape, recording_state
from pyadjoint_utils.variable import FloatVariable

_OPERATORS = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow")
_NUMBERS = (int, float, np.float64)


def _recording_tape() -> Tape | None:
    """The working tape where calls are recorded on one of this project."""
    tape = get_working_tape() if annotate_tape() else None
    return tape if isinstance(tape, Tape) else None


def kept_literal(value: Any) -> Any:
    """Return a number beside an AdjFloat as an AdjFloat whose variable all equal numbers of the tape share."""
    if type(value) not in _NUMBERS or (tape := _recording_tape()) is None:
        return value
    number = float(value)
    literals, key = recording_state(tape).literals, (number, math.copysign(1.0, number))
    variable = literals.get(key)
    if variable is None:
        variable = literals[key] = FloatVariable(number)
    literal = variable.output
    literal.keeps = variable  # until a Block does
    return literal


def _with_kept_literals(operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def operate(self: Any, other: Any) -> Any:
        return operation(self, kept_literal(other))

    return operate


def _remainder(operation: Callable[..., Any], *, reflected: bool = False) -> Callable[..., Any]:
    """An operator that Pyadjoint does not record, of which a remainder is the last or the only result."""

    @functools.wraps(operation)
    def operate(self: Any, other: Any) -> Any:
        plain = operation(self, other)
        if plain is NotImplemented or _recording_tape() is None:
            return plain
        from pyadjoint_utils.conversion import to_adjfloat  # it stands on what stands on this module

        remainder = to_adjfloat(np.remainder(other, self) if reflected else np.remainder(self, other))
        return (plain[0], remainder) if isinstance(plain, tuple) else remainder

    return operate


def _itself(self: Any) -> Any:
    return self if _recording_tape() is not None else float(self)


def _create_block_variable(self: Any) -> Any:
    if type(self) is not AdjFloat or not isinstance(get_working_tape(), Tape):
        return OverloadedType.create_block_variable(self)
    self.block_variable = variable = FloatVariable(self)
    return variable


def install_variables() -> None:
    """Let AdjFloat have variables of this project on its tapes, and record there what Pyadjoint takes off the tape.

    Pyadjoint's variables keep the user's AdjFloat, and there is a new one for every literal of a loop.
    """
    AdjFloat.create_block_variable = _create_block_variable
    for name in _OPERATORS:
        setattr(AdjFloat, f"__{name}__", _with_kept_literals(getattr(AdjFloat, f"__{name}__")))
    for name in ("mod", "divmod"):
        for spelled in (name, f"r{name}"):
            operation = getattr(AdjFloat, f"__{spelled}__")
            setattr(AdjFloat, f"__{spelled}__", _remainder(operation, reflected=spelled != name))
    AdjFloat.real, AdjFloat.conjugate = property(_itself), _itself
