"""Whether points influence each other where a tape stands: what was declared is not taken on trust."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.black_boxes.differences import precision
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.jacobians.seeds import UnitSeeds, along, as_numpy, per_point, probe_of
from pyadjoint_utils.plan import Plan

Linear = Callable[[np.ndarray], np.ndarray]


def check_points(
    plan: Plan, sweep: Any, seeds: UnitSeeds, end: Any, found: Any, dtypes: Sequence[np.dtype], size: int
) -> None:
    """Raise if blocks over points are no whole matrix of derivatives.

    Args:
        plan: the way from controls to outputs.
        sweep: the sweep that gave the blocks.
        seeds: its directions.
        end: the variable where it was read.
        found: what it gave there along all directions.
        dtypes: of all numbers on the way.
        size: bytes that one direction takes.

    Raises:
        ArgumentValueError: a function was declared pointwise and is not; it and its argument are named.
    """
    eps = max([precision(dtype) for dtype in dtypes])
    if seeds.deviation(as_numpy(found)) <= eps ** (2 / 3):
        return
    # That may be rounding, where a function subtracts large numbers: zeros tell for certain.
    if not separate(lambda rows: along(sweep, plan, {seeds.bv: rows}, [end], size)[0], seeds.aval.shape, eps):
        raise _false_claim(plan)


def separate(linear: Linear, shape: tuple[int, ...], eps: float) -> bool:
    """Whether a linear map of fields leaves the points where its argument is zero at zero.

    A truly pointwise map gives exact zeros there. Two points differ in a bit of their numbers, so that one of the
    directions moves the one and not the other.

    Args:
        linear: takes and returns fields of points, stacked along a leading axis.
        shape: that of its argument.
        eps: relative rounding.
    """
    points = np.arange(shape[0])
    bits = points >> np.arange(max(1, int(shape[0]).bit_length()))[:, None] & 1 == 1
    moved = np.concatenate([bits, ~bits])
    rows = probe_of(shape) * moved.reshape((*moved.shape, *[1] * (len(shape) - 1)))
    full, *parts = [per_point(row) for row in linear(np.concatenate([probe_of(shape)[None], rows]))]
    return not np.any((np.stack(parts) > 1e3 * eps * full) & ~moved)


def _false_claim(plan: Plan) -> ArgumentValueError:
    for block in plan.ahead():
        points = block.rules.points if isinstance(block, EngineBlock) else None
        if points is None or not points.declared:
            continue
        for i in block.rules.active:
            for k in block.rules.differentiable:
                if points.inputs[i] and points.outputs[k] and not _holds(block, i, k):
                    name, path = block.rules.name, points.paths[i]
                    return ArgumentValueError(
                        f"{name}: {path} is declared pointwise, but output {k} at one point changes with {path} at other "
                        f"points ({block.rules.inputs[i]} -> {block.rules.outputs[k]}). Declare it with pointwise=False, "
                        "or compute what all points share in a function of its own and pass it as a parameter."
                    )
    return ArgumentValueError(
        "A function between controls and outputs is declared pointwise and is not: its result at one point changes with "
        "its arguments at others. Declare it with pointwise=False."
    )


def _holds(block: EngineBlock, i: int, k: int) -> bool:
    rules = block.rules
    local, engine = rules.at((i,), (k,)), rules.engine
    x, c = local.split(block.primals(), block.constants)
    eps = max(precision(aval.dtype) for aval in (rules.inputs[i], rules.outputs[k]))

    def rows_of(derivative: Any, dtype: np.dtype) -> Linear:
        return lambda rows: np.stack(
            [engine.to_numpy(derivative((*x, engine.enter(row)), c)[0]) for row in rows.astype(dtype)]
        )

    try:
        return separate(rows_of(local.jvp, rules.inputs[i].dtype), rules.inputs[i].shape, eps)
    except NotDifferentiableError:  # a rule by hand for adjoints alone
        return separate(rows_of(local.vjp, rules.outputs[k].dtype), rules.outputs[k].shape, eps)
