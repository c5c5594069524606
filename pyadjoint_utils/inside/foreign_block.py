"""A Block of another package as pure functions: its own interface, with the tape's values put back afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyadjoint import AdjFloat, Block
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.plan import second_adjoint_of
from pyadjoint_utils.tapes import TapeState
from pyadjoint_utils.variable import Variable, as_float, bare, entered

_KINDS = ("_checkpoint", "adj_value", "tlm_value", "hessian_value", "is_control_dependent")


class Standing(dict[Block, tuple[Any, ...]]):
    """The points at which Blocks were evaluated outside of the tape's own evaluations; owner of the tape meanwhile."""


class ForeignBlock:
    """Value and derivatives of a Block that keeps its values on the tape.

    One evaluation runs at a time on a tape, since Blocks share its variables.

    Args:
        block: the Block.
        state: this project's state of the Block's tape.
    """

    def __init__(self, block: Block, state: TapeState) -> None:
        self.block, self._state = block, state
        self._dependencies, self._outputs = block.get_dependencies(), block.get_outputs()

    def value(self, values: Sequence[Any]) -> list[Any]:
        """Evaluate."""
        with self._at(values, again=True):
            return [bv._checkpoint for bv in self._outputs]

    def jvp(self, values: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """Return the tangents of the outputs; None stands for zero."""
        with self._at(values):
            self._give("tlm_value", self._dependencies, tangents)
            self._mark([value is not None for value in tangents])
            self.block.evaluate_tlm(markings=True)
            return [bv.tlm_value for bv in self._outputs]

    def vjp(self, values: Sequence[Any], seeds: Sequence[Any], ins: Sequence[int]) -> list[Any]:
        """Return the cotangents of the dependencies; None stands for zero."""
        with self._at(values):
            self._give("adj_value", self._outputs, seeds)
            self._mark([i in ins for i in range(len(self._dependencies))])
            self.block.evaluate_adj(markings=True)
            return self._taken("adj_value", ins)

    def hvp(
        self,
        values: Sequence[Any],
        seeds: Sequence[Any],
        tangents: Sequence[Any],
        second_seeds: Sequence[Any],
        ins: Sequence[int],
    ) -> tuple[list[Any], list[Any]]:
        """Return the cotangents and their derivatives along the tangents and second seeds."""
        with self._at(values):
            self._give("tlm_value", self._dependencies, tangents)
            self._give("adj_value", self._outputs, seeds)
            self._give("hessian_value", self._outputs, second_seeds)
            # Blocks leave out the mixed derivatives of what is not marked, and may use the tangents of their outputs.
            self._mark([i in ins or value is not None for i, value in enumerate(tangents)])
            self.block.evaluate_tlm(markings=True)
            second_adjoint_of(self.block)
            return self._taken("adj_value", ins), self._taken("hessian_value", ins)

    @contextmanager
    def _at(self, values: Sequence[Any], *, again: bool = False) -> Iterator[None]:
        """Stand at a point; the tape's own next derivative will evaluate again, the Block may keep more than it shows."""
        variables = {*self._dependencies, *self._outputs}
        with self._state.lock, stop_annotating():
            kept = [(bv, kind, getattr(bv, kind)) for bv in variables for kind in _KINDS]
            try:
                for bv in variables:
                    bv.adj_value = bv.tlm_value = bv.hessian_value = None
                for bv, value in zip(self._dependencies, values, strict=True):
                    bv._checkpoint = stored(bv, value)
                self._evaluate(tuple(values), again)
                yield
            finally:
                for bv, kind, value in kept:
                    setattr(bv, kind, value)

    def _evaluate(self, values: tuple[Any, ...], again: bool) -> None:
        owner = self._state.owner
        if not isinstance(owner, Standing):
            owner = self._state.owner = Standing()
        known = owner.pop(self.block, None)
        if again or known is None or any(a is not b for a, b in zip(known[0], values, strict=True)):
            self.block.reset()
            self.block.recompute()
            known = (values, [bv._checkpoint for bv in self._outputs])
        for bv, value in zip(self._outputs, known[1], strict=True):
            bv._checkpoint = value
        owner[self.block] = known

    def _give(self, kind: str, variables: Sequence[Any], values: Sequence[Any]) -> None:
        for bv, value in zip(variables, values, strict=True):
            setattr(bv, kind, None if value is None else dual(bv, value))

    def _mark(self, dependent: Sequence[bool]) -> None:
        for bv, marked in zip(self._dependencies, dependent, strict=True):
            bv.is_control_dependent = marked
        for bv in self._outputs:
            bv.is_control_dependent = True

    def _taken(self, kind: str, ins: Sequence[int]) -> list[Any]:
        """What the Block added to its dependencies; a variable that stands there twice has the sum of both."""
        first = {bv: i for i, bv in reversed(list(enumerate(self._dependencies)))}
        return [getattr(bv, kind) if i in ins and first[bv] == i else None for i, bv in enumerate(self._dependencies)]


def stored(bv: Any, value: Any) -> Any:
    """Return a value as a variable keeps it."""
    if type(bv) is Variable:
        return entered(value, bv.output.aval, bv.output._engine)
    return AdjFloat(as_float(value)) if isinstance(bv.output, AdjFloat) else value


def dual(bv: Any, value: Any) -> Any:
    """Return a tangent or cotangent as a variable keeps it."""
    if type(bv) is Variable:
        return entered(value, bv.output.aval, bv.output._engine)
    return as_float(value) if isinstance(bv.output, AdjFloat) else bare(value)
