"""The loop of :mod:`benchmarks.long_loops` with Pyadjoint alone: a type and two Blocks, written by hand over JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pyadjoint
from pyadjoint import AdjFloat, Block
from pyadjoint.overloaded_type import OverloadedType

step = jax.jit(lambda y: jnp.sin(y) * 1.01)
step_adjoint = jax.jit(lambda y, yb: jax.vjp(step, y)[1](yb)[0])
square = jax.jit(lambda y: (y * y).sum())
square_adjoint = jax.jit(lambda y, yb: 2 * y * yb)


class Field(OverloadedType):
    """A state."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        self.data = data

    def _ad_create_checkpoint(self) -> "Field":
        return self

    def _ad_restore_at_checkpoint(self, checkpoint: "Field") -> "Field":
        return checkpoint

    @classmethod
    def _ad_init_object(cls, obj: Any) -> "Field":
        return cls(obj)


class StepBlock(Block):
    """One step."""

    def __init__(self, y: Field) -> None:
        super().__init__()
        self.add_dependency(y)

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: Any) -> Field:
        """``y = step(x)``."""
        return Field(step(inputs[0].data))

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """The adjoint of a step."""
        return step_adjoint(inputs[0].data, adj_inputs[0])


class SquareBlock(StepBlock):
    """The functional."""

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: Any) -> Any:
        """The sum of squares."""
        return AdjFloat(square(inputs[0].data))

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        """Its adjoint."""
        return square_adjoint(inputs[0].data, adj_inputs[0])


def recorded(schedule: Any, start: Any, steps: int, bar: Any = None) -> tuple[Callable[[], Any], pyadjoint.Tape]:
    """Record the loop; return a function for its value and derivative at the recorded point, and the tape."""
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        if bar is not None:
            tape.progress_bar = bar
        if schedule is not None:
            tape.enable_checkpointing(schedule)
        x = y = Field(jnp.asarray(start))
        for _ in tape.timestepper(iter(range(steps))):
            y = _put(tape, StepBlock(y), Field(step(y.data)))
        J = _put(tape, SquareBlock(y), AdjFloat(square(y.data)))
        rf = pyadjoint.ReducedFunctional(J, pyadjoint.Control(x))
    return lambda: (rf(x), rf.derivative()), tape


def _put(tape: pyadjoint.Tape, block: Block, result: Any) -> Any:
    tape.add_block(block)
    block.add_output(result.create_block_variable())
    return result
