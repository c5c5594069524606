"""The idea of the project on one screen: one Block for all engines.

    call         y   = g(x)
    recompute    y   = g(x)                                        with the tape's current x
    tangent      dy  = J dx
    adjoint      xb  = J^H yb
    Hessian      dxb = d/de [ J(x + e dx)^H (yb + e dyb) ]

The Block gathers what the tape holds, calls *one* prepared map of the engine that ran ``g``, and hands the results to
the tape. The tape composes them by the chain rule. Nothing here knows which engine it is.
"""

from collections.abc import Sequence
from typing import Any

from pyadjoint import Block

from pyadjoint_utils.engine import Arrays, Aval
from pyadjoint_utils.rules import Rules
from pyadjoint_utils.variable import Variable, as_float, checkpoint_of, entered


class EngineBlock(Block):
    """One call of a function of an engine, recorded.

    Args:
        rules: the function's prepared maps.
        dependencies: the taped arguments, in the order of ``rules.inputs``.
        constants: the arrays that follow them.
    """

    __slots__ = ("constants", "rules")
    any_thread = True

    def __init__(self, rules: Rules, dependencies: list[Any], constants: Arrays) -> None:
        super().__init__()
        self.rules = rules
        self.constants = constants
        for value in dependencies:
            self.add_dependency(value)

    # What follows runs for every Block of every sweep: what nearly always holds is tried first, in plain loops.

    def primals(self) -> Arrays:
        """The dependencies' current values as arrays of the engine."""
        types = self.rules.engine.array_types
        values = []
        for bv in self._dependencies:
            value = bv._checkpoint
            if type(value) not in types:
                entered = [self._enter(*pair) for pair in zip(self._dependencies, self.rules.inputs, strict=False)]
                return tuple(entered)
            values.append(value)
        return tuple(values)

    def _enter(self, bv: Any, aval: Aval) -> Any:
        value, engine = checkpoint_of(bv), self.rules.engine
        if type(value) in engine.array_types:
            return value
        return bv.converted(value, engine) if type(bv) is Variable else entered(value, aval, engine)

    def _seeds(self, values: list[Any], avals: Any, like: Any) -> Arrays:
        """Tangents or cotangents as arrays of the engine, zeros where there are none."""
        types = self.rules.engine.array_types
        for value in values:
            if type(value) not in types:
                return tuple([self._seed(value, aval, like) for value, aval in zip(values, avals, strict=True)])
        return tuple(values)

    def _seed(self, value: Any, aval: Aval, like: Any) -> Any:
        engine = self.rules.engine
        if type(value) in engine.array_types:
            return value
        return engine.zeros(aval, like) if value is None else entered(value, aval, engine)

    def _active(self, markings: bool) -> tuple[int, ...]:
        active = self.rules.active
        return _marked(self._dependencies, active) if markings else active

    def recompute(self, markings: bool = False) -> None:
        """``y = g(x)`` at the tape's current x."""
        rules = self.rules
        y = rules.value((), self.primals() + self.constants)
        if not rules.steady:
            rules.check(y)
        for k, bv in enumerate(self._outputs):
            bv.checkpoint = y[k]

    def evaluate_tlm(self, markings: bool = False) -> None:
        """Tangent: ``dy = J dx``."""
        deps, outputs, rules = self._dependencies, self._outputs, self.rules
        (ins, tangents), outs = _having("tlm_value", deps, rules.active), rules.differentiable
        if markings:
            outs = _marked(outputs, outs)
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        dx = self._seeds(tangents, local.in_avals, x[0])
        for k, dy in zip(outs, local.jvp(x + dx, c), strict=True):
            outputs[k].add_tlm_output(dy)

    def evaluate_adj(self, markings: bool = False) -> None:
        """Adjoint: ``xb = J^H yb``."""
        deps, outputs, rules = self._dependencies, self._outputs, self.rules
        ins, (outs, adjoints) = self._active(markings), _having("adj_value", outputs, rules.differentiable)
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        yb = self._seeds(adjoints, local.out_avals, x[0])
        for i, xb in zip(ins, local.vjp(x + yb, c), strict=True):
            add_adjoint(deps[i], xb)

    def evaluate_hessian(self, markings: bool = False) -> None:
        """``dxb``, where the adjoint sweep has run before."""
        self._second_adjoint(markings, with_adjoint=False)

    def evaluate_adj_and_hessian(self, markings: bool = False) -> None:
        """``xb`` and ``dxb`` in one call of the engine."""
        self._second_adjoint(markings, with_adjoint=True)

    def _second_adjoint(self, markings: bool, *, with_adjoint: bool) -> None:
        deps, outputs, rules = self._dependencies, self._outputs, self.rules
        outs, adjoints = _having("adj_value", outputs, rules.differentiable)
        if len(outs) < len(rules.differentiable):
            second, _ = _having("hessian_value", outputs, rules.differentiable)
            outs = tuple(sorted({*outs, *second}))
            adjoints = [outputs[k].adj_value for k in outs]
        ins = self._active(markings)
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        yb = self._seeds(adjoints, local.out_avals, x[0])
        dx = self._seeds([deps[i].tlm_value for i in ins], local.in_avals, x[0])
        dyb = self._seeds([outputs[k].hessian_value for k in outs], local.out_avals, x[0])
        result = local.hvp(x + yb + dx + dyb, c)
        for k, i in enumerate(ins):
            if with_adjoint:
                add_adjoint(deps[i], result[k])
            add_hessian(deps[i], result[local.n + k])

    def __str__(self) -> str:
        return f"{self.rules.engine.name}:{self.rules.name}"


def _having(kind: str, variables: Sequence[Any], positions: tuple[int, ...]) -> tuple[tuple[int, ...], list[Any]]:
    """The positions of the variables that have an adjoint, a tangent or a Hessian value, and these."""
    values = []
    for k in positions:
        value = getattr(variables[k], kind)
        if value is None:
            there = [k for k in positions if getattr(variables[k], kind) is not None]
            return tuple(there), [getattr(variables[k], kind) for k in there]
        values.append(value)
    return positions, values


def _marked(variables: Sequence[Any], positions: tuple[int, ...]) -> tuple[int, ...]:
    """The positions of the variables that depend on a control."""
    for k in positions:
        if not variables[k].is_control_dependent:
            return tuple([k for k in positions if variables[k].is_control_dependent])
    return positions


def add_adjoint(bv: Any, value: Any) -> None:
    """Accumulate an adjoint on any block variable; those of other types take numbers."""
    bv.add_adj_output(value if type(bv) is Variable else as_float(value))


def add_hessian(bv: Any, value: Any) -> None:
    """Accumulate a second adjoint on any block variable."""
    bv.add_hessian_output(value if type(bv) is Variable else as_float(value))
