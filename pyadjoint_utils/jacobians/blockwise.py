"""Which matrices of derivatives are block-diagonal over points, as the Blocks between say."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pyadjoint import Block

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.plan import Plan, aval_of

Pairs = set[tuple[int, int]]


class _Reach(NamedTuple):
    """What lies between a control and a variable.

    Attributes:
        pointwise: whether every path is.
        declared: whether a function on some path was declared pointwise.
        summed: whether every path is pointwise as far as it is curved, and linear from there on.
    """

    pointwise: bool
    declared: bool
    summed: bool


def pointwise_pairs(plan: Plan, outputs: Sequence[Any], controls: Sequence[Any]) -> Pairs:
    """Return the pairs (i, j) whose Jacobian ``d output i / d control j`` is block-diagonal over points.

    Every path from the control to the output is pointwise then, and a function on some path was declared so. Elementwise
    arithmetic alone makes no fields of points out of arrays.

    Args:
        plan: the way from controls to outputs.
        outputs: their block variables.
        controls: their block variables.
    """
    reached = _reached_from(plan, controls)
    ways = {(i, j): [r[y]] if y in r else [] for i, y in enumerate(outputs) for j, r in enumerate(reached)}
    return _blockwise({pair: [(r.pointwise, r.declared) for r in rs] for pair, rs in ways.items()}, outputs, controls)


def pointwise_curvature(plan: Plan, outputs: Sequence[Any], controls: Sequence[Any]) -> Pairs:
    """Return the pairs (j, k) of controls whose second derivatives of the outputs are block-diagonal over points.

    The outputs may be sums of fields of points, and other linear functions of them, too.
    """
    reached = _reached_from(plan, controls)
    ways = {
        (j, k): [way for y in outputs if y in a and y in b for way in (a[y], b[y])]
        for j, a in enumerate(reached)
        for k, b in enumerate(reached)
    }
    return _blockwise({pair: [(r.summed, r.declared) for r in rs] for pair, rs in ways.items()}, controls, controls)


def _blockwise(
    ways: dict[tuple[int, int], list[tuple[bool, bool]]], rows: Sequence[Any], columns: Sequence[Any]
) -> Pairs:
    """The pairs whose every way is blockwise, one of them by declaration, and the fields of as many points."""
    found = {pair for pair, rs in ways.items() if all(blocks for blocks, _ in rs) and any(named for _, named in rs)}
    fields = {i for i, _ in found}, {j for _, j in found}
    # Zeros between two fields have blocks as well.
    zeros = {(i, j) for (i, j), rs in ways.items() if not rs and i in fields[0] and j in fields[1]}
    return {(i, j) for i, j in found | zeros if aval_of(rows[i]).shape[0] == aval_of(columns[j]).shape[0]}


def _reached_from(plan: Plan, controls: Sequence[Any]) -> list[dict[Any, _Reach]]:
    """What each control reaches; nothing where no function was declared pointwise."""
    if any(isinstance(b, EngineBlock) and b.rules.points and b.rules.points.declared for b in plan.derivative):
        return [_reached(plan, control) for control in controls]
    return [{} for _ in controls]


def _reached(plan: Plan, control: Any) -> dict[Any, _Reach]:
    has_points = bool(aval_of(control).shape)
    reached, cut = {control: _Reach(has_points, False, has_points)}, set(plan.sources)
    for block in plan.derivative:
        linear = _is_linear(block, plan.dependent)
        for source, target, pointwise, declared in _edges(block):
            before = reached.get(source)
            if before is not None and target not in cut:
                known = reached.get(target, _Reach(True, False, True))
                reached[target] = _Reach(
                    known.pointwise and before.pointwise and pointwise,
                    known.declared or before.declared or declared,
                    known.summed and (before.summed if linear else before.pointwise and pointwise),
                )
    return reached


def _is_linear(block: Block, dependent: set[Any]) -> bool:
    """Whether a Block is linear in all that depends on controls, together."""
    if not isinstance(block, EngineBlock):
        return isinstance(block, ConversionBlock)
    nature, deps = block.rules.nature, block.get_dependencies()
    return nature.linear or (nature.bilinear and sum(deps[i] in dependent for i in block.rules.active) == 1)


def _edges(block: Block) -> Iterator[tuple[Any, Any, bool, bool]]:
    """The derivatives that pass a Block: from, to, whether block-diagonal, whether by the user's word."""
    deps, outputs = block.get_dependencies(), block.get_outputs()
    if not isinstance(block, EngineBlock):
        same = isinstance(block, ConversionBlock) and aval_of(deps[0]).shape == aval_of(outputs[0]).shape
        yield from [(dep, output, same, False) for dep in deps for output in outputs]
        return
    rules, points = block.rules, block.rules.points
    for i in rules.active:
        for k in rules.differentiable:
            pointwise = points is not None and points.inputs[i] and points.outputs[k]
            yield deps[i], outputs[k], pointwise, pointwise and points is not None and points.declared
