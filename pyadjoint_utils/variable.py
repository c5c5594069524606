"""The node of the tape that stands for a value: bare arrays of any engine, accumulated out of place."""

from typing import Any

import numpy as np
from pyadjoint.block_variable import BlockVariable

from pyadjoint_utils.engine import Aval, Engine, convert, owner_of

# The classes whose ``_value`` is a bare array; they are defined where this module cannot look.
WRAPPERS: set[type] = set()


class Variable(BlockVariable):
    """Block variable of an :class:`ndarray`: its checkpoint, adjoint, tangent and Hessian value are bare arrays."""

    _checkpoint: Any
    adj_value: Any
    tlm_value: Any
    hessian_value: Any

    def __init__(self, output: Any) -> None:
        super().__init__(output)
        # The value that the program computed, whatever evaluations put into the checkpoint later.
        self.recorded: Any = output._value
        self._conversions: dict[str, tuple[Any, Any]] | None = None

    def save_output(self, overwrite: bool = True) -> None:
        """Keep the value, which is immutable, as the checkpoint."""
        if overwrite or self._checkpoint is None:
            self._checkpoint = self.output._value

    def add_adj_output(self, val: Any) -> None:
        self.adj_value = accumulated(self.adj_value, val)

    def add_tlm_output(self, val: Any) -> None:
        self.tlm_value = accumulated(self.tlm_value, val)

    def add_hessian_output(self, val: Any) -> None:
        self.hessian_value = accumulated(self.hessian_value, val)

    def converted(self, value: Any, engine: Engine) -> Any:
        """Return the checkpoint ``value`` as an array of another engine, converted once per value and engine."""
        if self._conversions is None:
            self._conversions = {}
        kept = self._conversions.get(engine.name)
        if kept is not None and kept[0] is value:
            return kept[1]
        array = convert(value, engine)
        self._conversions[engine.name] = (value, array)
        return array


def bare(value: Any) -> Any:
    """Return the array that a wrapper holds, or the value itself."""
    return value._value if type(value) in WRAPPERS else value


def accumulated(total: Any, term: Any) -> Any:
    """Return ``total + term``, never in place, in the engine of ``total``."""
    term = bare(term)
    if total is None:
        return term
    total = bare(total)
    engine = owner_of(total)
    if engine is None:
        return total + term
    if type(term) not in engine.array_types:
        term = entered(term, engine.aval(total), engine)
    return engine.add(total, term)


def checkpoint_of(bv: BlockVariable) -> Any:
    """Return the current value of a block variable as it is stored, without wrapping it."""
    value = bv._checkpoint
    return bare(bv.output if value is None else value)


def as_float(value: Any) -> float:
    """Return a one-element array of any engine, or a number, as a Python float."""
    value = bare(value)
    engine = owner_of(value)
    return float(value) if engine is None else engine.to_numpy(value).item()


def entered(value: Any, aval: Aval, engine: Engine) -> Any:
    """Return a number, a wrapper or an array of any engine as an array of this engine with the given dtype."""
    value = bare(value)
    source = owner_of(value)
    if source is None:
        return engine.enter(np.asarray(value, aval.dtype))
    array = convert(value, engine)
    return array if engine.aval(array).dtype == aval.dtype else engine.cast(array, aval.dtype)
