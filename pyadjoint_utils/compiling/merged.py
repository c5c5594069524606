"""A program of segments, evaluated in parts."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from pyadjoint_utils.compiling.lone_step import LoneStep
from pyadjoint_utils.compiling.program import Program, PullBacks, Step, accumulate
from pyadjoint_utils.compiling.segments import Segment
from pyadjoint_utils.variable import bare


class MergedProgram(Program):
    """A program over other steps that compute the same, with slots for what these exchange alone.

    Args:
        program: the program.
        steps: its steps, several of them merged into one in places.
    """

    def __init__(self, program: Program, steps: Sequence[Step]) -> None:
        used = [*program.sources, *program.outputs, *(slot for step in steps for slot in (*step.inputs, *step.outputs))]
        place = {slot: k for k, slot in enumerate(dict.fromkeys(used))}

        def placed(slots: Sequence[int]) -> tuple[int, ...]:
            return tuple([place[slot] for slot in slots])

        self.steps = [_on(step, placed(step.inputs), placed(step.outputs)) for step in steps]
        self.avals = [program.avals[slot] for slot in place]
        self.engines = [program.engines[slot] for slot in place]
        self.sources, self.outputs = list(placed(program.sources)), list(placed(program.outputs))
        self.constants = {place[slot]: value for slot, value in program.constants.items() if slot in place}
        self.n_controls = program.n_controls
        self._constants_placed: list[Any] = [None] * len(self.avals)
        for slot, value in self.constants.items():
            self._constants_placed[slot] = bare(value)
        feeding = set(map(id, self.feeding))
        self.ending = [step for step in self.steps if id(step) not in feeding]
        self._lone = LoneStep.of(self)

    def placed(self, sources: Sequence[Any]) -> list[Any]:
        environment = self._constants_placed.copy()
        for slot, value in zip(self.sources, sources, strict=True):
            environment[slot] = bare(value)
        return environment

    @property
    def whole(self) -> bool:
        """Whether one program computes everything."""
        return len(self.steps) == 1

    @cached_property
    def segments(self) -> list[Segment]:
        """The steps that several Blocks were merged into."""
        return [step for step in self.steps if isinstance(step, Segment)]

    def summary(self) -> str:
        """Return in a few words what it consists of."""
        segments = self.segments
        merged = sum(step.compiled.fused.blocks for step in segments)
        programs = len({step.compiled for step in segments})
        loops = sum(step.compiled.fused.loops for step in segments)
        single = len(self.steps) - len(segments)
        return (
            f"{_counted(merged, 'Block')} in {_counted(len(segments), 'segment')} "
            f"({_counted(programs, 'different program')}, {_counted(loops, 'loop')}), {single} by themselves"
        )

    def begin(self, environment: list[Any], pull_backs: PullBacks | None = None) -> None:
        """Compute everything that a step takes; keep in ``pull_backs`` what a derivative needs of it."""
        self._compute(self.feeding, environment, pull_backs)

    def finish(self, environment: list[Any]) -> None:
        """Compute the rest."""
        self.run(self.ending, environment)

    def _compute(self, steps: Sequence[Step], environment: list[Any], pull_backs: PullBacks | None) -> None:
        if pull_backs is None:
            self.run(steps, environment)
            return
        for step in steps:
            found = step.value_and_pull_back([environment[k] for k in step.inputs])
            if found is None:
                self.run([step], environment)
                continue
            outputs, pull_backs[step] = found
            for slot, value in zip(step.outputs, outputs, strict=True):
                environment[slot] = value

    def linearize(self, environment: list[Any], seeds: Sequence[Any], pull_backs: PullBacks) -> Callable[[], list[Any]]:
        """Compute the rest, pull seeds back through it where that costs least together, and keep what others need.

        Returns:
            What returns one cotangent per control, with what is left to do.
        """
        if self._lone is not None and self.steps[0].gives_gradient_at_once:
            found = self._lone.value_and_adjoints(environment, seeds)
            return lambda: found
        adjoints, left = self.seeded(seeds), list(self.feeding)
        for step in self.ending:
            if not step.gives_gradient_at_once:
                self._compute([step], environment, pull_backs)
                left.append(step)
                continue
            given = self.passed(adjoints, step) or [None] * len(step.outputs)
            values, cotangents = step.value_and_vjp([environment[k] for k in step.inputs], given)
            accumulate(adjoints, step.inputs, cotangents)
            for slot, value in zip(step.outputs, values, strict=True):
                environment[slot] = value
        return lambda: self.pulled(left, environment, adjoints, pull_backs)

    def hessian_action(
        self,
        environment: Sequence[Any],
        seeds: Sequence[Any],
        tangents: Sequence[Any],
        second_seeds: Sequence[Any] | None,
    ) -> list[Any]:
        """Return the derivatives of the controls' cotangents."""
        if self._lone is None or second_seeds is not None:
            return self.second_adjoints(environment, seeds, tangents, second_seeds)[1]
        return self._lone.adjoint_tangents(environment, seeds, tangents)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _on(step: Step, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Step:
    moved = copy.copy(step)
    moved.inputs, moved.outputs = inputs, outputs
    return moved
