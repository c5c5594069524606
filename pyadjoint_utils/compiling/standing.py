"""Where a compiled function stands: its programs at a point, with what is known there."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from pyadjoint_utils.compiling.merged import MergedProgram
from pyadjoint_utils.compiling.policy import Policy
from pyadjoint_utils.compiling.program import PullBacks
from pyadjoint_utils.compiling.segments import OverBudget
from pyadjoint_utils.registry import owner_of
from pyadjoint_utils.variable import as_float


class PlacedProgram:
    """A program at a point, with what is known of it.

    Args:
        program: the program.
        point: one value for each of its sources.
    """

    def __init__(self, program: MergedProgram, point: Sequence[Any]) -> None:
        self.program = program
        self.pull_backs: PullBacks | None = None  # what engines keep of the evaluation for a first derivative
        self._environment = program.placed(point)
        self._entered = self._complete = False

    def inputs(self) -> list[Any]:
        """The environment, with the value of everything that a step takes."""
        if not self._entered:
            self.program.begin(self._environment, self.pull_backs)
            self._entered = True
        return self._environment

    def outputs(self) -> list[Any]:
        """Return the outputs."""
        environment = self.inputs()
        if not self._complete:
            self.program.finish(environment)
            self._complete = True
        outputs = [environment[slot] for slot in self.program.outputs]
        # What the caller does to them changes nothing that is kept.
        return [_copy(value) for value in outputs] if self.pull_backs else outputs

    def linearize(self, seeds: list[Any]) -> Callable[[], list[Any]]:
        """Compute the outputs, and return what returns ``J^H seeds`` with the least that is left to do."""
        kept = self.pull_backs = {}
        back = self.program.linearize(self.inputs(), seeds, kept)
        self._complete = True
        return back


class Standing:
    """Where a compiled function stands, and what is known there.

    Args:
        policy: gives the programs.
        point: one value for each of their sources.
    """

    def __init__(self, policy: Policy, point: Sequence[Any]) -> None:
        self.policy, self._point = policy, point
        self._placed: dict[MergedProgram, PlacedProgram] = {}
        self._outputs: list[Any] | None = None
        self._back: tuple[list[Any], Callable[[], list[Any]]] | None = None  # seeds, and what returns their adjoint

    def let_go(self) -> None:
        """Keep nothing for a derivative any longer, which computes it again."""
        self._back = None
        for placed in self._placed.values():
            placed.pull_backs = None

    def _of(self, order: int, compute: Callable[[PlacedProgram], Any]) -> Any:
        """Compute with the program for an order, Block by Block if it cannot be compiled in time."""
        program = self.policy.to_run(order)
        placed = self._placed.get(program)
        if placed is None:
            placed = self._placed[program] = PlacedProgram(program, self._point)
        try:
            return compute(placed)
        except OverBudget:
            self.policy.give_up(order)
            return self._of(order, compute)

    def outputs(self) -> list[Any]:
        """Return the outputs."""
        if self._outputs is None:
            self._outputs = self._of(0, PlacedProgram.outputs)
        return self._outputs

    def linearize(self, seeds: list[Any]) -> None:
        """Compute the outputs, and with them, or keep, what ``J^H seeds`` needs of that."""
        back, self._outputs = self._of(1, lambda p: (p.linearize(seeds), p.outputs()))
        self._back = seeds, back

    def adjoints(self, seeds: list[Any]) -> list[Any]:
        """Return ``J^H seeds``."""
        if self._back is not None and all(map(_same, self._back[0], seeds)):
            # Once: what is kept is gone then, and the user may write into a gradient.
            (_, back), self._back = self._back, None
            with contextlib.suppress(OverBudget):
                return back()
        return self._of(1, lambda p: p.program.adjoints(p.inputs(), seeds, p.pull_backs))

    def tangents(self, directions: Sequence[Any]) -> list[Any]:
        """Return ``J directions``."""
        return self._of(1, lambda p: p.program.tangents(p.inputs(), directions))

    def second_adjoints(
        self, directions: Sequence[Any], seeds: Sequence[Any], second_seeds: Sequence[Any] | None
    ) -> list[Any]:
        """Return the derivative of ``J^H seeds`` along directions and second seeds."""
        return self._of(2, lambda p: p.program.hessian_action(p.inputs(), seeds, directions, second_seeds))


def _copy(value: Any) -> Any:
    owner = owner_of(value)
    return value if owner is None else owner.copy(value)


def _same(a: Any, b: Any) -> bool:
    return a is b or (a is not None and b is not None and as_float(a) == as_float(b))
