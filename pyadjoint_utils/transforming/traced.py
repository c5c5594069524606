"""A program of overloaded functions that was run once, on a tape of its own.

Where it depends on values that are being recorded outside, in a program that is itself transformed or on the user's tape,
its results belong on that tape too. In a program they are put there at once; on the user's tape when a recording first
needs them, so that a transformation whose results are only looked at leaves the tape alone.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, get_working_tape
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.tape import stop_annotating

from pyadjoint_utils import trees
from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.control import Control
from pyadjoint_utils.conversion import connect, copied
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import CapturedValueError, NotDifferentiableError
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.recorded import stand_at_the_record
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.tapes import recording_on
from pyadjoint_utils.transforming.leaves import array_of, aval_of_output, changed, nearby
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import Variable

Run = Callable[[Sequence[Any]], tuple[Any, Any]]


class Traced:
    """One run of a program.

    Args:
        call: takes the values of the arguments' leaves; returns the program's result and auxiliary data.
        sources: the leaves, arrays of any engine or numbers, taped or not.
        inputs: the same as arrays that nothing has recorded, for the program.
        name: the transformation, for messages.

    Attributes:
        active: positions of the inputs that are differentiated, those of floating or complex dtype.
        outputs: the leaves of the result; ``structure``, ``avals`` and ``paths`` belong to them.
        live: positions of the outputs that the program computed on its tape and that can be differentiated; the others
            are constant.
        plan: the way from the active inputs to the live outputs.
    """

    def __init__(self, call: Run, sources: Sequence[Any], inputs: Sequence[ndarray], name: str) -> None:
        self.name, self._call, self.inputs = name, call, inputs
        self._outer = get_working_tape() if annotate_tape() else None
        self._moved = False
        self._reduced: ReducedFunction | None = None
        self.tape = ProgramTape()
        for source, x in zip(sources, inputs, strict=True):
            self.tape.link(source, x)
        self.active = [k for k, x in enumerate(self.inputs) if x.aval.differentiable]
        with recording_on(self.tape):
            result, self._aux = call(self.inputs)
            found, self.structure = trees.flatten(result)
            self.outputs = [copied(y) if isinstance(y, AdjFloat) and self._owns(y) else y for y in found]
        self.paths = trees.paths(result, "result")
        self.avals = [aval_of_output(y, path, name) for y, path in zip(self.outputs, self.paths, strict=True)]
        self.live = [k for k, y in enumerate(self.outputs) if self.avals[k].differentiable and self._owns(y)]
        self._check_constants()
        self.plan = Plan(
            self.tape,
            [self.outputs[k].block_variable for k in self.live],
            [self.inputs[k].block_variable for k in self.active],
        )

    def __repr__(self) -> str:
        ends = [", ".join(map(str, avals)) for avals in ([x.aval for x in self.inputs], self.avals)]
        return f"{self.name} of a program ({ends[0]}) -> ({ends[1]})"

    @property
    def ins(self) -> list[ndarray]:
        """The active inputs."""
        return [self.inputs[k] for k in self.active]

    @property
    def outs(self) -> list[ndarray]:
        """The live outputs."""
        return [self.outputs[k] for k in self.live]

    @property
    def out_paths(self) -> list[str]:
        """How messages call the live outputs."""
        return [self.paths[k] for k in self.live]

    def _owns(self, leaf: Any) -> bool:
        variable = leaf._block_variable() if isinstance(leaf, OverloadedType) else None
        return variable is not None and self.tape.owns(variable)

    def _check_constants(self) -> None:
        """Raise if an output that is not on the tape depends on the inputs all the same: its derivative would be lost."""
        constant = [k for k, aval in enumerate(self.avals) if aval.differentiable and k not in self.live]
        if not constant or not self.active:
            return
        tape = ProgramTape()
        inputs = [tape.link(None, nearby(x) if x.aval.differentiable else x) for x in self.inputs]
        with np.errstate(all="ignore"), recording_on(tape):
            others, structure = trees.flatten(self._call(inputs)[0])
        for k in constant:
            if structure != self.structure or changed(self.outputs[k], others[k]):
                raise NotDifferentiableError(
                    f"{self.name}: {self.paths[k]} changes with the arguments, but was not computed on the tape (it is a "
                    f"{type(self.outputs[k]).__name__}), so that its derivative would be lost. Compute it with overloaded "
                    "functions, or NumPy functions and operators; float(x), math.sin(x), x.numpy() and SciPy leave the "
                    "tape. Return what is not to be differentiated as auxiliary data, with has_aux=True."
                )

    # The tape outside ----------------------------------------------------------------------------------------------------

    @cached_property
    def _foreign(self) -> list[Any]:
        """Blocks of other packages, such as arithmetic of AdjFloats."""
        return [b for b in self.tape.get_blocks() if any(type(bv) is not Variable for bv in b.get_outputs())]

    @cached_property
    def _outside(self) -> list[Any]:
        """Variables from outside that Blocks of other packages use as they are."""
        return [bv for b in self._foreign for bv in b.get_dependencies() if not self.tape.owns(bv)]

    @cached_property
    def involved(self) -> bool:
        """Whether the program depends on something that is being recorded outside."""
        if self._outer is None:
            return False
        return any(isinstance(source, OverloadedType) for source, _ in self.tape.entries) or bool(self._outside)

    def handed(self) -> tuple[Any, Any]:
        """Return the result and the auxiliary data for use outside; the program has ended then."""
        if self.involved and (isinstance(self._outer, ProgramTape) or self._foreign):
            self.place()
        result = trees.unflatten(self.structure, [self._handed(array_of(leaf)) for leaf in self.outputs])
        aux = trees.mapped(self._handed, self._aux)
        if self.involved and not self._moved:
            for value in self.tape.arrays():
                value.defer(partial(_leaked, weakref.ref(self), weakref.ref(value.block_variable), value.aval))
        return result, aux

    def _handed(self, leaf: Any) -> Any:
        if self._moved or not isinstance(leaf, ndarray) or not self._owns(leaf):
            return leaf
        # Another object: one that its own program's tape refers to would keep that tape alive in a circle.
        alias, variable = ndarray(leaf._value, leaf._engine), leaf.block_variable
        if self.involved:
            alias.defer(partial(self.place, variable))
        return alias

    def place(self, variable: Any = None) -> Any:
        """Put the program on the tape outside that it depends on, if it does, and return one of its variables."""
        if self.involved and not self._moved:
            self._moved = True
            try:
                self._move()
            except BaseException:
                self._moved = False
                raise
        elif isinstance(self._outer, ProgramTape):
            for _, stand_in in self.tape.entries:
                _ = stand_in.block_variable  # the program that this one was placed in may have ended
        return variable

    def _move(self) -> None:
        with recording_on(self._outer) as tape:
            for source, stand_in in self.tape.entries:
                if isinstance(source, OverloadedType):
                    connect(source, stand_in)
            for block in self.tape.get_blocks():
                tape.add_block(block)
        values = self.tape.arrays()
        for value in values:
            _ = value.block_variable  # from now on without this program
        if isinstance(tape, ProgramTape):
            tape.connected((), values)

    @contextmanager
    def standing(self) -> Iterator[None]:
        """The variables have the values that the program computed, wherever evaluations outside have moved them."""
        if not self.plan.derivative:
            yield
            return
        if self._moved and not isinstance(self._outer, ProgramTape):
            self._on_the_outer_tape()._linearize()
            yield
            return
        kept = [(bv, bv._checkpoint) for bv in self._outside if isinstance(bv.output, AdjFloat)]
        try:
            for bv, _ in kept:
                bv._checkpoint = bv.output
            yield
        finally:
            for bv, value in kept:
                bv._checkpoint = value

    def stand_at_the_record(self) -> None:
        """Give the variables the values that the program computed, for a sweep that is to be recorded."""
        stand_at_the_record(self._outer if self._moved else self.tape, self.plan.touched)

    def _on_the_outer_tape(self) -> ReducedFunction:
        if self._reduced is None:
            with stop_annotating():
                self._reduced = ReducedFunction(self.outs, [Control(x) for x in self.ins], self._outer)
            self._reduced._point = [x._value for x in self.ins]
        return self._reduced


def _leaked(program: "weakref.ref[Traced]", variable: "weakref.ref[Variable]", aval: Aval) -> Any:
    """A value was kept by the program and is recorded outside of it."""
    found = program()
    if found is None:
        raise CapturedValueError(
            f"A value ({aval}) that was computed inside of a transformed program is recorded after it has ended, where its "
            "derivative would be lost. Return it from the program (has_aux=True), or take its data: x.value."
        )
    return found.place(variable())
