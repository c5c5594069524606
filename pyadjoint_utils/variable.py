"""The node of the tape that stands for a value: bare arrays of any engine, accumulated out of place."""

from typing import Any

import numpy as np
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.block_variable import BlockVariable

from pyadjoint_utils.annotation import thread_number
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import StaleTapeError
from pyadjoint_utils.registry import convert, owner_of

# The classes whose ``_value`` is a bare array; they are defined where this module cannot look.
WRAPPERS: set[type] = set()


class Variable(BlockVariable):
    """Block variable of an :class:`ndarray`: its checkpoint, adjoint, tangent and Hessian value are bare arrays.

    It does not know the user's value, whose life is the user's affair: data is held by ``_checkpoint`` alone.

    Args:
        value: the bare array that the program computed.
        engine: the engine that owns it.

    Attributes:
        moved: whether the checkpoint was overwritten since the program ran.
        kept: the recorded value of a moved variable that no Block computes again.
        updated: the value that :meth:`Control.update` gave to it last.
        thread: the number of the thread that records with it; an attribute of its own where that is not the first one.
    """

    # Defaults of what few variables change: an attribute of every variable would cost time and memory.
    floating_type = False
    is_functional_dependency = False
    last_use = -1
    kept: Any = None
    updated: Any = None
    thread = 0
    _aval: Aval | None = None
    _conversions: dict[str, tuple[Any, Any]] | None = None

    def __init__(self, value: Any, engine: Engine) -> None:
        # Not upstream's initializer, which keeps the user's object.
        self._checkpoint: Any = value
        self.engine = engine
        self.adj_value: Any = None
        self.tlm_value: Any = None
        self.hessian_value: Any = None
        self.is_control = False
        self.is_control_dependent = False
        self.creation_timestep = -1
        self.moved = False
        if here := thread_number():
            self.thread = here

    @property
    def output(self) -> Any:
        """What is known of the value without its data, as a value that raises when it is read."""
        from pyadjoint_utils.values import Shell  # it stands on what stands on this module

        return Shell(self)

    @property
    def aval(self) -> Aval:
        """Shape and NumPy dtype of the value."""
        if self._aval is None:
            self._aval = self.engine.aval(self._checkpoint)
        return self._aval

    @property
    def checkpoint(self) -> Any:
        """The value at the point where the tape stands."""
        return self._checkpoint

    @checkpoint.setter
    def checkpoint(self, value: Any) -> None:
        if not self.is_control:
            if not self.moved:
                move(self)
            self._checkpoint = value

    @property
    def saved_output(self) -> Any:
        from pyadjoint_utils.values import ndarray  # it stands on what stands on this module

        return ndarray(checkpoint_of(self), self.engine)

    def save_output(self, overwrite: bool = True) -> None:
        """Nothing to do: the value was kept from the beginning."""

    def will_add_as_dependency(self) -> None:
        """Nothing to save: the value was kept from the beginning."""
        self.check_thread()
        if self.creation_timestep < 0:
            self.last_use = 0

    def will_add_as_output(self) -> None:
        """Take note that a Block computes this variable."""
        self.creation_timestep = 0

    def check_thread(self) -> None:
        """Raise if another thread recorded the value: its derivative would not come through."""
        if self.thread != thread_number():
            raise StaleTapeError(
                "A value that another thread recorded is used in this one, where nobody knows how it depends on the "
                "controls: its derivative would be lost. Take its data, array(y.value), if it is a constant or a control "
                "here; or go on computing with it in the thread that recorded it."
            )

    def add_adj_output(self, val: Any) -> None:
        self.adj_value = bare(val) if self.adj_value is None else accumulated(self.adj_value, val)

    def add_tlm_output(self, val: Any) -> None:
        self.tlm_value = bare(val) if self.tlm_value is None else accumulated(self.tlm_value, val)

    def add_hessian_output(self, val: Any) -> None:
        self.hessian_value = bare(val) if self.hessian_value is None else accumulated(self.hessian_value, val)

    def converted(self, value: Any, engine: Engine) -> Any:
        """Return the checkpoint ``value`` as an array of another engine, converted once per value and engine."""
        if self._conversions is None:
            self._conversions = {}
        kept = self._conversions.get(engine.name)
        if kept is not None and kept[0] is value:
            return kept[1]
        array = convert(value, engine)
        if value is self._checkpoint:
            self._conversions[engine.name] = (value, array)
        return array


class GuardedVariable(BlockVariable):
    """Block variable of another package whose value was let go: reading it is an error, not the value of the record."""

    @property
    def saved_output(self) -> Any:
        return self.output._ad_restore_at_checkpoint(_kept(self))


class FloatVariable(BlockVariable):
    """Block variable of an AdjFloat: it holds the number and not the user's AdjFloat, which is ten times as large.

    Args:
        number: the number that the program computed.

    Attributes:
        number: what it was when it was recorded.
        updated: the value that :meth:`Control.update` gave to it last.
    """

    floating_type = False
    is_functional_dependency = False
    is_control = False
    updated: Any = None

    def __init__(self, number: float) -> None:
        # Not upstream's initializer, which keeps the user's object.
        self.number = self._checkpoint = float(number)
        self.adj_value: Any = None
        self.tlm_value: Any = None
        self.hessian_value: Any = None
        self.is_control_dependent = False
        # All that variables have is set here: Python shares the keys of attributes while they come in one order.
        self.creation_timestep = self.last_use = -1

    @property
    def output(self) -> AdjFloat:
        """The recorded number as a value that is on the tape."""
        value = AdjFloat(self.number)
        value.block_variable = self
        return value

    @property
    def moved(self) -> bool:
        """Whether the checkpoint is another one than when the program ran."""
        return self._checkpoint is not self.number

    @property
    def checkpoint(self) -> Any:
        """The number at the point where the tape stands."""
        return self._checkpoint

    @checkpoint.setter
    def checkpoint(self, value: Any) -> None:
        if not self.is_control:
            self._checkpoint = float(value) if isinstance(value, float) else value

    @property
    def saved_output(self) -> Any:
        return _kept(self)

    def save_output(self, overwrite: bool = True) -> None:
        """Nothing to do: the number was kept from the beginning."""

    def will_add_as_dependency(self) -> None:
        """Take note that a Block uses the number, which a schedule may have let go."""
        tape = get_working_tape()
        if self._checkpoint is None:
            self._checkpoint = self.number
        tape.add_to_checkpointable_state(self, self.last_use)
        self.last_use = tape.latest_timestep

    def will_add_as_output(self) -> None:
        """Take note that a Block computes this variable."""
        tape = get_working_tape()
        self.creation_timestep = self.last_use = tape.latest_timestep
        tape.add_to_adjoint_dependencies(self, self.last_use - 1)


_AWARE = (Variable, GuardedVariable, FloatVariable)  # of which no value means that it was let go


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
    if isinstance(bv, _AWARE):
        return bare(_kept(bv))
    return bare(bv.output if bv._checkpoint is None else bv._checkpoint)


def _kept(bv: Any) -> Any:
    if bv._checkpoint is None:
        known = bv._aval if isinstance(bv, Variable) else f"a {type(bv.output).__name__}"
        what = known or f"an array of {bv.engine.name}"
        raise StaleTapeError(
            f"The value that a Block of time step {bv.creation_timestep} computed, {what}, is not on the tape now: under a "
            "schedule the tape keeps no more than derivatives need. Make it an output of a ReducedFunction and evaluate "
            "that, or take its data off the tape while the program runs: x.numpy()."
        )
    return bv._checkpoint


def drop(bv: Any, aval: Aval | None = None) -> None:
    """Let the value of a variable go, and its tangent.

    Args:
        bv: the block variable.
        aval: shape and dtype of the value, where they are known.
    """
    if type(bv) is BlockVariable:
        bv.__class__ = GuardedVariable
    elif type(bv) is Variable:
        if bv._aval is None and bv._checkpoint is not None:
            bv._aval = bv.engine.aval(bv._checkpoint) if aval is None else aval
        bv._conversions = None
    bv._checkpoint = bv.tlm_value = None


def move(bv: Any, *, keep: bool = False) -> None:
    """Take note that a variable's value is about to be replaced; kept aside is that of an input of the program."""
    if type(bv) is not FloatVariable and not getattr(bv, "moved", False):
        if keep or bv.creation_timestep < 0:
            aware = bv._checkpoint is not None or isinstance(bv, _AWARE)
            bv.kept = bv._checkpoint if aware else bv.output._ad_create_checkpoint()
        bv.moved = True


def recorded_value(bv: Any) -> Any:
    """Return the value that a variable had when it was recorded, as it is stored; it must not be lost."""
    if type(bv) is FloatVariable:
        return bv.number
    if type(bv) is not Variable and isinstance(bv.output, AdjFloat):
        return bv.output
    return bv.kept if getattr(bv, "moved", False) else bv._checkpoint


def is_lost(bv: Any) -> bool:
    """Whether the recorded value of a variable is not kept, so that a Block has to compute it again."""
    if type(bv) is FloatVariable or (type(bv) is not Variable and isinstance(bv.output, AdjFloat)):
        return False
    if getattr(bv, "moved", False):
        return getattr(bv, "kept", None) is None
    return is_dropped(bv)


def is_dropped(bv: Any) -> bool:
    """Whether a variable's value was let go."""
    return bv._checkpoint is None and isinstance(bv, _AWARE)


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
