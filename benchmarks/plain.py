"""A Block of plain Pyadjoint over the same calls of an engine: what the bookkeeping costs without this project."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyadjoint
from pyadjoint.overloaded_type import OverloadedType


class Calls(NamedTuple):
    """A function of one array with its derivatives, prepared for many calls."""

    value: Callable[[Any], Any]
    jvp: Callable[[Any, Any], Any]
    vjp: Callable[[Any, Any], Any]
    hvp: Callable[[Any, Any, Any, Any], tuple[Any, Any]]  # of (x, yb, dx, dyb); returns (xb, dxb)


class Box(OverloadedType):
    """A value on Pyadjoint's tape."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def _ad_create_checkpoint(self) -> Any:
        return self.value

    def _ad_restore_at_checkpoint(self, checkpoint: Any) -> "Box":
        return Box(checkpoint)

    @classmethod
    def _ad_init_object(cls, obj: Any) -> "Box":
        return Box(obj)


class ThinBlock(pyadjoint.Block):
    """One call; second adjoints do both terms in one call of the engine."""

    def __init__(self, calls: Calls, x: Box) -> None:
        super().__init__()
        self.calls = calls
        self.add_dependency(x)

    def _x(self) -> Any:
        bv = self._dependencies[0]
        return bv.output.value if bv._checkpoint is None else bv._checkpoint

    def recompute(self, markings: bool = False) -> None:
        self._outputs[0].checkpoint = self.calls.value(self._x())

    def evaluate_tlm(self, markings: bool = False) -> None:
        self._outputs[0].add_tlm_output(self.calls.jvp(self._x(), self._dependencies[0].tlm_value))

    def evaluate_adj(self, markings: bool = False) -> None:
        self._dependencies[0].add_adj_output(self.calls.vjp(self._x(), self._outputs[0].adj_value))

    def evaluate_hessian(self, markings: bool = False) -> None:
        bv, y = self._dependencies[0], self._outputs[0]
        seeds = (y.adj_value, bv.tlm_value, y.hessian_value)
        bv.add_hessian_output(self.calls.hvp(self._x(), *seeds)[1])


def chain(calls: Calls, x: Box, blocks: int) -> Box:
    """Record a chain on the working tape."""
    for _ in range(blocks):
        y = Box(calls.value(x._ad_create_checkpoint()))
        block = ThinBlock(calls, x)
        block.add_output(y.create_block_variable())
        pyadjoint.get_working_tape().add_block(block)
        x = y
    return x


class Sweeps:
    """Pyadjoint's own sweeps over such a chain, seeded with the same array everywhere."""

    def __init__(self, calls: Calls, value: Any, blocks: int) -> None:
        self.tape = pyadjoint.Tape()
        with pyadjoint.set_working_tape(self.tape):
            self.x = Box(value)
            self.y = chain(calls, self.x, blocks)
        self.seed = value

    def recompute(self) -> None:
        """Evaluate."""
        for block in self.tape.get_blocks():
            block.recompute()

    def tangent(self) -> None:
        """Push a tangent forward."""
        self.tape.reset_tlm_values()
        self.x.block_variable.tlm_value = self.seed
        self.tape.evaluate_tlm()

    def adjoint(self) -> None:
        """Pull a cotangent back."""
        self.tape.reset_variables()
        self.y.block_variable.adj_value = self.seed
        self.tape.evaluate_adj()

    def hessian(self) -> None:
        """Push a tangent forward and pull both adjoints back."""
        self.adjoint()
        self.tangent()
        self.tape.reset_hessian_values()
        self.y.block_variable.hessian_value = self.seed
        self.tape.evaluate_hessian()
