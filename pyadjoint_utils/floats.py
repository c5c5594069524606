"""AdjFloat on the tapes of this project: small variables, and literals that are stored once."""

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


def kept_literal(value: Any) -> Any:
    """Return a number beside an AdjFloat as an AdjFloat whose variable all equal numbers of the tape share."""
    if type(value) not in _NUMBERS or not annotate_tape() or not isinstance(tape := get_working_tape(), Tape):
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


def _create_block_variable(self: Any) -> Any:
    if type(self) is not AdjFloat or not isinstance(get_working_tape(), Tape):
        return OverloadedType.create_block_variable(self)
    self.block_variable = variable = FloatVariable(self)
    return variable


def install_variables() -> None:
    """Let AdjFloat have variables of this project on its tapes.

    Pyadjoint's keep the user's AdjFloat, and there is a new one for every literal of a loop.
    """
    AdjFloat.create_block_variable = _create_block_variable
    for name in _OPERATORS:
        setattr(AdjFloat, f"__{name}__", _with_kept_literals(getattr(AdjFloat, f"__{name}__")))
