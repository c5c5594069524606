"""Which numbers of the outputs depend on which numbers of the controls: patterns of Blocks, composed over a tape.

Nothing is evaluated. The patterns of Blocks come from their engines; they are exact or have too many entries.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyadjoint import AdjFloat, Block
from scipy import sparse

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.jacobians.patterns import Pattern, full, identity, nothing, product, union
from pyadjoint_utils.jacobians.seeds import as_numpy
from pyadjoint_utils.plan import Plan, aval_of
from pyadjoint_utils.rules import LocalRules
from pyadjoint_utils.values import ndarray

Reach = dict[Any, Pattern]


class UnknownPatternError(Exception):
    """An engine cannot tell what depends on what in one of its Blocks."""


class Dependencies:
    """The patterns of a tape between controls and outputs.

    Args:
        plan: the way between them.
        controls: the block variables of the controls; their numbers are the columns of every pattern.

    Raises:
        UnknownPatternError: a Block on the way has no pattern.
        DensePatternError: a pattern has too many entries.
    """

    def __init__(self, plan: Plan, controls: Sequence[Any]) -> None:
        self._plan, self._controls, self._cut = plan, list(controls), set(plan.sources)
        ends = np.cumsum([0, *map(size_of, controls)])
        self._columns = int(ends[-1])
        starts = zip(controls, ends[:-1], strict=True)
        self._reach: Reach = {bv: identity(size_of(bv), self._columns, int(start)) for bv, start in starts}
        for block in plan.derivative:
            self._forward(block)

    def jacobian(self, outputs: Sequence[Any]) -> Pattern:
        """Return the pattern of the outputs' Jacobian."""
        return self._stacked(self._reach, outputs)

    def hessian(self, outputs: Sequence[Any]) -> Pattern:
        """Return the pattern of the second derivatives of a weighted sum of the outputs."""
        first, second = set(outputs), Reach()
        for block in reversed(self._plan.derivative):
            self._backward(block, first, second)
        pattern = self._stacked(second, self._controls)
        # It is symmetric, and either half may have too many entries.
        return pattern.multiply(pattern.T).tocsr().astype(bool)

    def _forward(self, block: Block) -> None:
        deps, outputs = block.get_dependencies(), block.get_outputs()
        ins, outs = _ends(block, [bv in self._reach for bv in deps], [bv not in self._cut for bv in outputs])
        if ins and outs:
            given = self._stacked(self._reach, [deps[i] for i in ins])
            self._spread(product(_of_block(block, ins, outs, _TANGENT), given), [outputs[k] for k in outs], self._reach)

    def _backward(self, block: Block, first: set[Any], second: Reach) -> None:
        deps, outputs = block.get_dependencies(), block.get_outputs()
        seeded = [bv not in self._cut and bv in first for bv in outputs]
        ins, outs = _ends(block, [bv in self._plan.touched for bv in deps], seeded)
        if ins and outs:
            given = [
                self._stacked(self._reach, [deps[i] for i in ins]),
                self._stacked(second, [outputs[k] for k in outs]),
            ]
            found = product(_of_block(block, ins, outs, _SECOND), sparse.vstack(given, format="csr"))
            for k in outs:
                second.pop(outputs[k], None)
            first.update(deps[i] for i in ins)
            self._spread(found, [deps[i] for i in ins], second)

    def _stacked(self, reach: Reach, variables: Sequence[Any]) -> Pattern:
        rows = [reach[bv] if bv in reach else nothing(size_of(bv), self._columns) for bv in variables]
        return sparse.vstack(rows, format="csr")

    def _spread(self, stacked: Pattern, variables: Sequence[Any], reach: Reach) -> None:
        """Add the rows of a pattern to the variables that they belong to."""
        start = 0
        for bv in variables:
            part = stacked[start : start + size_of(bv)]
            start += size_of(bv)
            reach[bv] = union(reach[bv], part) if bv in reach else part


def size_of(bv: Any) -> int:
    """How many numbers a variable has."""
    if not isinstance(bv.output, (ndarray, AdjFloat)):
        raise UnknownPatternError
    return math.prod(aval_of(bv).shape)


def _ends(block: Block, reached: Sequence[bool], wanted: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Positions of the dependencies and outputs between which a derivative passes."""
    ins: Sequence[int] = range(len(reached))
    outs: Sequence[int] = range(len(wanted))
    if isinstance(block, EngineBlock):
        ins, outs = block.rules.active, block.rules.differentiable
    return [i for i in ins if reached[i]], [k for k in outs if wanted[k]]


# One Block ---------------------------------------------------------------------------------------------------------------


class _Sweep(NamedTuple):
    """One of a Block's maps: how its engine traces it, and what it is, given curvature and Jacobian."""

    traced: Callable[[LocalRules, Sequence[Any]], Pattern | None]
    assembled: Callable[[Pattern, Pattern], Pattern]


def _traced_tangent(local: LocalRules, c: Sequence[Any]) -> Pattern | None:
    """From tangents of the inputs to tangents of the outputs."""
    engine, x, y = local.rules.engine, local.in_avals, local.out_avals
    found = engine.dependencies_of(local.jvp_map, (*x, *x), c, len(x))
    if found is None:  # a function may have a rule for the other sweep alone
        found = engine.dependencies_of(local.vjp_map, (*x, *y), c, len(x))
        return None if found is None else found.T.tocsr()
    return found


def _traced_second(local: LocalRules, c: Sequence[Any]) -> Pattern | None:
    """From tangents of the inputs, and of the outputs' cotangents, to those of the inputs' cotangents."""
    ends = (*local.in_avals, *local.out_avals)
    return local.rules.engine.dependencies_of(local.second_map, (*ends, *ends), c, len(ends))


_TANGENT = _Sweep(_traced_tangent, lambda curvature, jacobian: jacobian)
_SECOND = _Sweep(_traced_second, lambda curvature, jacobian: sparse.hstack([curvature, jacobian.T], format="csr"))


def _of_block(block: Block, ins: Sequence[int], outs: Sequence[int], sweep: _Sweep) -> Pattern:
    deps, outputs = block.get_dependencies(), block.get_outputs()
    n, m = sum(size_of(deps[i]) for i in ins), sum(size_of(outputs[k]) for k in outs)
    if isinstance(block, ConversionBlock):
        return sweep.assembled(nothing(n, n), identity(m))
    if not isinstance(block, EngineBlock):
        return sweep.assembled(full(n, n), full(m, n))
    local = block.rules.at(tuple(ins), tuple(outs))
    key = (sweep, *map(_digest, block.constants))
    if key not in local.patterns:
        # Other values of the tape may change from call to call, arrays beside them do not.
        found = sweep.traced(local, [*[block.rules.inputs[i] for i in local.others], *block.constants])
        local.patterns[key] = sweep.assembled(*_of_points(local)) if found is None else found
    return local.patterns[key]


def _digest(constant: Any) -> bytes:
    """What tells constants of one shape and dtype apart."""
    return hashlib.blake2b(as_numpy(constant).tobytes()).digest()


def _of_points(local: LocalRules) -> tuple[Pattern, Pattern]:
    """Curvature and Jacobian of a function of points that nobody can look into."""
    rules, points = local.rules, local.rules.points
    if points is None:
        raise UnknownPatternError
    ins = [(rules.inputs[i].shape, points.inputs[i]) for i in local.ins]
    outs = [(rules.outputs[k].shape, points.outputs[k]) for k in local.outs]
    everywhere = all(pointwise for _, pointwise in outs)
    curvature = [[_between(a, b, p and q and everywhere) for b, q in ins] for a, p in ins]
    jacobian = [[_between(y, x, p and q) for x, q in ins] for y, p in outs]
    return sparse.block_array(curvature, format="csr"), sparse.block_array(jacobian, format="csr")


def _between(rows: tuple[int, ...], columns: tuple[int, ...], pointwise: bool) -> Pattern:
    if not pointwise:
        return full(math.prod(rows), math.prod(columns))
    point = full(math.prod(rows[1:]), math.prod(columns[1:]))
    return sparse.csr_array(sparse.kron(identity(rows[0]), point), dtype=bool)
