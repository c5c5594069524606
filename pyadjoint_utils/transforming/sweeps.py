"""The derivatives of a program: off the tape where nothing outside depends on them, else recorded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pyadjoint import get_working_tape
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.annotation import annotate_tape
from pyadjoint_utils.errors import NotDifferentiableError
from pyadjoint_utils.jacobians import batched
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.recording import NotRecordableError, RecordedSweep
from pyadjoint_utils.tapes import recording_on
from pyadjoint_utils.transforming.leaves import Seeds, result_like
from pyadjoint_utils.transforming.program_tape import ProgramTape
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import accumulated


def tangents(program: Traced, directions: Seeds) -> list[ndarray]:
    """Return the tangents of the live outputs for directions of the active inputs."""
    plan, size = program.plan, directions.size
    if size == 0:
        return _none_of(program.outs)

    def plain() -> list[ndarray]:
        given = dict(zip(plan.controls, directions.bare, strict=True))
        values = _one(plan, "tlm_value", given, plan.tangent) if size is None else batched.tangents(plan, given)
        return [result_like(y, values.get(bv), size) for y, bv in zip(program.outs, plan.outputs, strict=True)]

    def recorded() -> list[ndarray]:
        return RecordedSweep(plan, size).tangents(directions.recordable(), program.outs)

    return swept(program, directions.taped, plain, recorded)


def adjoints(program: Traced, cotangents: Seeds) -> list[ndarray]:
    """Return the cotangents of the active inputs for cotangents of the live outputs."""
    plan, size = program.plan, cotangents.size
    if size == 0:
        return _none_of(program.ins)

    def plain() -> list[ndarray]:
        given: dict[Any, Any] = {}
        for bv, seed in zip(plan.outputs, cotangents.bare, strict=True):
            given[bv] = accumulated(given.get(bv), seed)
        values = _one(plan, "adj_value", given, plan.adjoint) if size is None else batched.adjoints(plan, given)
        return [result_like(x, values.get(bv), size) for x, bv in zip(program.ins, plan.controls, strict=True)]

    def recorded() -> list[ndarray]:
        return RecordedSweep(plan, size).adjoints(cotangents.recordable(), program.ins)

    return swept(program, cotangents.taped, plain, recorded)


def _none_of(likes: Sequence[ndarray]) -> list[ndarray]:
    """The results for no direction at all."""
    return [result_like(like, None, 0) for like in likes]


def second_adjoints(program: Traced, directions: Seeds, cotangents: Seeds) -> list[ndarray]:
    """Return the derivative of :func:`adjoints` along directions of the inputs; it cannot be recorded."""
    return swept(program, directions.taped, lambda: _second(program, directions.bare, cotangents.bare), refuse)


def _second(program: Traced, directions: Sequence[Any], cotangents: Sequence[Any]) -> list[ndarray]:
    plan = program.plan
    with plan.clean("tlm_value", "adj_value", "hessian_value"):
        for bv, direction in zip(plan.controls, directions, strict=True):
            bv.tlm_value = direction
        plan.tangent()
        for bv, seed in zip(plan.outputs, cotangents, strict=True):
            bv.add_adj_output(seed)
        plan.second_adjoint()
        return [result_like(x, bv.hessian_value, None) for x, bv in zip(program.ins, plan.controls, strict=True)]


def refuse() -> list[ndarray]:
    """Raise where second derivatives are to be recorded that are no functions of an engine."""
    raise NotRecordableError(
        "The second derivative of a program with arithmetic of AdjFloats, or with Blocks of other packages, cannot be "
        "recorded, and so is not differentiated further. Compute with arrays (array(x) instead of AdjFloat(x)), or take "
        "the numbers off the tape: x.value."
    )


def check_holomorphic(program: Traced, *, forward: bool = False) -> None:
    """Raise if the derivative is not linear over the complex numbers: then there is no complex one.

    Args:
        program: its inputs and outputs are complex.
        forward: whether to look at tangents, and not at adjoints.
    """
    sweep, likes = (tangents, program.ins) if forward else (adjoints, program.outs)
    paths = [program.name] * len(likes)  # nothing is wrong with these
    rng = np.random.default_rng(0)
    seeds = [rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape) for y in likes]
    with stop_annotating():
        along, turned = (
            sweep(program, Seeds([factor * w for w in seeds], likes, paths, program.name)) for factor in (1.0, 1.0j)
        )
    for a, b in zip(along, turned, strict=True):
        size = float(np.max(np.abs(a.numpy()), initial=0.0))
        if not np.allclose(b.numpy(), 1j * a.numpy(), rtol=1e-3, atol=1e-6 * size):
            raise NotDifferentiableError(
                f"{program.name} with holomorphic=True takes a holomorphic function; this one uses abs, conj, real or imag "
                "on the way. Use vjp and jvp, which are right for any function."
            )


def _one(plan: Plan, kind: str, given: dict[Any, Any], sweep: Callable[[], None]) -> dict[Any, Any]:
    with plan.clean(kind):
        for bv, value in given.items():
            setattr(bv, kind, value)
        sweep()
        return {bv: getattr(bv, kind) for bv in (*plan.controls, *plan.outputs)}


def swept(
    program: Traced, taped: bool, plain: Callable[[], list[ndarray]], recorded: Callable[[], list[ndarray]]
) -> list[ndarray]:
    """Return the results of a sweep, on the working tape where something that is being recorded enters them.

    Args:
        program: the program.
        taped: whether the seeds are values that can be on a tape.
        plain: computes the results off the tape.
        recorded: computes them on the working tape.
    """
    tape = get_working_tape() if annotate_tape() else None

    def record() -> list[ndarray]:
        program.place()
        program.stand_at_the_record()
        with recording_on(tape):
            return recorded()

    if tape is not None and not (program.involved or taped):
        tape = None
    if isinstance(tape, ProgramTape):
        return record()
    with stop_annotating(), program.standing():
        results = plain()
    if tape is not None:
        _defer(results, record)
    return results


def _defer(results: Sequence[ndarray], record: Callable[[], list[ndarray]]) -> None:
    found: list[ndarray] = []

    def variable(k: int) -> Any:
        if not found:
            found.extend(record())
        return found[k].block_variable

    for k, result in enumerate(results):
        result.defer(partial(variable, k))
