"""The program of a reduced function, recorded once more for values of other shapes."""

from collections.abc import Sequence
from typing import Any

from pyadjoint import AdjFloat, Block
from pyadjoint.adjfloat import AdjFloatExprBlock

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.compiling.lowering import float_function
from pyadjoint_utils.control import Control, checked_value
from pyadjoint_utils.conversion import ConversionBlock, converted_like, converted_to
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentValueError, UnsupportedError
from pyadjoint_utils.indexing import is_bound
from pyadjoint_utils.jacobians.points import Points, declared_points, points_of_elementwise, with_outputs
from pyadjoint_utils.prepared import record
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.registry import get_engine
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.tapes import Tape, recording_on, state_of
from pyadjoint_utils.values import array, ndarray
from pyadjoint_utils.variable import Variable, entered


def rerecorded(function: ReducedFunction, values: Sequence[Any], inputs: Sequence[Any]) -> ReducedFunction:
    """Return a function of the same Blocks, recorded on a tape of its own from values of other shapes.

    Numbers and arrays that are neither controls nor inputs stay what they were.

    Args:
        function: the function; its tape is left alone.
        values: one for each control.
        inputs: one for each input.

    Raises:
        UnsupportedError: a Block runs at the recorded shapes alone.
        ArgumentValueError: a function refuses the shapes.
    """
    updates = dict(state_of(function.tape).updates)
    plan = function._plan_with(updates)
    plan.claim()
    likes = [getattr(like, "control", like) for like in (*function._controls, *function._inputs)]
    with recording_on(Tape()) as tape:
        updated = [(bv, updates[bv]) for bv in plan.sources[len(function._variables) :]]
        made = {bv: _taped(bv, value) for bv, value in (*plan.boundary, *updated)}
        for k, (bv, like, value) in enumerate(zip(function._variables, likes, (*values, *inputs), strict=True)):
            made[bv] = _resembling(like, value, f"values[{k}]")
        sources = [made[bv] for bv in function._variables]
        for block in plan.forward:
            results = _again(block, [made[bv] for bv in block.get_dependencies()])
            for bv, result in zip(block.get_outputs(), results, strict=True):
                made.setdefault(bv, result)  # what computes a source computes it in vain
    controls = [Control(v, c.riesz_map) for v, c in zip(sources, function._controls, strict=False)]
    outputs = [made[bv] for bv in function._output_variables]
    callbacks = {name: getattr(function, name) for name in vars(function) if "_cb_" in name}
    return ReducedFunction(
        function._outputs.delist(outputs),
        function._controls.delist(controls),
        tape,
        inputs=sources[len(controls) :],
        **callbacks,
    )


def _resembling(like: Any, value: Any, where: str) -> Any:
    """A value in the engine and dtype of another one, as a new value."""
    if isinstance(like, ndarray):
        given = value if isinstance(value, ndarray) else array(value)
        like = ndarray(like._engine.zeros(Aval(given.shape, like.dtype)), like._engine)
    found = checked_value(like, value, where)
    return ndarray(found._value, found._engine) if isinstance(found, ndarray) else found


def _taped(bv: Any, value: Any) -> Any:
    """A recorded value, to be recorded with once more."""
    if type(bv) is Variable:
        return ndarray(value, bv.engine)
    if isinstance(bv.output, AdjFloat):
        return AdjFloat(value)
    raise UnsupportedError(f"A {type(bv.output).__name__} cannot be recorded once more for other shapes.")


def _again(block: Block, values: Sequence[Any]) -> Sequence[Any]:
    """Run and record a Block on other values."""
    if isinstance(block, EngineBlock):
        return _called(block, values)
    if isinstance(block, ConversionBlock):
        return [_converted(block, *values)]
    function = float_function(block) if type(block) is AdjFloatExprBlock else None
    if function is None:
        raise UnsupportedError(
            f"{block} runs at the recorded shapes alone, since it is no function of an engine. Record the program "
            "anew with values of these shapes."
        )
    return [function(*values)]


def _called(block: EngineBlock, values: Sequence[Any]) -> Sequence[Any]:
    recorded, engine = block.rules, block.rules.engine
    pairs = list(zip(values, recorded.inputs, strict=False))
    avals = [Aval(v.shape, aval.dtype) if isinstance(v, ndarray) else aval for v, aval in pairs]
    if is_bound(recorded, avals[0]):
        raise ArgumentValueError(
            f"An index was recorded for {recorded.inputs[0]}; it may mean another entry of {avals[0]}. Index by slices "
            "(x[-1:]), or in an overloaded function, or record the program anew with values of these shapes."
        )
    rules = recorded.resized(avals)
    arrays = [entered(v, aval, engine) for v, aval in zip(values, avals, strict=True)]
    try:
        results = rules.value((), (*arrays, *block.constants))
    except Exception as error:
        given, known = (", ".join(map(str, some)) for some in (avals, recorded.inputs[: recorded.dependencies]))
        raise ArgumentValueError(
            f"{recorded.name} was recorded with {known} and refuses {given}. Write it without fixed shapes, or record the "
            f"program anew. ({engine.name} says: {str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    if not rules.outputs:
        found = tuple([engine.aval(y) for y in results])
        rules.points = _points(recorded, rules.inputs, found)
        rules.outputs = found
    outputs = [ndarray(y, get_engine(engine.holds)) for y in results]
    record(rules, list(values), block.constants, outputs)
    return outputs


def _points(recorded: Rules, inputs: Sequence[Aval], outputs: Sequence[Aval]) -> Points | None:
    """What is known of the points of a recorded function, for arguments of other shapes."""
    known = recorded.points
    if known is None or not known.declared:
        return points_of_elementwise(inputs, outputs) if recorded.nature.elementwise else None
    points = declared_points(recorded.name, known.inputs, inputs, known.paths, every=False)
    assert points is not None  # a declaration has a mark
    items = [[k] for k in range(len(outputs))]
    return with_outputs(recorded.name, points, known.outputs, items, inputs, outputs)


def _converted(block: ConversionBlock, value: Any) -> Any:
    ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
    if type(target) is not Variable or type(source) is not Variable or source.aval.shape != target.aval.shape:
        return converted_like(value, target.output)
    return converted_to(value, Aval(value.shape, target.aval.dtype), target.engine)
