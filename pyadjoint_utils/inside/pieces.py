"""A program cut into what an engine runs by itself and what it sees as functions from outside."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.compiling.composition import Composition, Part
from pyadjoint_utils.compiling.program import Program, Step
from pyadjoint_utils.engine import Arrays, Engine
from pyadjoint_utils.errors import UnsupportedError
from pyadjoint_utils.inside.host_function import HostFunction, RulesFunction
from pyadjoint_utils.inside.opaque_function import OpaqueFunction
from pyadjoint_utils.registry import get_engine


class Native(NamedTuple):
    """One step in the terms of the engine.

    Attributes:
        step: the step.
        inputs: slots of its arguments.
        outputs: slots of its results.
        dtypes: for each argument, the dtype to cast it to, or None where it has it.
    """

    step: Step
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[Any, ...]

    def __call__(self, engine: Engine, values: Sequence[Any], constants: Arrays) -> Arrays:
        """Run it on values of the engine, whatever transformation they belong to."""
        astype: Any = engine.function("astype")
        cast = [v if d is None else astype(v, d) for v, d in zip(values, self.dtypes, strict=True)]
        rules: Any = self.step.rules(engine)
        return rules.function((*cast, *constants))


class Foreign(NamedTuple):
    """Steps that the engine sees as one function from outside.

    Attributes:
        function: the function.
        inputs: slots of its arguments.
        outputs: slots of its results.
    """

    function: HostFunction
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def pieces_of(program: Program, constants: dict[int, Any], engine: Engine | None) -> list[Native | Foreign]:
    """Cut a program into pieces: steps that the engine runs by itself, the others in as few runs as can be.

    Args:
        program: the program.
        constants: values of the slots that never change.
        engine: the calling engine; None to see everything as one function from outside.

    Raises:
        UnsupportedError: an object of another package would have to pass through the engine.
    """
    pieces: list[Native | Foreign] = []
    read = set(program.outputs)
    for level, steps in reversed(list(enumerate(_levels(program, engine)))):
        if level % 2 == 0:
            pieces += [_native(program, step, engine) for step in reversed(steps) if engine is not None]
        elif steps:
            pieces.append(_foreign(program, steps, constants, read, engine))
        read.update(slot for step in steps for slot in step.inputs)
    return pieces[::-1]


def _levels(program: Program, engine: Engine | None) -> list[list[Step]]:
    """Steps by how often the program changes sides before them; the engine's own are on even levels."""
    level_of: dict[int, int] = {}
    groups: list[list[Step]] = []
    for step in program.steps:
        own = engine is not None and step.rules(engine) is not None
        # Arithmetic of numbers and conversions are the same on both sides.
        free = own and not isinstance(step.block, EngineBlock)
        level = max([level_of.get(slot, 0) for slot in step.inputs], default=0)
        level += not free and level % 2 == own
        level_of.update(dict.fromkeys(step.outputs, level))
        groups += [[] for _ in range(level + 1 - len(groups))]
        groups[level].append(step)
    return groups


def _native(program: Program, step: Step, engine: Engine) -> Native:
    rules: Any = step.rules(engine)
    pairs = zip([program.avals[slot] for slot in step.inputs], rules.inputs, strict=False)
    dtypes = [None if aval is None or aval.dtype == wanted.dtype else wanted.dtype for aval, wanted in pairs]
    return Native(step, step.inputs, step.outputs, tuple(dtypes))


def _foreign(
    program: Program, steps: Sequence[Step], constants: dict[int, Any], read: set[int], engine: Engine | None
) -> Foreign:
    parts = [Part(_function(program, step, engine), step.inputs, step.outputs) for step in steps]
    made = dict.fromkeys(slot for step in steps for slot in step.outputs)
    taken = dict.fromkeys(slot for step in steps for slot in step.inputs)
    inputs = tuple([slot for slot in taken if slot not in made and slot not in constants])
    outputs = tuple([slot for slot in made if slot in read])
    fixed = {slot: constants[slot] for slot in taken if slot in constants}
    for slot in (*inputs, *outputs):
        if program.avals[slot] is None:
            raise UnsupportedError(
                f"A {type(program.holders[slot].output).__name__} would have to pass through {engine and engine.name}, "
                "which cannot hold it. Convert it to an array, in a recorded function, before more is computed with it."
            )
    avals: list[Any] = program.avals
    in_avals, out_avals = ([avals[slot] for slot in slots] for slots in (inputs, outputs))
    passing = {slot for step in steps for slot in [step.inputs[i] for i in step.active]}
    active = [k for k, slot in enumerate(inputs) if slot in passing]
    function, *slots = parts[0]
    known = (function.inputs, function.outputs) == (tuple(in_avals), tuple(out_avals))
    if isinstance(function, RulesFunction) and slots == [inputs, outputs] and known:
        return Foreign(function, inputs, outputs)  # there is nothing to compose
    return Foreign(Composition(parts, inputs, outputs, in_avals, out_avals, active, fixed=fixed), inputs, outputs)


def _function(program: Program, step: Step, engine: Engine | None) -> HostFunction:
    # Never in the calling engine: it may not be called from a function that it called itself.
    home = step.engine if step.engine is not None and step.engine is not engine else get_engine("autograd")
    rules = step.rules(home)
    if rules is not None:
        return RulesFunction(rules, step.constants, step.active)
    avals = ([program.avals[slot] for slot in slots] for slots in (step.inputs, step.outputs))
    return OpaqueFunction(step, *avals)
