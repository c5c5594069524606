"""A call of a function whose derivatives are programs that a user wrote, recorded."""

from collections.abc import Sequence
from typing import Any, Protocol

from pyadjoint import Block
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import entered

Values = Sequence[ndarray]


class CustomRules(Protocol):
    """A function of arrays with its derivatives; all of them are programs and record if annotation is on.

    Directions and cotangents belong to the arrays of floating or complex dtype, in order.
    """

    def value(self, x: Values) -> list[ndarray]:
        """The outputs."""

    def tangents(self, x: Values, dx: Values) -> list[ndarray]:
        """``J dx``."""

    def adjoints(self, x: Values, yb: Values) -> list[ndarray]:
        """``J^H yb``."""

    def second(self, x: Values, dx: Values, yb: Values, dyb: Values) -> list[ndarray]:
        """``d/de J(x + e dx)^H (yb + e dyb)``."""


class RuleBlock(Block):
    """One call of a function with derivatives by hand.

    Args:
        rules: the function and its derivatives.
        dependencies: the taped arguments.
    """

    any_thread = True

    __slots__ = ("rules",)

    def __init__(self, rules: CustomRules, dependencies: Values) -> None:
        super().__init__()
        self.rules = rules
        for value in dependencies:
            self.add_dependency(value)

    @property
    def ins(self) -> list[Any]:
        """The dependencies that pass a derivative."""
        return [bv for bv in self._dependencies if bv.aval.differentiable]

    @property
    def outs(self) -> list[Any]:
        """The outputs that pass one."""
        return [bv for bv in self._outputs if bv.aval.differentiable]

    def primals(self) -> list[ndarray]:
        """The dependencies' current values, off the tape."""
        return [bv.saved_output for bv in self._dependencies]

    def recompute(self, markings: bool = False) -> None:
        with stop_annotating():
            for bv, value in zip(self._outputs, self.rules.value(self.primals()), strict=True):
                bv.checkpoint = value._value

    def evaluate_tlm(self, markings: bool = False) -> None:
        dx = [bv.tlm_value for bv in self.ins]
        if all(value is None for value in dx):
            return
        with stop_annotating():
            results = self.rules.tangents(self.primals(), _filled(dx, self.ins))
        for bv, value in zip(self.outs, results, strict=True):
            bv.add_tlm_output(value._value)

    def evaluate_adj(self, markings: bool = False) -> None:
        yb = [bv.adj_value for bv in self.outs]
        if all(value is None for value in yb):
            return
        with stop_annotating():
            results = self.rules.adjoints(self.primals(), _filled(yb, self.outs))
        for bv, value in zip(self.ins, results, strict=True):
            bv.add_adj_output(value._value)

    def evaluate_hessian(self, markings: bool = False) -> None:
        yb, dyb = [bv.adj_value for bv in self.outs], [bv.hessian_value for bv in self.outs]
        if all(value is None for value in (*yb, *dyb)):
            return
        dx = _filled([bv.tlm_value for bv in self.ins], self.ins)
        with stop_annotating():
            results = self.rules.second(self.primals(), dx, _filled(yb, self.outs), _filled(dyb, self.outs))
        for bv, value in zip(self.ins, results, strict=True):
            bv.add_hessian_output(value._value)

    def __str__(self) -> str:
        return f"custom rule:{self.rules}"


def _filled(values: Sequence[Any], variables: Sequence[Any]) -> list[ndarray]:
    """Seeds as arrays like the variables, zeros where there are none."""
    return [
        ndarray(bv.engine.zeros(bv.aval) if value is None else entered(value, bv.aval, bv.engine), bv.engine)
        for value, bv in zip(values, variables, strict=True)
    ]
