"""Hessian matrices through any tape: second derivatives along many directions in one sweep."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat

from pyadjoint_utils.errors import ArgumentTypeError, NotDifferentiableError
from pyadjoint_utils.jacobians.batched import Directions, second_adjoints
from pyadjoint_utils.jacobians.blockwise import Pairs, pointwise_curvature
from pyadjoint_utils.jacobians.seeds import UnitSeeds, along, bytes_of, collected, held, in_parts, where_it_is
from pyadjoint_utils.jacobians.separation import check_points
from pyadjoint_utils.memory import check_matrix
from pyadjoint_utils.plan import Plan, aval_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import bare


class Hessian:
    """Builds the blocks of second derivatives of ``<adj, outputs>`` where a tape stands.

    Args:
        plan: the way from controls to outputs.
        outputs: the values of the tape.
        controls: the values that are varied.
        adj: a cotangent for each output, None for those that do not count.
    """

    def __init__(self, plan: Plan, outputs: Sequence[Any], controls: Sequence[Any], adj: Sequence[Any]) -> None:
        self.plan = plan
        self.controls = [value.block_variable for value in controls]
        self.adj = list(adj)
        pairs = zip(outputs, adj, strict=True)
        self.seeds = {y.block_variable: bare(seed) for y, seed in pairs if seed is not None}
        for bv in self.controls:
            if not isinstance(bv.output, (ndarray, AdjFloat)):
                raise ArgumentTypeError(
                    f"Second derivatives have entries for arrays and AdjFloats; got {type(bv.output).__name__}. Use "
                    "hess_action."
                )
        touched = {*plan.touched, *self.controls, *self.seeds}
        self._dtypes = [aval.dtype for aval in map(aval_of, touched) if aval.differentiable]
        # A tangent, its derivative, and what arrives from behind.
        self._bytes = 3 * bytes_of(touched)

    def matrix(self) -> list[list[ndarray]]:
        """Return the blocks, dense or over points; see :meth:`ReducedFunction.hess_matrix`."""
        self.check_real()
        pairs = {(j, k) for j in range(len(self.controls)) for k in range(len(self.controls))}
        pointwise = pointwise_curvature(self.plan, list(self.seeds), self.controls)
        self._check_memory(pairs, pointwise)
        found = self._blocks(pairs - pointwise, False) | self._blocks(pointwise, True)
        return [[held(found[j, k], bv) for k in range(len(self.controls))] for j, bv in enumerate(self.controls)]

    def check_real(self) -> None:
        """Raise if a control is complex: then there is no matrix."""
        for bv in self.controls:
            if aval_of(bv).dtype.kind == "c":
                raise NotDifferentiableError(
                    "Second derivatives by complex numbers are no complex matrix: a Hessian action is linear over the real "
                    'numbers alone. Use hess_action, or linear_operator("hessian"), which acts on real and imaginary parts.'
                )

    def times(self, directions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the controls' second adjoints along directions of the controls, both stacked along a leading axis."""
        return along(
            self._sweep, self.plan, dict(zip(self.controls, directions, strict=True)), self.controls, self._bytes
        )

    def _sweep(self, plan: Plan, directions: Directions) -> Directions:
        return second_adjoints(plan, directions, self.seeds)

    def _blocks(self, pairs: Pairs, points: bool) -> dict[tuple[int, int], np.ndarray]:
        """Compute blocks along the directions of the smaller control; the mirrored ones are their transposes."""
        seeds = {k: UnitSeeds(self.controls[k], points) for k in {k for _, k in pairs}}
        found = {}
        for k, mine in seeds.items():
            ends = [j for j in seeds if (j, k) in pairs and (mine.size, k) <= (seeds[j].size, j)]
            for j, block in zip(ends, self._swept(mine, ends), strict=True):
                found[j, k] = mine.as_columns(block)
                found[k, j] = _mirrored(found[j, k], len(seeds[j].shape), points)
        return found

    def _swept(self, seeds: UnitSeeds, ends: list[int]) -> list[np.ndarray]:
        variables = [self.controls[j] for j in ends]

        def run(part: slice) -> list[np.ndarray]:
            values = self._sweep(self.plan, {seeds.bv: seeds.rows(part)})
            return collected(values, variables, part.stop - part.start, where_it_is)

        found = in_parts(seeds.count, self._bytes, run) if ends else []
        for bv, block in zip(variables, found, strict=True):
            if seeds.points:
                check_points(self.plan, self._sweep, seeds, bv, block, self._dtypes, self._bytes)
        return found

    def _check_memory(self, pairs: Pairs, pointwise: Pairs) -> None:
        shapes, size = [], 0
        for j, k in pairs:
            row, column = aval_of(self.controls[j]), aval_of(self.controls[k]).shape
            shapes.append((*row.shape, *(column[1:] if (j, k) in pointwise else column)))
            size += math.prod(shapes[-1]) * row.dtype.itemsize
        remedy = 'hess_matrix(sparsity="detect"), linear_operator("hessian") or hess_action'
        check_matrix("Hessian", shapes, size, remedy)


def hessian_matrix(rf: Any, adj: Any) -> Any:
    """Return the second derivatives of a reduced function where it stands; see :meth:`ReducedFunction.hess_matrix`."""
    rf._linearize()
    hessian = hessian_of(rf, adj)
    return rf._controls.delist([rf._controls.delist(row) for row in hessian.matrix()])


def hessian_of(rf: Any, adj: Any) -> Hessian:
    """Return the second derivatives of ``<adj, rf>``; None for a real scalar itself."""
    seeds = rf._checked(rf._unit_seed() if adj is None else adj, rf._outputs, "seeds", optional=True)
    return Hessian(rf._plan, rf._outputs, rf._controls, seeds)


def _mirrored(block: np.ndarray, rows: int, points: bool) -> np.ndarray:
    """Exchange the axes of the two controls; ``rows`` is how many the first one has."""
    first, last = range(points, points + rows), range(points + rows, block.ndim)
    return block.transpose((*range(points), *last, *first))
