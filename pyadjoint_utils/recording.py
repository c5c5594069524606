"""Sweeps that are themselves recorded: what makes the derivative of a derivative right at any order.

The tangent and the adjoint of an :class:`EngineBlock` are functions of the same engine, so a sweep can call them like any
overloaded function. What comes out is on the tape and depends on the controls.
"""

from typing import Any

import pyadjoint
from pyadjoint import Block, continue_annotation, pause_annotation
from pyadjoint.enlisting import Enlist
from pyadjoint.tape import annotate_tape

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock, converted_like
from pyadjoint_utils.engine import get_engine
from pyadjoint_utils.errors import NotDifferentiableError, StaleTapeError
from pyadjoint_utils.prepared import record
from pyadjoint_utils.recorded import stand_at_the_record, taped_value
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.tapes import push_tape, state_of, truncate
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import entered


def recorded_gradient(J: Any, m: Any, tape: pyadjoint.Tape | None, adj_value: Any) -> Any:
    """Record the gradient of ``J`` on the tape and return it; see :func:`compute_gradient`."""
    rf = ReducedFunction(J, m, tape)
    seeds = rf._checked(rf._unit_seed() if adj_value is None else adj_value, rf._outputs, "seeds")
    with _Recording(rf):
        adjoints: dict[Any, Any] = {}
        for output, seed in zip(rf.outputs, seeds, strict=True):
            _accumulate(adjoints, output.block_variable, seed)
        for block in reversed(rf._plan.derivative):
            _adjoint_of(block, adjoints, rf._plan)
        results = [_or_zero(adjoints.get(c.block_variable), c.control) for c in rf.controls]
    return Enlist(m).delist(results)


def recorded_tangent(J: Any, m: Any, m_dot: Any, tape: pyadjoint.Tape | None) -> Any:
    """Record the tangent of ``J`` on the tape and return it; see :func:`compute_jacobian_action`."""
    rf = ReducedFunction(J, m, tape)
    directions = rf._checked(m_dot, rf._controls, "directions")
    with _Recording(rf):
        tangents = {c.block_variable: d for c, d in zip(rf.controls, directions, strict=True)}
        for block in rf._plan.derivative:
            _tangent_of(block, tangents)
        results = [_or_zero(tangents.get(y.block_variable), y) for y in rf.outputs]
    return Enlist(J).delist(results)


class _Recording:
    """Annotation on the function's own tape; the sweep runs on the values that the program recorded."""

    def __init__(self, rf: ReducedFunction) -> None:
        updates = state_of(rf.tape).updates
        if any(not updates.keys().isdisjoint(b.get_dependencies()) for b in rf._plan_with(updates).forward):
            raise StaleTapeError(
                "A derivative is recorded at the values that the program recorded, but Control.update gave a variable "
                "another one since. Record the derivative before the update."
            )
        self._rf = rf
        self._tape = push_tape(rf.tape)

    def __enter__(self) -> None:
        stand_at_the_record(self._rf.tape, self._rf._plan.touched)
        self._was_on = annotate_tape()
        self._tape.__enter__()
        self._length = len(self._rf.tape.get_blocks())
        continue_annotation()

    def __exit__(self, *exception: Any) -> None:
        if not self._was_on:
            pause_annotation()
        if exception[0] is not None:
            truncate(self._rf.tape, self._length)
        self._tape.__exit__(*exception)


def _engine_block(block: Block) -> EngineBlock:
    if isinstance(block, EngineBlock):
        return block
    raise NotDifferentiableError(
        f"A derivative through a {type(block).__name__} cannot be recorded: its rules are not functions of an engine. "
        "Compute that part with arrays (array(x) instead of AdjFloat(x)) or in an overloaded function."
    )


def _adjoint_of(block: Block, adjoints: dict[Any, Any], plan: Any) -> None:
    if isinstance(block, ConversionBlock):
        ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
        if target in adjoints and target not in plan.controls:
            _accumulate(adjoints, source, converted_like(adjoints.pop(target), source.output))
        return
    block = _engine_block(block)
    rules, outputs, dependencies = block.rules, block.get_outputs(), block.get_dependencies()
    controls = set(plan.controls)
    outs = tuple([k for k, bv in enumerate(outputs) if bv in adjoints and bv not in controls])
    ins = tuple([i for i in rules.active if dependencies[i] in plan.touched])
    if not ins or not outs:
        return
    local = rules.at(ins, outs)
    seeds = [adjoints.pop(outputs[k]) for k in outs]
    results = _call(local.vjp_rules, block, local, seeds)
    for i, value in zip(ins, results, strict=True):
        _accumulate(adjoints, dependencies[i], value)


def _tangent_of(block: Block, tangents: dict[Any, Any]) -> None:
    if isinstance(block, ConversionBlock):
        ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
        if source in tangents and target not in tangents:
            tangents[target] = converted_like(tangents[source], target.output)
        return
    block = _engine_block(block)
    rules, outputs, dependencies = block.rules, block.get_outputs(), block.get_dependencies()
    ins = tuple([i for i in rules.active if dependencies[i] in tangents])
    outs = tuple([k for k, aval in enumerate(rules.outputs) if aval.differentiable and outputs[k] not in tangents])
    if not ins or not outs:
        return
    local = rules.at(ins, outs)
    results = _call(local.jvp_rules, block, local, [tangents[dependencies[i]] for i in ins])
    for k, value in zip(outs, results, strict=True):
        tangents[outputs[k]] = value


def _call(rules: Rules, block: EngineBlock, local: Any, seeds: list[Any]) -> list[Any]:
    """Run a derived map on the Block's own variables and record the call."""
    engine = rules.engine
    dependencies = [taped_value(bv) for bv in block.get_dependencies()]
    taped = [*[dependencies[i] for i in local.ins], *seeds, *[dependencies[i] for i in local.others]]
    values = [entered(value, aval, engine) for value, aval in zip(taped, rules.inputs, strict=False)]
    outputs = rules.value((), (*values, *block.constants))
    holder = get_engine(engine.holds)
    results = [ndarray(y, holder) for y in outputs]
    record(rules, taped, block.constants, results)
    return results


def _accumulate(values: dict[Any, Any], bv: Any, value: Any) -> None:
    values[bv] = values[bv] + value if bv in values else value


def _or_zero(value: Any, like: Any) -> Any:
    if value is None:
        return like._ad_init_zero()
    in_place = isinstance(like, ndarray) and isinstance(value, ndarray) and value._engine is like._engine
    return value if in_place else converted_like(value, like)
