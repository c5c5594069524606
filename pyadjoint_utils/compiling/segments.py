"""Runs of Blocks that one engine computes in one program."""

import math
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.compiling.fused import Fused
from pyadjoint_utils.compiling.program import Step
from pyadjoint_utils.engine import Arrays, Aval, CannotCompile, Engine, Map, Work
from pyadjoint_utils.registry import convert
from pyadjoint_utils.rules import Rules

_INTERNED = 4096  # bytes up to which constants are compared by value


class OverBudget(Exception):
    """A program is not compiled, since that would take longer than allowed."""


class Budget:
    """How long compiling may take.

    Args:
        limit: seconds.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.limit - self.spent


class SegmentRules(Rules):
    """The rules of a fused function; each map is compiled at its first call, on a budget.

    Args:
        engine: the engine.
        fused: the function.
        inputs: shape and dtype of every argument.
        dependencies: how many of them are values that vary; the others are constants.
        active: positions of those that pass a derivative.
        outputs: shape and dtype of every result.
        compiler: what builds programs, the engine itself if nothing else was asked for.
    """

    def __init__(
        self,
        engine: Engine,
        fused: Fused,
        inputs: Sequence[Aval],
        dependencies: int,
        active: Sequence[int],
        outputs: Sequence[Aval],
        *,
        compiler: Any = None,
    ) -> None:
        super().__init__(engine, fused.function(engine), inputs, dependencies, active, name="segment")
        self.fused, self.outputs = fused, tuple(outputs)
        self.budget = Budget(math.inf)  # of whoever uses it
        self.built = 0  # how many maps have been compiled
        self.reasons: list[str] = []  # why others run as they are
        self.splits = compiler is None  # compilers make the halves of a derivative no programs
        self._compiler = compiler or engine
        inner = [aval for call in fused.members() for aval in (*call.rules.inputs, *call.rules.outputs)]
        self._avals = tuple({*inputs, *outputs, *inner})

    @property
    def work(self) -> Work:
        """What there is to compile."""
        return self.fused.work

    def prepare(self, f: Map, *, derivative: bool = True) -> Map:
        program: Map | None = None

        def call(x: Arrays, c: Arrays) -> Arrays:
            nonlocal program
            if program is None:
                if self.budget.left <= 0:
                    raise OverBudget
                start = time.perf_counter()
                program = self._built(f, x, c)
                self.budget.spent += time.perf_counter() - start
            return program(x, c)

        return call

    def _built(self, f: Map, x: Arrays, c: Arrays) -> Map:
        try:
            program: Map = self._compiler.build(f, x, c, self._avals, self.work)
        except CannotCompile as reason:
            self.reasons.append(str(reason))
            return self.engine.build(f, x, c, self._avals, self.work)
        self.built += 1
        return program

    def seconds(self, order: int) -> float:
        """Return about how long compiling takes."""
        seconds: float = self._compiler.seconds(self.work, order)
        return seconds


def number_key(number: Any) -> Hashable:
    """Return what numbers have in common that are the same to a program; 0.0 and -0.0 are not."""
    return type(number), repr(number)


class Segment(Step):
    """Several steps as one, with the face of a step.

    Args:
        rules: the function of them all.
        inputs: slots of what it takes from elsewhere.
        outputs: slots of what is needed elsewhere.
        constants: the arrays that follow the inputs.
        differentiable: positions among the outputs that pass a derivative.
    """

    def __init__(
        self,
        rules: SegmentRules,
        inputs: Sequence[int],
        outputs: Sequence[int],
        constants: Arrays,
        differentiable: Sequence[int],
    ) -> None:
        self.inputs, self.outputs, self.constants = tuple(inputs), tuple(outputs), constants
        self.active, self.differentiable = rules.active, tuple(differentiable)
        self.engine, self.name = rules.engine, str(rules.fused)
        self.compiled = self._own = rules


class Constants:
    """Arrays of an engine that a program takes as they were recorded, equal small ones once.

    Args:
        engine: the engine.
        fresh: numbers of slots that nobody uses.
    """

    def __init__(self, engine: Engine, fresh: Iterator[int]) -> None:
        self.engine, self._fresh = engine, fresh
        self.arrays: dict[int, Any] = {}
        self.integers: dict[int, int] = {}  # the numbers of indices
        self._known: dict[Hashable, int] = {}
        self._kept: list[Any] = []  # so that no other array gets the identity of one that is known

    def slot(self, value: Any) -> int:
        """Return the slot of an array of the engine or of NumPy, or of a number that the engine takes as it is."""
        slot = self._known.get(id(value))
        if slot is None:
            slot = self._known[id(value)] = self._by_value(value)
            self._kept.append(value)
        return slot

    def integer(self, number: int) -> int:
        """Return the slot of a number of an index."""
        slot = self._known.get((int, number))
        if slot is None:
            slot = self._known[int, number] = self._new(np.asarray(number, np.int32))
            self.integers[slot] = number
        return slot

    def array(self, slot: int) -> Any:
        """Return a constant as a program takes it; NumPy's arrays are converted when that is asked for."""
        value = self.arrays[slot]
        if type(value) is np.ndarray:
            value = self.arrays[slot] = convert(value, self.engine)
        return value

    def aval(self, slot: int) -> Aval:
        """Return shape and dtype of a constant."""
        value = self.array(slot)
        return self.engine.aval(value) if type(value) in self.engine.array_types else Aval((), np.asarray(value).dtype)

    def _by_value(self, value: Any) -> int:
        if not self._is_array(value):
            key: Hashable = number_key(value)
        else:
            aval = Aval(value.shape, value.dtype) if type(value) is np.ndarray else self.engine.aval(value)
            if aval.dtype.itemsize * math.prod(aval.shape) > _INTERNED:
                return self._new(value)
            key = (aval, self._numpy(value).tobytes())
        slot = self._known.get(key)
        if slot is None:
            slot = self._known[key] = self._new(value)
        return slot

    def _is_array(self, value: Any) -> bool:
        return type(value) is np.ndarray or type(value) in self.engine.array_types

    def _numpy(self, value: Any) -> np.ndarray:
        return value if type(value) is np.ndarray else self.engine.to_numpy(value)

    def _new(self, array: Any) -> int:
        slot = next(self._fresh)
        self.arrays[slot] = array
        return slot

    def packed(self, slots: Sequence[int]) -> int | None:
        """Return the slot of a constant that holds several stacked; None if one of them is no constant."""
        if not all(self._is_array(self.arrays.get(slot)) for slot in slots):
            return None
        key = tuple(slots)
        if key not in self._known:
            self._known[key] = self._new(np.stack([self._numpy(self.arrays[slot]) for slot in slots]))
        return self._known[key]
