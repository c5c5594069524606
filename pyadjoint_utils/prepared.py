"""One function of an engine at one signature, ready to be called and recorded."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pyadjoint import Block

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.captures import check_captures
from pyadjoint_utils.engine import Arrays, Aval
from pyadjoint_utils.errors import ArgumentTypeError, CapturedValueError
from pyadjoint_utils.jacobians.points import Points, points_of_elementwise, with_outputs
from pyadjoint_utils.named_calls import Arguments, NamedCall
from pyadjoint_utils.registry import get_engine
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.running import RUNNING
from pyadjoint_utils.tapes import working_tape
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.values import ndarray

if TYPE_CHECKING:
    from pyadjoint_utils.overloading import Overloaded

PYTHON_NUMBERS = (int, float, complex)


class Key(tuple):
    """What makes two calls the same to an engine; hashing it is the lookup of every call."""

    __slots__ = ()

    def __new__(cls, *parts: Any) -> "Key":
        return super().__new__(cls, parts)

    structure = property(lambda self: self[0])
    taped = property(lambda self: self[1])
    constant = property(lambda self: self[2])
    avals = property(lambda self: self[3])
    active = property(lambda self: self[5])


class Prepared:
    """One function at one signature: its rules, and how its outputs are put together."""

    def __init__(
        self, overloaded: "Overloaded", key: Key, leaves: list[Any], structure: Any, points: Points | None
    ) -> None:
        self.engine = engine = overloaded.engine
        self._elementwise, self._out_pointwise = overloaded.nature.elementwise, overloaded.out_pointwise
        self._points = points
        self.name = overloaded.name
        self.out_structure: Any = None
        arrays = {*key.taped, *key.constant}
        # Only what is static may be kept: a reference to an argument's array would keep it alive for ever.
        template = [None if i in arrays else leaf for i, leaf in enumerate(leaves)]
        order = (*key.taped, *key.constant)
        user_function = overloaded.function
        check_captures(user_function, self.name)
        # What costs as much as a small operation is left out where nothing is nested and one array is returned.
        only_arrays = order == tuple(range(len(leaves)))
        positional = structure == engine.flatten((tuple(leaves), {}))[1]
        single, (_, single_structure) = {*engine.array_types, *engine.tracer_types}, engine.flatten(object())

        def arguments(arrays: Arrays) -> Arguments:
            filled: Sequence[Any] = arrays
            if not only_arrays:
                filled = list(template)
                for i, array in zip(order, arrays, strict=True):
                    filled[i] = array
            return (filled, {}) if positional else engine.unflatten(structure, filled)

        def apply(arrays: Arrays) -> Any:
            if only_arrays and positional:
                return user_function(*arrays)
            args, kwargs = arguments(arrays)
            return user_function(*args, **kwargs)

        def flat(arrays: Arrays) -> Arrays:
            engines, names = RUNNING.engines, RUNNING.names
            engines.append(engine)
            names.append(self.name)
            try:
                result = apply(arrays)
            finally:
                engines.pop()
                names.pop()
            if type(result) in single:
                self.out_structure = RUNNING.structure = single_structure
                return (result,)
            outputs, self.out_structure = engine.flatten(result)
            RUNNING.structure = self.out_structure
            return tuple([self._output(k, leaf) for k, leaf in enumerate(outputs)])

        function = flat
        if overloaded.checkpoint:
            remade = engine.checkpoint(lambda x, c: flat(x))
            function = lambda arrays: remade(arrays, ())  # noqa: E731
        self.rules = Rules(
            engine,
            function,
            key.avals,
            len(key.taped),
            key.active,
            compiled=overloaded.jit,
            name=self.name,
            lasting=overloaded.numpy_name is not None,
        )
        self.rules.nature = overloaded.nature
        if overloaded.numpy_name is not None:
            self.rules.named = NamedCall(overloaded.numpy_name, arguments)

    def _output(self, k: int, leaf: Any) -> Any:
        engine = self.engine
        if type(leaf) in engine.array_types or engine.is_tracer(leaf):
            return leaf
        if isinstance(leaf, ndarray):
            raise CapturedValueError(
                f"{self.name} computes with a taped value that was not passed to it (output {k}). Pass it as an argument."
            )
        if isinstance(leaf, (np.generic, np.ndarray, *PYTHON_NUMBERS)) and not isinstance(leaf, bool):
            return engine.enter(np.asarray(leaf))
        raise ArgumentTypeError(
            f"{self.name}: output {k} is not an array; got {type(leaf).__name__}. "
            f"Return arrays of {engine.name} (in tuples, lists or dicts); None is allowed."
        )

    def run(self, values: Arrays, constants: Arrays) -> Arrays:
        rules, RUNNING.structure = self.rules, None
        outputs = rules.value((), (*values, *constants))
        if not rules.outputs:
            if not outputs:
                raise ArgumentTypeError(f"{self.name} returns no array.")
            avals = tuple([self.engine.aval(y) for y in outputs])
            rules.points = self._points_with(avals)
            rules.outputs = avals
        else:
            rules.check(outputs)
        return outputs

    def _points_with(self, outputs: tuple[Aval, ...]) -> Points | None:
        inputs = self.rules.inputs
        if self._points is None:
            return points_of_elementwise(inputs, outputs) if self._elementwise else None
        result = self.engine.unflatten(self.out_structure, range(len(outputs)))
        items = [self.engine.flatten(item)[0] for item in (result if isinstance(result, (tuple, list)) else [result])]
        return with_outputs(self.name, self._points, self._out_pointwise, items, inputs, outputs)

    def wrapped(self, outputs: Arrays, taped: list[Any], constants: Arrays) -> Any:
        """Wrap the outputs and record the call if there is something to record."""
        holder = get_engine(self.engine.holds)
        results = [ndarray(y, holder) for y in outputs]
        if taped and annotate_tape():
            record(self.rules, taped, constants, results)
        # A compiled function does not run again; one that does run may run in other threads too.
        structure = self.out_structure if RUNNING.structure is None else RUNNING.structure
        return self.engine.unflatten(structure, results)


def record(rules: Rules, dependencies: list[Any], constants: Arrays, outputs: Sequence[ndarray]) -> None:
    """Put one call on the working tape."""
    put_on_tape(lambda values: EngineBlock(rules, values, constants), dependencies, outputs)


def put_on_tape(make: Callable[[list[Any]], Block], dependencies: list[Any], outputs: Sequence[ndarray]) -> None:
    """Put a Block, made of its dependencies as the working tape knows them, on that tape."""
    tape = working_tape(None)
    if isinstance(tape, ProgramTape):
        dependencies = tape.connected(dependencies, outputs)
    block = make(dependencies)
    for y in outputs:
        block.add_output(y.create_block_variable())
    tape.add_block(block)  # last: an interrupted recording leaves no Block without outputs
