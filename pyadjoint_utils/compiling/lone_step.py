"""A program that is one step: nothing is added up on the way, so that values and seeds go straight to its places."""

from collections.abc import Sequence
from typing import Any

from pyadjoint_utils.compiling.program import Program


class LoneStep:
    """The only step of a program, with the places of its arguments and results among the program's.

    Args:
        program: the program.
    """

    def __init__(self, program: Program) -> None:
        (self._step,) = program.steps
        step, outputs = self._step, program.outputs
        passing = [step.outputs[k] for k in step.differentiable]
        self._seeds = [outputs.index(slot) if slot in passing else None for slot in step.outputs]
        controls = {slot: k for k, slot in enumerate(program.sources[: program.n_controls])}
        self._directions = [controls.get(slot) for slot in step.inputs]
        self._results = [step.inputs.index(slot) if slot in step.inputs else None for slot in controls]

    @classmethod
    def of(cls, program: Program) -> "LoneStep | None":
        """Return the step; None if there are others, or if a cotangent of the program is a sum all the same."""
        if len(program.steps) != 1:
            return None
        (step,) = program.steps
        distinct = all(len(set(slots)) == len(slots) for slots in (step.inputs, program.outputs, program.sources))
        fits = distinct and step.engine is not None and set(step.outputs) == set(program.outputs)
        return cls(program) if fits else None

    def value_and_adjoints(self, environment: list[Any], seeds: Sequence[Any]) -> list[Any]:
        """Put the outputs into an environment, and return one cotangent per control."""
        step = self._step
        given = [environment[slot] for slot in step.inputs]
        outputs, cotangents = step.value_and_vjp(given, _placed(seeds, self._seeds))
        for slot, value in zip(step.outputs, outputs, strict=True):
            environment[slot] = value
        return _placed(cotangents, self._results)

    def adjoint_tangents(
        self, environment: Sequence[Any], seeds: Sequence[Any], directions: Sequence[Any]
    ) -> list[Any]:
        """Return the derivatives of the controls' cotangents along directions."""
        step = self._step
        given = [environment[slot] for slot in step.inputs]
        tangents = _placed(directions, self._directions)
        return _placed(step.vjp_tangent(given, _placed(seeds, self._seeds), tangents), self._results)


def _placed(values: Sequence[Any], places: Sequence[int | None]) -> list[Any]:
    return [None if k is None else values[k] for k in places]
