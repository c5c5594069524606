"""Jacobian matrices through any tape: many directions in one sweep."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.batched import Directions, adjoints, aval_of, tangents
from pyadjoint_utils.engine import Aval, get_engine, owner_of
from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import bare, entered

# What the rows of one sweep may take; more directions go in several sweeps.
MEMORY = 2**28


class Jacobian:
    """Builds the blocks ``d output i / d control j`` where a tape stands.

    Args:
        plan: the way from controls to outputs.
        outputs: the values whose derivatives are taken.
        controls: the values that are varied.
    """

    def __init__(self, plan: Plan, outputs: Sequence[Any], controls: Sequence[Any]) -> None:
        self.plan = plan
        self.outputs = [value.block_variable for value in outputs]
        self.controls = [value.block_variable for value in controls]
        touched = {*plan.touched, *self.controls, *self.outputs}
        self._bytes = max(1, sum(_size(aval_of(bv)) * aval_of(bv).dtype.itemsize for bv in touched))

    def matrix(self) -> list[list[ndarray]]:
        """Return the dense blocks; each has the shape of its output followed by that of its control."""
        columns, rows = (sum(_size(aval_of(bv)) for bv in side) for side in (self.controls, self.outputs))
        is_complex = any(aval_of(bv).dtype.kind == "c" for bv in (*self.controls, *self.outputs))
        if columns <= rows or is_complex:
            return self._by_columns()
        return self._by_rows()

    def times(self, matrices: Sequence[np.ndarray]) -> list[ndarray]:
        """Return the blocks times a matrix for each control, whose leading axes are the control's."""
        avals = [aval_of(bv) for bv in self.controls]
        trails = {m.shape[len(aval.shape) :] for m, aval in zip(matrices, avals, strict=True)}
        for k, (m, aval) in enumerate(zip(matrices, avals, strict=True)):
            if m.shape[: len(aval.shape)] != aval.shape or len(trails) != 1:
                raise ArgumentValueError(
                    f"m_jac[{k}] must have the control's shape {aval.shape} followed by axes that all of them share; "
                    f"got {m.shape}."
                )
        (trail,) = trails
        count = int(np.prod(trail, dtype=int))
        directions = [m.reshape(-1, count).T.reshape((count, *a.shape)) for m, a in zip(matrices, avals, strict=True)]

        def push(part: slice) -> list[np.ndarray]:
            given = {bv: _rows(d[part], bv) for bv, d in zip(self.controls, directions, strict=True)}
            return self._collected(tangents(self.plan, given), self.outputs, part.stop - part.start)

        parts = self._in_parts(count, push)
        shapes = [aval_of(bv).shape for bv in self.outputs]
        return [
            _held(np.moveaxis(part, 0, -1).reshape((*shape, *trail)), bv)
            for part, shape, bv in zip(parts, shapes, self.outputs, strict=True)
        ]

    def _by_columns(self) -> list[list[ndarray]]:
        blocks: list[list[ndarray]] = [[] for _ in self.outputs]
        for bv in self.controls:
            aval = aval_of(bv)
            if aval.dtype.kind == "c":
                self._check_holomorphic(bv)
            found = self._in_parts(_size(aval), partial(self._columns, bv, aval))
            for row, part, output in zip(blocks, found, self.outputs, strict=True):
                row.append(_held(np.moveaxis(part, 0, -1).reshape((*aval_of(output).shape, *aval.shape)), output))
        return blocks

    def _columns(self, bv: Any, aval: Aval, part: slice) -> list[np.ndarray]:
        given = {bv: _rows(_units(aval, part), bv)}
        return self._collected(tangents(self.plan, given), self.outputs, part.stop - part.start)

    def _by_rows(self) -> list[list[ndarray]]:
        blocks = []
        for output in self.outputs:
            aval = aval_of(output)

            def pull(part: slice, output: Any = output, aval: Aval = aval) -> list[np.ndarray]:
                seeds = {output: _rows(_units(aval, part), output)}
                return self._collected(adjoints(self.plan, seeds), self.controls, part.stop - part.start)

            found = self._in_parts(_size(aval), pull)
            shapes = [aval_of(bv).shape for bv in self.controls]
            blocks.append(
                [_held(part.reshape((*aval.shape, *s)), output) for part, s in zip(found, shapes, strict=True)]
            )
        return blocks

    def _in_parts(self, count: int, sweep: Callable[[slice], list[np.ndarray]]) -> list[np.ndarray]:
        step = max(1, min(count, MEMORY // self._bytes))
        parts = [sweep(slice(start, min(start + step, count))) for start in range(0, max(count, 1), step)]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _collected(self, values: Directions, variables: Sequence[Any], count: int) -> list[np.ndarray]:
        return [_numpy(values[bv]) if bv in values else np.zeros((count, *aval_of(bv).shape)) for bv in variables]

    def _check_holomorphic(self, bv: Any) -> None:
        aval = aval_of(bv)
        rng = np.random.default_rng(0)
        d = rng.standard_normal(aval.shape) + 1j * rng.standard_normal(aval.shape)
        values = tangents(self.plan, {bv: _rows(np.stack([d, 1j * d]).astype(aval.dtype), bv)})
        for output in self.outputs:
            if output not in values:
                continue
            along, turned = _numpy(values[output])
            if not np.allclose(turned, 1j * along, rtol=1e-3, atol=1e-6 * float(np.max(np.abs(along), initial=0.0))):
                raise NotDifferentiableError(
                    "A Jacobian matrix of complex numbers exists only for holomorphic functions; this one uses abs, conj, "
                    "real or imag on the way. Use jac_action and adj_jac_action, which are right for any function."
                )


def jacobian_matrix(rf: Any, m_jac: Any = None) -> Any:
    """Return the Jacobian of a reduced function where it stands; see :meth:`ReducedFunction.jac_matrix`."""
    rf._linearize()
    jacobian = Jacobian(rf._plan, rf._outputs, rf._controls)
    if m_jac is None:
        return rf._outputs.delist([rf._controls.delist(row) for row in jacobian.matrix()])
    given = [_numpy(value) for value in Enlist(m_jac)]
    if len(given) != len(rf._controls):
        raise ArgumentValueError(
            f"m_jac must have one matrix for each of the {len(rf._controls)} controls; got {len(given)}."
        )
    return rf._outputs.delist(jacobian.times(given))


def _size(aval: Aval) -> int:
    return int(np.prod(aval.shape, dtype=int))


def _units(aval: Aval, part: slice) -> np.ndarray:
    size = _size(aval)
    return np.eye(part.stop - part.start, size, k=part.start, dtype=aval.dtype).reshape((-1, *aval.shape))


def _rows(rows: np.ndarray, bv: Any) -> Any:
    """Directions of a variable, in its engine."""
    if not isinstance(bv.output, ndarray):
        return rows
    aval = bv.output.aval
    return entered(rows.astype(aval.dtype, copy=False), Aval(rows.shape, aval.dtype), bv.output._engine)


def _numpy(value: Any) -> np.ndarray:
    value = bare(value)
    engine = owner_of(value)
    return np.asarray(value) if engine is None else engine.to_numpy(value)


def _held(block: np.ndarray, bv: Any) -> ndarray:
    """A block in the engine and dtype of its output."""
    engine = bv.output._engine if isinstance(bv.output, ndarray) else get_engine("numpy")
    dtype = aval_of(bv).dtype
    return ndarray(entered(np.ascontiguousarray(block).astype(dtype), Aval(block.shape, dtype), engine), engine)
