"""Jacobian matrices through any tape: many directions in one sweep."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from pyadjoint import AdjFloat
from pyadjoint.enlisting import Enlist

from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.jacobians.batched import adjoints, tangents
from pyadjoint_utils.jacobians.blockwise import Pairs, pointwise_pairs
from pyadjoint_utils.jacobians.seeds import (
    UnitSeeds,
    along,
    as_numpy,
    bytes_of,
    collected,
    held,
    in_engine,
    in_parts,
    where_it_is,
)
from pyadjoint_utils.jacobians.separation import check_points
from pyadjoint_utils.memory import check_matrix
from pyadjoint_utils.plan import Plan, aval_of
from pyadjoint_utils.values import ndarray


class Jacobian:
    """Builds the blocks ``d output i / d control j`` where a tape stands.

    Args:
        plan: the way from controls to outputs.
        outputs: the values whose derivatives are taken.
        controls: the values that are varied.
    """

    def __init__(self, plan: Plan, outputs: Sequence[Any], controls: Sequence[Any]) -> None:
        self.plan = plan
        self.outputs, self.controls = plan.outputs, plan.controls
        for value in (*outputs, *[c.control for c in controls]):
            if not isinstance(value, (ndarray, AdjFloat)):
                raise ArgumentTypeError(
                    f"A Jacobian matrix has entries for arrays and AdjFloats; got {type(value).__name__}. Use "
                    "jac_action and adj_jac_action."
                )
        touched = {*plan.touched, *self.controls, *self.outputs}
        self._dtypes = [aval.dtype for aval in map(aval_of, touched) if aval.differentiable]
        self._bytes = bytes_of(touched)

    def matrix(self) -> list[list[ndarray]]:
        """Return the blocks, dense or over points; see :meth:`ReducedFunction.jac_matrix`."""
        pairs = {(i, j) for i in range(len(self.outputs)) for j in range(len(self.controls))}
        pointwise = pointwise_pairs(self.plan, self.outputs, self.controls)
        self._check_memory(pairs, pointwise)
        self.check_holomorphic()
        found = self._blocks(pairs - pointwise, False) | self._blocks(pointwise, True)
        return [[found[i, j] for j in range(len(self.controls))] for i in range(len(self.outputs))]

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
        count = math.prod(trail)
        directions = [m.reshape(-1, count).T.reshape((count, *a.shape)) for m, a in zip(matrices, avals, strict=True)]
        shapes = [aval_of(bv).shape for bv in self.outputs]
        return [
            held(np.moveaxis(found, 0, -1).reshape((*shape, *trail)), bv)
            for found, shape, bv in zip(self.push(directions), shapes, self.outputs, strict=True)
        ]

    def push(self, directions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs' tangents along directions of the controls, both stacked along a leading axis."""
        return along(tangents, self.plan, dict(zip(self.controls, directions, strict=True)), self.outputs, self._bytes)

    def pull(self, seeds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the controls' cotangents for cotangents of the outputs, both stacked along a leading axis."""
        return along(adjoints, self.plan, dict(zip(self.outputs, seeds, strict=True)), self.controls, self._bytes)

    def _blocks(self, pairs: Pairs, points: bool) -> dict[tuple[int, int], ndarray]:
        """Compute some blocks by columns or by rows, whichever are fewer; by the others where a Block lacks the rule."""
        columns = {j: UnitSeeds(self.controls[j], points) for j in sorted({j for _, j in pairs})}
        rows = {i: UnitSeeds(self.outputs[i], points) for i in sorted({i for i, _ in pairs})}
        by_columns, by_rows = partial(self._by_columns, pairs, columns), partial(self._by_rows, pairs, rows)
        if any(aval_of(bv).dtype.kind == "c" for bv in (*self.controls, *self.outputs)):
            return by_columns()
        first, second = (by_columns, by_rows) if _total(columns) <= _total(rows) else (by_rows, by_columns)
        try:
            return first()
        except NotDifferentiableError as error:
            try:
                return second()
            except NotDifferentiableError:
                raise error from None

    def _by_columns(self, pairs: Pairs, columns: dict[int, UnitSeeds]) -> dict[tuple[int, int], ndarray]:
        blocks = {}
        for j, seeds in columns.items():
            ends = {(i, k): self.outputs[i] for i, k in sorted(pairs) if k == j}
            for pair, found in self._swept(tangents, seeds, ends):
                blocks[pair] = held(seeds.as_columns(found), ends[pair])
        return blocks

    def _by_rows(self, pairs: Pairs, rows: dict[int, UnitSeeds]) -> dict[tuple[int, int], ndarray]:
        blocks = {}
        for i, seeds in rows.items():
            ends = {(k, j): self.controls[j] for k, j in sorted(pairs) if k == i}
            for pair, found in self._swept(adjoints, seeds, ends):
                blocks[pair] = held(seeds.as_rows(found), self.outputs[i])
        return blocks

    def _swept(
        self, sweep: Any, seeds: UnitSeeds, ends: dict[tuple[int, int], Any]
    ) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """What a sweep along all seeds gives at some variables; checked where they stand for points."""

        def run(part: slice) -> list[np.ndarray]:
            values = sweep(self.plan, {seeds.bv: seeds.rows(part)})
            return collected(values, list(ends.values()), part.stop - part.start, where_it_is)

        for pair, found in zip(ends, in_parts(seeds.count, self._bytes, run), strict=True):
            if seeds.points:
                check_points(self.plan, sweep, seeds, ends[pair], found, self._dtypes, self._bytes)
            yield pair, found

    def _check_memory(self, pairs: Pairs, pointwise: Pairs) -> None:
        shapes, size = [], 0
        for i, j in pairs:
            output, control = aval_of(self.outputs[i]), aval_of(self.controls[j]).shape
            shapes.append((*output.shape, *(control[1:] if (i, j) in pointwise else control)))
            size += math.prod(shapes[-1]) * output.dtype.itemsize
        check_matrix("Jacobian", shapes, size, 'jac_matrix(sparsity="detect"), linear_operator() or jac_action')

    def check_holomorphic(self) -> None:
        """Raise if an output is no holomorphic function of a complex control: then there is no complex matrix."""
        for bv in self.controls:
            if aval_of(bv).dtype.kind == "c":
                self._check_linear(bv)

    def _check_linear(self, bv: Any) -> None:
        aval = aval_of(bv)
        rng = np.random.default_rng(0)
        d = rng.standard_normal(aval.shape) + 1j * rng.standard_normal(aval.shape)
        values = tangents(self.plan, {bv: in_engine(np.stack([d, 1j * d]).astype(aval.dtype), bv)})
        for output in self.outputs:
            if output not in values:
                continue
            along, turned = as_numpy(values[output])
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
    given = [as_numpy(value) for value in Enlist(m_jac)]
    if len(given) != len(rf._controls):
        raise ArgumentValueError(
            f"m_jac must have one matrix for each of the {len(rf._controls)} controls; got {len(given)}."
        )
    return rf._outputs.delist(jacobian.times(given))


def _total(seeds: dict[int, UnitSeeds]) -> int:
    return sum(s.count for s in seeds.values())
