"""Which Jacobians are block-diagonal over points, and what happens where a function was declared so and is not."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pyadjoint import Block

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.differences import precision
from pyadjoint_utils.errors import ArgumentValueError
from pyadjoint_utils.plan import Plan, aval_of

Pairs = set[tuple[int, int]]


class _Reach(NamedTuple):
    """What lies between a control and a variable.

    Attributes:
        pointwise: whether every path is.
        declared: whether a function on some path was declared pointwise.
    """

    pointwise: bool
    declared: bool


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
    return _blockwise(ways, outputs, controls)


def pointwise_curvature(plan: Plan, outputs: Sequence[Any], controls: Sequence[Any]) -> Pairs:
    """Return the pairs (j, k) of controls whose second derivatives of the outputs are block-diagonal over points."""
    reached = _reached_from(plan, controls)
    ways = {
        (j, k): [way for y in outputs if y in a and y in b for way in (a[y], b[y])]
        for j, a in enumerate(reached)
        for k, b in enumerate(reached)
    }
    return _blockwise(ways, controls, controls)


def _blockwise(ways: dict[tuple[int, int], list[_Reach]], rows: Sequence[Any], columns: Sequence[Any]) -> Pairs:
    found = {
        pair for pair, reaches in ways.items() if all(r.pointwise for r in reaches) and any(r.declared for r in reaches)
    }
    fields = {i for i, _ in found}, {j for _, j in found}
    # Zeros between two fields of as many points have blocks as well.
    zeros = {(i, j) for (i, j), reaches in ways.items() if not reaches and i in fields[0] and j in fields[1]}
    return found | {(i, j) for i, j in zeros if aval_of(rows[i]).shape[0] == aval_of(columns[j]).shape[0]}


def _reached_from(plan: Plan, controls: Sequence[Any]) -> list[dict[Any, _Reach]]:
    """What each control reaches; nothing where no function was declared pointwise."""
    if any(isinstance(b, EngineBlock) and b.rules.points and b.rules.points.declared for b in plan.derivative):
        return [_reached(plan, control) for control in controls]
    return [{} for _ in controls]


def _reached(plan: Plan, control: Any) -> dict[Any, _Reach]:
    reached, cut = {control: _Reach(bool(aval_of(control).shape), False)}, set(plan.sources)
    for block in plan.derivative:
        for source, target, pointwise, declared in _edges(block):
            before = reached.get(source)
            if before is not None and target not in cut:
                known = reached.get(target, _Reach(True, False))
                reached[target] = _Reach(
                    known.pointwise and before.pointwise and pointwise, known.declared or before.declared or declared
                )
    return reached


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


def probe_of(shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers for every entry of every point: the seed that tells a block-diagonal Jacobian from another one."""
    return np.random.default_rng(0).standard_normal(shape)


def same_fields(found: np.ndarray, expected: np.ndarray, scale: np.ndarray, dtypes: Sequence[np.dtype]) -> bool:
    """Whether two fields of points differ by no more than rounding.

    Args:
        found: of shape ``(n, *shape)``.
        expected: likewise.
        scale: the sums of moduli that stand behind the numbers of ``expected``.
        dtypes: of all numbers on the way.
    """
    eps = max([precision(dtype) for dtype in dtypes])
    size = np.max(scale, axis=tuple(range(1, scale.ndim)), keepdims=True, initial=0.0, where=np.isfinite(scale))
    noise = eps**0.5 * size + 1e3 * eps * np.max(size, initial=0.0)
    with np.errstate(invalid="ignore"):
        agree = np.abs(found - expected) <= noise
    return bool(np.all(agree | (~np.isfinite(found) & ~np.isfinite(expected))))


def false_claim(plan: Plan, what: str) -> ArgumentValueError:
    """Return the error that names the function and the argument whose declaration is wrong where the tape stands."""
    for block in plan.derivative:
        if isinstance(block, EngineBlock) and block.rules.points is not None:
            for i in block.rules.active:
                for k in block.rules.differentiable:
                    if block.rules.points.inputs[i] and block.rules.points.outputs[k] and not _holds(block, i, k):
                        return ArgumentValueError(_message(block, i, k))
    return ArgumentValueError(
        f"The Jacobian of {what} is not block-diagonal over points to rounding, although every function on the way is "
        "pointwise. Overload one of them with pointwise=False to get the dense matrix."
    )


def _message(block: EngineBlock, i: int, k: int) -> str:
    rules = block.rules
    path = rules.points.paths[i] if rules.points is not None and rules.points.declared else f"input {i}"
    return (
        f"{rules.name}: {path} is declared pointwise, but output {k} at one point changes with {path} at other points "
        f"({rules.inputs[i]} -> {rules.outputs[k]}). Declare it with pointwise=False, or compute what all points share "
        "in a function of its own and pass it as a parameter."
    )


def _holds(block: EngineBlock, i: int, k: int) -> bool:
    """Scale a direction at each point by itself: the tangent of a pointwise function scales with it."""
    rules = block.rules
    local, engine = rules.at((i,), (k,)), rules.engine
    x, c = local.split(block.primals(), block.constants)
    direction, factor = probe_of((2, *rules.inputs[i].shape))
    factor = factor.reshape(factor.shape[0], -1)[:, 0]
    dtype = rules.inputs[i].dtype

    def tangent(v: np.ndarray) -> np.ndarray:
        return engine.to_numpy(local.jvp((*x, engine.enter(v.astype(dtype))), c)[0])

    def scaled(v: np.ndarray) -> np.ndarray:
        return v * factor.reshape((-1, *[1] * (v.ndim - 1)))

    expected = scaled(tangent(direction))
    return same_fields(tangent(scaled(direction)), expected, np.abs(expected), (dtype, rules.outputs[k].dtype))
