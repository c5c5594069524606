"""A plan as pure data: its Blocks as functions of arrays, evaluated without touching the tape."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, Block

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.compiling.lowering import Lowered, lowered, rules_of
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.engine import Arrays, Aval, Engine
from pyadjoint_utils.inside.foreign_block import ForeignBlock
from pyadjoint_utils.plan import Plan, aval_of
from pyadjoint_utils.registry import get_engine
from pyadjoint_utils.rules import PullBack, Rules
from pyadjoint_utils.tapes import TapeState, state_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import Variable, accumulated, bare, entered


class Step:
    """One Block as pure functions of arrays, the same face for every kind of Block.

    Values are arrays of any engine and are converted as needed; None stands for zero, as a seed and as a result.

    Args:
        block: the Block.
        inputs: slots of its dependencies.
        outputs: slots of its outputs.
        active: positions among the inputs that pass a derivative to the controls.
        differentiable: positions among the outputs that pass one.
        state: this project's state of the Block's tape.
    """

    def __init__(
        self,
        block: Block,
        inputs: Sequence[int],
        outputs: Sequence[int],
        active: Sequence[int],
        differentiable: Sequence[int],
        state: TapeState,
    ) -> None:
        self.block, self.inputs, self.outputs = block, tuple(inputs), tuple(outputs)
        self.active, self.differentiable = tuple(active), tuple(differentiable)
        self.engine = _home(block)
        self.constants: Arrays = block.constants if isinstance(block, EngineBlock) else ()
        self._own = None if self.engine is None else rules_of(block, self.engine)
        if self._own is None:
            self.engine = None
        self.name = str(block) if self._own is None or isinstance(block, EngineBlock) else self._own.name
        self._foreign = ForeignBlock(block, state)
        self._lowered: dict[Engine, Lowered | None] = {}

    def __repr__(self) -> str:
        return f"Step({self.name}, {self.inputs} -> {self.outputs})"

    def rules(self, engine: Engine) -> Rules | None:
        """Return the function in the terms of an engine, or None where that cannot be."""
        return self._own if engine is self.engine else rules_of(self.block, engine)

    def lowered(self, engine: Engine, constants: Mapping[int, Any]) -> Lowered | None:
        """Return the function as a part of a program of an engine, or None where that cannot be.

        Args:
            engine: the engine.
            constants: values that never change, by slot.
        """
        if engine not in self._lowered:
            fixed = [constants.get(slot) for slot in self.inputs]
            self._lowered[engine] = None if self._own is None else lowered(self.block, engine, fixed)
        return self._lowered[engine]

    def value(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the outputs."""
        rules = self._own
        if rules is None:
            return self._foreign.value(values)
        y = rules.value((), (*_arrays(values, rules.inputs, rules.engine), *self.constants))
        rules.check(y)
        return y

    def jvp(self, values: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """Return one tangent per output."""
        rules = self._own
        if rules is None:
            return self._foreign.jvp(values, tangents)
        x, dx = (_arrays(v, rules.inputs, rules.engine) for v in (values, tangents))
        return rules.tangents(x, self.constants, dx)

    def vjp(self, values: Sequence[Any], seeds: Sequence[Any], ins: Sequence[int] | None = None) -> list[Any]:
        """Return one cotangent per input: for the positions ``ins``, those that are active if None is given."""
        rules, ins = self._own, self.active if ins is None else tuple(ins)
        if rules is None:
            return self._foreign.vjp(values, seeds, ins)
        x, yb = _arrays(values, rules.inputs, rules.engine), _arrays(seeds, rules.outputs, rules.engine)
        return rules.adjoints(x, self.constants, yb, ins)

    def value_and_vjp(
        self, values: Sequence[Any], seeds: Sequence[Any], ins: Sequence[int] | None = None
    ) -> tuple[Sequence[Any], list[Any]]:
        """Return the outputs and what :meth:`vjp` returns, in one call where an engine runs the step."""
        rules, ins = self._own, self.active if ins is None else tuple(ins)
        if rules is None:
            return self.value(values), self.vjp(values, seeds, ins)
        x, yb = _arrays(values, rules.inputs, rules.engine), _arrays(seeds, rules.outputs, rules.engine)
        return rules.value_and_adjoints(x, self.constants, yb, ins)

    def value_and_pull_back(self, values: Sequence[Any]) -> tuple[Sequence[Any], PullBack] | None:
        """Return the outputs, and a function that returns what :meth:`vjp` does; None if no engine keeps what it needs."""
        rules = self._own
        if rules is None:
            return None
        arrays = _arrays(values, rules.inputs, rules.engine)
        found = rules.value_and_pull_back(arrays, self.constants, self.active, self.differentiable)
        if found is None:
            return None
        outputs, back = found
        return outputs, lambda seeds: back(_arrays(seeds, rules.outputs, rules.engine))

    @property
    def gives_gradient_at_once(self) -> bool:
        """Whether :meth:`value_and_vjp` costs less than :meth:`value_and_pull_back` and its function, as in a program."""
        rules = self._own
        return rules is None or rules.engine.traces or not rules.splits

    def hvp(
        self,
        values: Sequence[Any],
        seeds: Sequence[Any],
        tangents: Sequence[Any],
        second_seeds: Sequence[Any],
        ins: Sequence[int] | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Return the cotangents and their derivatives along tangents and second seeds, one of each per input."""
        rules, ins = self._own, self.active if ins is None else tuple(ins)
        if rules is None:
            return self._foreign.hvp(values, seeds, tangents, second_seeds, ins)
        x, dx = (_arrays(v, rules.inputs, rules.engine) for v in (values, tangents))
        yb, dyb = (_arrays(v, rules.outputs, rules.engine) for v in (seeds, second_seeds))
        return rules.second_adjoints(x, self.constants, yb, dx, dyb, ins)

    def vjp_tangent(self, values: Sequence[Any], seeds: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """Return the derivatives of the cotangents along tangents, where the seeds have none."""
        rules = self._own
        if rules is None:
            return self.hvp(values, seeds, tangents, [None] * len(seeds))[1]
        x, dx = (_arrays(v, rules.inputs, rules.engine) for v in (values, tangents))
        yb = _arrays(seeds, rules.outputs, rules.engine)
        return rules.adjoint_tangents(x, self.constants, yb, dx, self.active)


PullBacks = dict[Step, PullBack]


class Program:
    """The Blocks of a plan as steps over numbered slots, one slot for each value.

    An evaluation keeps its values in a list of its own, the environment, so that evaluations do not disturb each other.

    Args:
        plan: the way from controls to outputs; the values that it takes as they were recorded become constants.
    """

    def __init__(self, plan: Plan) -> None:
        self.avals: list[Aval | None] = []
        self.engines: list[Engine] = []
        self.holders: list[Any] = []
        self._slots: dict[Any, int] = {}
        self.n_controls = len(plan.controls)
        self.sources = [self._slot(bv) for bv in plan.sources]
        self.constants = {self._slot(bv): _value(value) for bv, value in plan.boundary}
        state, steps = state_of(plan.tape), []
        passing, cut = set(plan.derivative), set(plan.sources)
        for block in plan.forward:
            inputs = [self._slot(bv) for bv in block.get_dependencies()]
            # What computes a source computes it in vain.
            outputs = [self._new(bv) if bv in cut else self._slot(bv) for bv in block.get_outputs()]
            active, differentiable = plan.ends(block) if block in passing else ((), ())
            steps.append(Step(block, inputs, outputs, active, differentiable, state))
        self.steps = steps
        self.outputs = [self._slot(bv) for bv in plan.outputs]

    def evaluate(self, sources: Sequence[Any]) -> list[Any]:
        """Return the environment: the value of every slot where the sources have these values."""
        environment = self.placed(sources)
        self.run(self.steps, environment)
        return environment

    def placed(self, sources: Sequence[Any]) -> list[Any]:
        """Return the environment before any step has run."""
        environment: list[Any] = [None] * len(self.avals)
        for slot, value in (*self.constants.items(), *zip(self.sources, sources, strict=True)):
            environment[slot] = bare(value)
        return environment

    def run(self, steps: Sequence[Step], environment: list[Any]) -> None:
        """Put the values that steps compute into an environment."""
        for step in steps:
            for slot, value in zip(step.outputs, step.value([environment[k] for k in step.inputs]), strict=True):
                environment[slot] = value

    def tangents(self, environment: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """Return one tangent per output for one per control; None stands for zero."""
        found = self._all_tangents(self.steps, environment, tangents)
        return [found[k] for k in self.outputs]

    def adjoints(
        self, environment: Sequence[Any], seeds: Sequence[Any], pull_backs: PullBacks | None = None
    ) -> list[Any]:
        """Return one cotangent per control for one per output; None stands for zero."""
        return self.pulled(self.steps, environment, self.seeded(seeds), pull_backs)

    def pulled(
        self,
        steps: Sequence[Step],
        environment: Sequence[Any],
        adjoints: list[Any],
        pull_backs: PullBacks | None = None,
    ) -> list[Any]:
        """Pull cotangents back through steps, with what is kept of these, and return those of the controls."""
        for step in reversed(steps):
            pull_back = None if pull_backs is None else pull_backs.pop(step, None)
            given = self.passed(adjoints, step)
            if given is not None:
                if pull_back is None:
                    cotangents = step.vjp([environment[k] for k in step.inputs], given)
                else:
                    cotangents = pull_back(given)
                accumulate(adjoints, step.inputs, cotangents)
        return [adjoints[k] for k in self.sources[: self.n_controls]]

    def second_adjoints(
        self,
        environment: Sequence[Any],
        seeds: Sequence[Any],
        tangents: Sequence[Any],
        second_seeds: Sequence[Any] | None = None,
    ) -> tuple[list[Any], list[Any]]:
        """Return the cotangents of the controls, and their derivatives along tangents and second seeds."""
        # A tangent that no other step takes is no part of a second adjoint.
        pushed = self._all_tangents(self.feeding, environment, tangents)
        first, second = self.seeded(seeds), self.seeded([None] * len(seeds) if second_seeds is None else second_seeds)
        for step in reversed(self.steps):
            yb, dyb = self.passed(first, step), self.passed(second, step)
            if yb is None and dyb is None:
                continue
            nothing: list[Any] = [None] * len(step.outputs)
            values, dx = ([v[k] for k in step.inputs] for v in (environment, pushed))
            xb, dxb = step.hvp(values, yb or nothing, dx, dyb or nothing)
            accumulate(first, step.inputs, xb)
            accumulate(second, step.inputs, dxb)
        controls = self.sources[: self.n_controls]
        return [first[k] for k in controls], [second[k] for k in controls]

    @cached_property
    def feeding(self) -> list[Step]:
        """The steps whose outputs others take."""
        read = {slot for step in self.steps for slot in step.inputs}
        return [step for step in self.steps if not read.isdisjoint(step.outputs)]

    # Environments ------------------------------------------------------------------------------------------------------

    def _slot(self, bv: Any) -> int:
        slot = self._slots.get(bv)
        if slot is None:
            slot = self._slots[bv] = self._new(bv)
        return slot

    def _new(self, bv: Any) -> int:
        self.holders.append(bv)
        has_array = type(bv) is Variable or isinstance(bv.output, AdjFloat)
        self.avals.append(aval_of(bv) if has_array else None)
        self.engines.append(bv.output._engine if type(bv) is Variable else get_engine("numpy"))
        return len(self.avals) - 1

    def _all_tangents(self, steps: Sequence[Step], environment: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        found: list[Any] = [None] * len(self.avals)
        for slot, value in zip(self.sources, tangents, strict=False):
            found[slot] = bare(value)
        for step in steps:
            given = [found[k] if i in step.active else None for i, k in enumerate(step.inputs)]
            if any(value is not None for value in given):
                results = step.jvp([environment[k] for k in step.inputs], given)
                for k in step.differentiable:
                    found[step.outputs[k]] = results[k]
        return found

    def seeded(self, seeds: Sequence[Any]) -> list[Any]:
        """Return an environment of cotangents in which the outputs have theirs."""
        values: list[Any] = [None] * len(self.avals)
        accumulate(values, self.outputs, seeds)
        return values

    def passed(self, values: list[Any], step: Step) -> list[Any] | None:
        """Take the outputs' cotangents out of the environment."""
        given = [values[slot] if k in step.differentiable else None for k, slot in enumerate(step.outputs)]
        for slot in step.outputs:
            values[slot] = None
        return given if any(value is not None for value in given) else None


def accumulate(values: list[Any], slots: Sequence[int], terms: Sequence[Any]) -> None:
    """Add terms to the values of slots, out of place."""
    for slot, term in zip(slots, terms, strict=True):
        if term is not None:
            values[slot] = accumulated(values[slot], term)


def _arrays(values: Sequence[Any], avals: Sequence[Aval], engine: Engine) -> tuple[Any, ...]:
    """Values as arrays of an engine, with the dtypes that its function was prepared for; None stays None."""
    types = engine.array_types
    for value in values:
        if type(value) not in types:
            break
    else:
        return tuple(values)
    return tuple(
        [
            value if value is None or type(value) in types else entered(value, aval, engine)
            for value, aval in zip(values, avals, strict=False)
        ]
    )


def _home(block: Block) -> Engine | None:
    """The engine that runs a Block by itself."""
    if isinstance(block, EngineBlock):
        return block.rules.engine
    if isinstance(block, ConversionBlock):
        target = block.get_outputs()[0].output
        engine = target._engine if isinstance(target, ndarray) else get_engine("numpy")
        return get_engine("autograd") if engine.name == "numpy" else engine
    return get_engine("autograd")


def _value(value: Any) -> Any:
    value = bare(value)
    return np.asarray(float(value)) if isinstance(value, float) else value
