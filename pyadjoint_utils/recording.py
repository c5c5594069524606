"""Sweeps that are themselves recorded: what makes the derivative of a derivative right at any order.

The tangent and the adjoint of an :class:`EngineBlock` are functions of the same engine, so a sweep can call them like any
overloaded function. What comes out is on the tape and depends on the controls.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyadjoint
from pyadjoint import Block
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock, converted_like, converted_to
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import NotDifferentiableError, StaleTapeError, UnsupportedError
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.prepared import record
from pyadjoint_utils.recorded import stand_at_the_record, taped_value
from pyadjoint_utils.reduced import ReducedFunction
from pyadjoint_utils.registry import get_engine
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.tapes import recording_on, schedule_of, state_of
from pyadjoint_utils.transforming.rule_block import RuleBlock
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import entered


def recorded_gradient(J: Any, m: Any, tape: pyadjoint.Tape | None, adj_value: Any) -> Any:
    """Record the gradient of ``J`` on the tape and return it; see :func:`compute_gradient`."""
    rf = ReducedFunction(J, m, tape)
    seeds = rf._seeds(adj_value)
    with _recording(rf):
        results = RecordedSweep(rf._plan).adjoints(seeds, [c.control for c in rf.controls])
    return Enlist(m).delist(results)


def recorded_tangent(J: Any, m: Any, m_dot: Any, tape: pyadjoint.Tape | None) -> Any:
    """Record the tangent of ``J`` on the tape and return it; see :func:`compute_jacobian_action`."""
    rf = ReducedFunction(J, m, tape)
    directions = rf._checked(m_dot, rf._controls, "directions")
    with _recording(rf):
        results = RecordedSweep(rf._plan).tangents(directions, rf.outputs)
    return Enlist(J).delist(results)


def _recording(rf: ReducedFunction) -> AbstractContextManager[Any]:
    """Annotation on the function's own tape; the sweep runs on the values that the program recorded."""
    if schedule_of(rf.tape) is not None:
        raise UnsupportedError(
            "A derivative is recorded from all values of the record, and under a schedule the tape does not keep them. "
            "Record the program without a schedule, or take derivatives without record=True."
        )
    updates = state_of(rf.tape).updates
    if any(not updates.keys().isdisjoint(b.get_dependencies()) for b in rf._plan_with(updates).forward):
        raise StaleTapeError(
            "A derivative is recorded at the values that the program recorded, but Control.update gave a variable "
            "another one since. Record the derivative before the update."
        )
    stand_at_the_record(rf.tape, rf._plan.touched)
    return recording_on(rf.tape)


class NotRecordableError(NotDifferentiableError):
    """A derivative was to be recorded through a Block of another package."""


class RecordedSweep:
    """A sweep over a plan that puts the derived maps on the working tape.

    Args:
        plan: the way from controls to outputs.
        size: length of the leading axis that seeds and results have, one entry for each direction; None for one direction
            without such an axis.
    """

    def __init__(self, plan: Plan, size: int | None = None) -> None:
        self.plan, self._size = plan, size
        self._cut = set(plan.sources)  # a source is cut off from what once computed it

    def tangents(self, directions: Sequence[Any], likes: Sequence[Any]) -> list[Any]:
        """Push directions of the controls, None for none, forward to the outputs; the results are as ``likes``."""
        given = zip(self.plan.controls, directions, strict=True)
        values = {bv: value for bv, value in given if value is not None}
        for block in self.plan.derivative:
            self._forward(block, values)
        return [self._or_zero(values.get(bv), like) for bv, like in zip(self.plan.outputs, likes, strict=True)]

    def adjoints(self, seeds: Sequence[Any], likes: Sequence[Any]) -> list[Any]:
        """Pull cotangents of the outputs, None for none, back to the controls; the results are as ``likes``."""
        values: dict[Any, Any] = {}
        for bv, seed in zip(self.plan.outputs, seeds, strict=True):
            if seed is not None:
                _accumulate(values, bv, seed)
        for block in reversed(self.plan.derivative):
            self._backward(block, values)
        return [self._or_zero(values.get(bv), like) for bv, like in zip(self.plan.controls, likes, strict=True)]

    def _forward(self, block: Block, values: dict[Any, Any]) -> None:
        if isinstance(block, ConversionBlock):
            ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
            if source in values and target not in self._cut:
                values[target] = self._like(values[source], target.output)
            return
        if isinstance(block, RuleBlock):
            for bv, value in zip(
                block.outs, self._by_rule(block.rules.tangents, block, block.ins, block.outs, values), strict=True
            ):
                if value is not None and bv not in self._cut:
                    values[bv] = value
            return
        block = _engine_block(block)
        rules, outputs, dependencies = block.rules, block.get_outputs(), block.get_dependencies()
        ins = tuple([i for i in rules.active if dependencies[i] in values])
        outs = tuple([k for k in rules.differentiable if outputs[k] not in self._cut])
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        derived = local.jvp_rules if self._size is None else local.batched_jvp_rules(self._size)
        results = _call(derived, block, local, [values[dependencies[i]] for i in ins])
        for k, value in zip(outs, results, strict=True):
            values[outputs[k]] = value

    def _backward(self, block: Block, values: dict[Any, Any]) -> None:
        if isinstance(block, ConversionBlock):
            ((source,), (target,)) = block.get_dependencies(), block.get_outputs()
            if target in values and target not in self._cut:
                _accumulate(values, source, self._like(values.pop(target), source.output))
            return
        if isinstance(block, RuleBlock):
            arrived = {bv: values.pop(bv) for bv in block.outs if bv in values and bv not in self._cut}
            for bv, value in zip(
                block.ins, self._by_rule(block.rules.adjoints, block, block.outs, block.ins, arrived), strict=True
            ):
                if value is not None:
                    _accumulate(values, bv, value)
            return
        block = _engine_block(block)
        rules, outputs, dependencies = block.rules, block.get_outputs(), block.get_dependencies()
        outs = tuple([k for k, bv in enumerate(outputs) if bv in values and bv not in self._cut])
        ins = tuple([i for i in rules.active if dependencies[i] in self.plan.dependent])
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        derived = local.vjp_rules if self._size is None else local.batched_vjp_rules(self._size)
        results = _call(derived, block, local, [values.pop(outputs[k]) for k in outs])
        for i, value in zip(ins, results, strict=True):
            _accumulate(values, dependencies[i], value)

    def _by_rule(
        self, rule: Any, block: RuleBlock, sources: Sequence[Any], targets: Sequence[Any], values: dict[Any, Any]
    ) -> list[Any]:
        """What a rule by hand returns, one direction at a time; None where nothing arrived."""
        if not any(bv in values for bv in sources):
            return [None] * len(targets)
        given = [self._or_zero(values.get(bv), bv.output) for bv in sources]
        x = [taped_value(bv) for bv in block.get_dependencies()]
        if self._size is None:
            return rule(x, given)
        found = [rule(x, [value[k] for value in given]) for k in range(self._size)]
        return [np.stack(list(results)) for results in zip(*found, strict=True)]

    def _like(self, value: Any, like: Any) -> Any:
        if self._size is None:
            return converted_like(value, like)
        # Many numbers are no AdjFloat.
        owner = like._engine if isinstance(like, ndarray) else get_engine("numpy")
        return converted_to(value, self._aval(like), owner)

    def _aval(self, like: Any) -> Aval:
        aval = like.aval if isinstance(like, ndarray) else Aval((), np.dtype(np.float64))
        return aval if self._size is None else Aval((self._size, *aval.shape), aval.dtype)

    def _or_zero(self, value: Any, like: Any) -> Any:
        if value is not None:
            return self._like(value, like)
        if self._size is None:
            return like._ad_init_zero()
        return ndarray(like._engine.zeros(self._aval(like)), like._engine)


def _engine_block(block: Block) -> EngineBlock:
    if isinstance(block, EngineBlock):
        return block
    raise NotRecordableError(
        f"A derivative through a {type(block).__name__} cannot be recorded: its rules are not functions of an engine. "
        "Compute that part with arrays (array(x) instead of AdjFloat(x)) or in an overloaded function."
    )


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
