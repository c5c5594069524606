"""The idea of the project on one screen: one Block for all engines.

    call         y   = g(x)
    recompute    y   = g(x)                                        with the tape's current x
    tangent      dy  = J dx
    adjoint      xb  = J^H yb
    Hessian      dxb = d/de [ J(x + e dx)^H (yb + e dyb) ]

The Block gathers what the tape holds, calls *one* prepared map of the engine that ran ``g``, and hands the results to
the tape. The tape composes them by the chain rule. Nothing here knows which engine it is.
"""

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

    def primals(self) -> Arrays:
        """The dependencies' current values as arrays of the engine."""
        types = self.rules.engine.array_types
        return tuple(
            [
                value if type(value := bv._checkpoint) in types else self._enter(bv, aval)
                for bv, aval in zip(self._dependencies, self.rules.inputs, strict=False)
            ]
        )

    def _enter(self, bv: Any, aval: Aval) -> Any:
        value = checkpoint_of(bv)
        if type(bv) is Variable:
            return bv.converted(value, self.rules.engine)
        return entered(value, aval, self.rules.engine)

    def _seeds(self, values: list[Any], avals: Any, like: Any) -> Arrays:
        """Tangents or cotangents as arrays of the engine, zeros where there are none."""
        engine, types = self.rules.engine, self.rules.engine.array_types
        return tuple(
            [
                value
                if type(value) in types
                else (engine.zeros(aval, like) if value is None else entered(value, aval, engine))
                for value, aval in zip(values, avals, strict=True)
            ]
        )

    def _active(self, markings: bool) -> tuple[int, ...]:
        deps = self._dependencies
        return tuple([i for i in self.rules.active if not markings or deps[i].is_control_dependent])

    def recompute(self, markings: bool = False) -> None:
        """``y = g(x)`` at the tape's current x."""
        y = self.rules.value((), (*self.primals(), *self.constants))
        self.rules.check(y)
        for bv, value in zip(self._outputs, y, strict=True):
            bv.checkpoint = value

    def evaluate_tlm(self, markings: bool = False) -> None:
        """Tangent: ``dy = J dx``."""
        deps, outputs, rules = self._dependencies, self._outputs, self.rules
        ins = tuple([i for i in rules.active if deps[i].tlm_value is not None])
        outs = tuple([k for k in rules.differentiable if not markings or outputs[k].is_control_dependent])
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        dx = self._seeds([deps[i].tlm_value for i in ins], local.in_avals, x[0])
        for k, dy in zip(outs, local.jvp((*x, *dx), c), strict=True):
            outputs[k].add_tlm_output(dy)

    def evaluate_adj(self, markings: bool = False) -> None:
        """Adjoint: ``xb = J^H yb``."""
        outputs, rules = self._outputs, self.rules
        outs = tuple([k for k in rules.differentiable if outputs[k].adj_value is not None])
        ins = self._active(markings)
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        yb = self._seeds([outputs[k].adj_value for k in outs], local.out_avals, x[0])
        for i, xb in zip(ins, local.vjp((*x, *yb), c), strict=True):
            add_adjoint(self._dependencies[i], xb)

    def evaluate_hessian(self, markings: bool = False) -> None:
        """``dxb``, where the adjoint sweep has run before."""
        self._second_adjoint(markings, with_adjoint=False)

    def evaluate_adj_and_hessian(self, markings: bool = False) -> None:
        """``xb`` and ``dxb`` in one call of the engine."""
        self._second_adjoint(markings, with_adjoint=True)

    def _second_adjoint(self, markings: bool, *, with_adjoint: bool) -> None:
        deps, outputs, rules = self._dependencies, self._outputs, self.rules
        outs = tuple(
            [
                k
                for k in rules.differentiable
                if outputs[k].adj_value is not None or outputs[k].hessian_value is not None
            ]
        )
        ins = self._active(markings)
        if not ins or not outs:
            return
        local = rules.at(ins, outs)
        x, c = local.split(self.primals(), self.constants)
        yb = self._seeds([outputs[k].adj_value for k in outs], local.out_avals, x[0])
        dx = self._seeds([deps[i].tlm_value for i in ins], local.in_avals, x[0])
        dyb = self._seeds([outputs[k].hessian_value for k in outs], local.out_avals, x[0])
        result = local.hvp((*x, *yb, *dx, *dyb), c)
        for k, i in enumerate(ins):
            if with_adjoint:
                add_adjoint(deps[i], result[k])
            add_hessian(deps[i], result[local.n + k])

    def __str__(self) -> str:
        return f"{self.rules.engine.name}:{self.rules.name}"


def add_adjoint(bv: Any, value: Any) -> None:
    """Accumulate an adjoint on any block variable; those of other types take numbers."""
    bv.add_adj_output(value if type(bv) is Variable else as_float(value))


def add_hessian(bv: Any, value: Any) -> None:
    """Accumulate a second adjoint on any block variable."""
    bv.add_hessian_output(value if type(bv) is Variable else as_float(value))
