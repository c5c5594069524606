"""All first or second derivatives of a program: sweeps along the unit directions of its inputs or outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.jacobians import batched
from pyadjoint_utils.jacobians.seeds import UnitSeeds, as_numpy, bytes_of, collected, held, in_parts
from pyadjoint_utils.recording import RecordedSweep
from pyadjoint_utils.transforming.sweeps import refuse, swept
from pyadjoint_utils.transforming.traced import Traced
from pyadjoint_utils.values import ndarray

Blocks = list[list[ndarray]]


def columns(program: Traced) -> Blocks:
    """Return the blocks of the Jacobian, by tangents of unit directions; entry ``[i][j]`` is like output i."""
    plan, ins, outs = program.plan, program.ins, program.outs
    units = [UnitSeeds(bv, False) for bv in plan.controls]

    def plain() -> list[ndarray]:
        found = [_along(program, batched.tangents, u, plan.outputs) for u in units]
        return [
            held(u.as_columns(tangents[i]), bv)
            for i, bv in enumerate(plan.outputs)
            for u, tangents in zip(units, found, strict=True)
        ]

    def recorded() -> list[ndarray]:
        found = [RecordedSweep(plan, u.count).tangents(_alone(j, u, ins), outs) for j, u in enumerate(units)]
        return [
            np.moveaxis(tangents[i], 0, -1).reshape((*y.shape, *x.shape))
            for i, y in enumerate(outs)
            for x, tangents in zip(ins, found, strict=True)
        ]

    return _in_rows(swept(program, False, plain, recorded), len(ins))


def rows(program: Traced) -> Blocks:
    """Return the blocks of the conjugate Jacobian, by cotangents of unit directions; entry ``[i][j]`` is like input j."""
    plan, ins, outs = program.plan, program.ins, program.outs
    units = [UnitSeeds(bv, False) for bv in plan.outputs]

    def plain() -> list[ndarray]:
        return [
            held(u.as_rows(cotangent), bv)
            for u in units
            for bv, cotangent in zip(plan.controls, _along(program, batched.adjoints, u, plan.controls), strict=True)
        ]

    def recorded() -> list[ndarray]:
        return [
            cotangent.reshape((*y.shape, *x.shape))
            for i, (y, u) in enumerate(zip(outs, units, strict=True))
            for x, cotangent in zip(ins, RecordedSweep(plan, u.count).adjoints(_alone(i, u, outs), ins), strict=True)
        ]

    return _in_rows(swept(program, False, plain, recorded), len(ins))


def hessians(program: Traced) -> list[Blocks]:
    """Return the blocks of second derivatives, one entry of an output at a time; they cannot be recorded.

    Entry ``[i][j][k]`` belongs to output i and inputs j and k, and is like input j.
    """
    plan, n = program.plan, len(program.ins)

    def plain() -> list[ndarray]:
        found = []
        for bv in plan.outputs:
            units = UnitSeeds(bv, False)
            entries = [_second(program, {bv: units.rows(slice(k, k + 1))[0]}) for k in range(units.size)]
            found += [
                held(
                    np.reshape([entry[j][k] for entry in entries], (*units.shape, *x.shape, *z.shape)), plan.controls[j]
                )
                for j, x in enumerate(program.ins)
                for k, z in enumerate(program.ins)
            ]
        return found

    blocks = _in_rows(swept(program, False, plain, refuse), n)
    return [blocks[i * n : (i + 1) * n] for i in range(len(program.outs))]


def _second(program: Traced, seeds: dict[Any, Any]) -> list[list[np.ndarray]]:
    """The derivatives of the cotangents of all inputs j, for one cotangent of the outputs, by all inputs k."""
    plan = program.plan
    units = [UnitSeeds(bv, False) for bv in plan.controls]
    sweep = lambda plan, directions: batched.second_adjoints(plan, directions, seeds)  # noqa: E731
    found = [_along(program, sweep, u, plan.controls) for u in units]
    return [[u.as_columns(values[j]) for u, values in zip(units, found, strict=True)] for j in range(len(units))]


def _along(program: Traced, sweep: Any, units: UnitSeeds, ends: Sequence[Any]) -> list[np.ndarray]:
    plan = program.plan

    def run(part: slice) -> list[np.ndarray]:
        return collected(sweep(plan, {units.bv: units.rows(part)}), ends, part.stop - part.start, as_numpy)

    return in_parts(units.count, bytes_of({*plan.touched, *plan.controls, *plan.outputs}), run)


def _alone(k: int, units: UnitSeeds, likes: Sequence[ndarray]) -> list[Any]:
    """Directions of one of several arrays."""
    directions: list[Any] = [None] * len(likes)
    directions[k] = ndarray(units.rows(slice(0, units.count)), likes[k]._engine)
    return directions


def _in_rows(blocks: Sequence[ndarray], n: int) -> Blocks:
    return [list(blocks[i : i + n]) for i in range(0, len(blocks), n)] if n else []
