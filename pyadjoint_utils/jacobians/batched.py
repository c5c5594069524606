"""Sweeps that carry many directions at once, along a leading axis."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pyadjoint import Block
from pyadjoint.tape import no_annotations

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.foreign import count, one_by_one, one_by_one_twice
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.registry import owner_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import accumulated, entered

Directions = dict[Any, Any]


@no_annotations
def tangents(plan: Plan, directions: Directions) -> Directions:
    """Push directions of the controls forward.

    Args:
        plan: the way from controls to outputs, linearized where the tape stands.
        directions: an array of shape ``(k, *shape)`` for each control that varies.

    Returns:
        An array of shape ``(k, *shape)`` for each variable on the way that depends on these controls.
    """
    values, cut = dict(directions), set(plan.sources)  # a source is cut off from what once computed it
    with plan.marks():
        for block in plan.ahead():
            given = [values.get(bv) for bv in block.get_dependencies()]
            if any(value is not None for value in given):
                results = zip(block.get_outputs(), _forward(block, given), strict=True)
                _accumulate(values, [(bv, value) for bv, value in results if bv not in cut])
    return values


@no_annotations
def adjoints(plan: Plan, seeds: Directions) -> Directions:
    """Pull cotangents of the outputs back; the counterpart of :func:`tangents`."""
    values, cut = dict(seeds), set(plan.sources)
    with plan.marks():
        for block in plan.back():
            given = [None if bv in cut else values.pop(bv, None) for bv in block.get_outputs()]
            if any(value is not None for value in given):
                results = _backward(block, given, plan.dependent)
                _accumulate(values, zip(block.get_dependencies(), results, strict=True))
    return values


@no_annotations
def second_adjoints(plan: Plan, directions: Directions, seeds: Directions) -> Directions:
    """Return the derivatives of an adjoint along directions of the controls.

    Args:
        plan: the way from controls to outputs, linearized where the tape stands.
        directions: an array of shape ``(k, *shape)`` for each control that varies.
        seeds: a cotangent for each output that has one, held fixed.

    Returns:
        An array of shape ``(k, *shape)`` for each control that it depends on.
    """
    tangent = tangents(plan, directions)
    first, second = dict(seeds), Directions()
    cut = set(plan.sources)
    with plan.marks():
        for block in plan.back():
            deps, outputs = block.get_dependencies(), block.get_outputs()
            yb, dyb = [[None if bv in cut else values.pop(bv, None) for bv in outputs] for values in (first, second)]
            if any(value is not None for value in (*yb, *dyb)):
                xb, dxb = _backward_twice(block, [tangent.get(bv) for bv in deps], yb, dyb, plan.dependent)
                _accumulate(first, zip(deps, xb, strict=True))
                _accumulate(second, zip(deps, dxb, strict=True))
    return second


def _accumulate(values: Directions, terms: Iterable[tuple[Any, Any]]) -> None:
    for bv, term in terms:
        if term is not None:
            values[bv] = accumulated(values.get(bv), term)


def _forward(block: Block, given: Sequence[Any]) -> list[Any]:
    if isinstance(block, ConversionBlock):
        return [_converted(given[0], block.get_outputs()[0])]
    if not isinstance(block, EngineBlock):
        return one_by_one(block, given, "tlm_value", block.get_dependencies(), block.get_outputs())
    rules = block.rules
    return rules.tangents(block.primals(), block.constants, _rows(given, rules.inputs, rules.engine), batched=True)


def _backward(block: Block, given: Sequence[Any], dependent: set[Any]) -> list[Any]:
    deps = block.get_dependencies()
    if isinstance(block, ConversionBlock):
        return [_converted(given[0], deps[0])]
    if not isinstance(block, EngineBlock):
        return one_by_one(block, given, "adj_value", block.get_outputs(), deps)
    rules = block.rules
    ins = [i for i in rules.active if deps[i] in dependent]
    seeds = _rows(given, rules.outputs, rules.engine)
    return rules.adjoints(block.primals(), block.constants, seeds, ins, batched=True)


def _backward_twice(
    block: Block, dx: Sequence[Any], yb: Sequence[Any], dyb: Sequence[Any], dependent: set[Any]
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The adjoint of a Block, and its derivatives along all directions."""
    deps = block.get_dependencies()
    if isinstance(block, ConversionBlock):
        first = None if yb[0] is None else block._back(yb[0])
        return [first], [None if dyb[0] is None else _converted(dyb[0], deps[0])]
    if not isinstance(block, EngineBlock):
        return one_by_one_twice(block, dx, yb, dyb)
    rules = block.rules
    outs = tuple([k for k in rules.differentiable if yb[k] is not None or dyb[k] is not None])
    ins = tuple([i for i in rules.active if deps[i] in dependent])
    adjoint: list[Any] = [None] * len(deps)
    results: list[Any] = [None] * len(deps)
    if not ins or not outs:
        return adjoint, results
    local = rules.at(ins, outs)
    x, c = local.split(block.primals(), block.constants)
    seeds = block._seeds([yb[k] for k in outs], local.out_avals, x[0])
    for i, xb in zip(ins, local.vjp((*x, *seeds), c), strict=True):
        adjoint[i] = xb
    moving, arriving = [dx[i] for i in ins], [dyb[k] for k in outs]
    if any(value is not None for value in moving):
        rows = _rows_or_zeros([*moving, *arriving], [*local.in_avals, *local.out_avals], rules.engine, x[0])
        for i, dxb in zip(ins, local.batched_hvp((*x, *seeds, *rows), c), strict=True):
            results[i] = dxb
    elif any(value is not None for value in arriving):  # without curvature it is an adjoint
        results = _backward(block, dyb, dependent)
    return adjoint, results


def _rows_or_zeros(values: Sequence[Any], avals: Sequence[Aval], engine: Engine, like: Any) -> list[Any]:
    size = next(count(value) for value in values if value is not None)
    return [
        engine.zeros(Aval((size, *aval.shape), aval.dtype), like) if value is None else _entered(value, aval, engine)
        for value, aval in zip(values, avals, strict=True)
    ]


def _rows(values: Sequence[Any], avals: Sequence[Aval], engine: Engine) -> list[Any]:
    return [
        None if value is None else _entered(value, aval, engine) for value, aval in zip(values, avals, strict=False)
    ]


def _entered(value: Any, aval: Aval, engine: Engine) -> Any:
    return entered(value, Aval((count(value), *aval.shape), aval.dtype), engine)


def _converted(value: Any, bv: Any) -> Any:
    """The rows of a conversion, in the engine and shape of the variable on its other side."""
    if isinstance(bv.output, ndarray):
        return _reshaped(_entered(value, bv.output.aval, bv.output._engine), bv.output.aval, bv.output._engine)
    source = owner_of(value)
    return np.asarray(source.to_numpy(value)).reshape(-1)  # type: ignore[union-attr]


def _reshaped(value: Any, aval: Aval, engine: Engine) -> Any:
    shape = engine.aval(value).shape
    return value if shape[1:] == aval.shape else engine.enter(engine.to_numpy(value).reshape(shape[0], *aval.shape))
