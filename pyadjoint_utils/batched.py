"""Sweeps that carry many directions at once, along a leading axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, Block
from pyadjoint.tape import no_annotations

from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.conversion import ConversionBlock
from pyadjoint_utils.engine import Aval, Engine, owner_of
from pyadjoint_utils.plan import Plan
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import accumulated, as_float, bare, entered

Directions = dict[Any, Any]


def aval_of(bv: Any) -> Aval:
    """Shape and dtype of the value that a block variable stands for."""
    return bv.output.aval if isinstance(bv.output, ndarray) else Aval((), np.dtype(np.float64))


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
    for block in plan.derivative:
        deps, outputs = block.get_dependencies(), block.get_outputs()
        given = [values.get(bv) for bv in deps]
        if all(value is None for value in given):
            continue
        results = _forward(block, given)
        for bv, value in zip(outputs, results, strict=True):
            if value is not None and bv not in cut:
                values[bv] = accumulated(values.get(bv), value)
    return values


@no_annotations
def adjoints(plan: Plan, seeds: Directions) -> Directions:
    """Pull cotangents of the outputs back; the counterpart of :func:`tangents`."""
    values, cut = dict(seeds), set(plan.sources)
    for block in reversed(plan.derivative):
        outputs = block.get_outputs()
        given = [None if bv in cut else values.pop(bv, None) for bv in outputs]
        if all(value is None for value in given):
            continue
        for bv, value in zip(block.get_dependencies(), _backward(block, given, plan.touched), strict=True):
            if value is not None:
                values[bv] = accumulated(values.get(bv), value)
    return values


def _forward(block: Block, given: Sequence[Any]) -> list[Any]:
    if isinstance(block, ConversionBlock):
        return [_converted(given[0], block.get_outputs()[0])]
    if not isinstance(block, EngineBlock):
        return _one_by_one(block, given, "tlm_value", block.get_dependencies(), block.get_outputs(), block.evaluate_tlm)
    rules = block.rules
    ins = tuple([i for i in rules.active if given[i] is not None])
    outs = rules.differentiable
    results: list[Any] = [None] * len(block.get_outputs())
    if ins and outs:
        local = rules.at(ins, outs)
        x, c = local.split(block.primals(), block.constants)
        dx = _rows([given[i] for i in ins], [rules.inputs[i] for i in ins], rules.engine)
        for k, dy in zip(outs, local.batched_jvp((*x, *dx), c), strict=True):
            results[k] = dy
    return results


def _backward(block: Block, given: Sequence[Any], touched: set[Any]) -> list[Any]:
    deps = block.get_dependencies()
    if isinstance(block, ConversionBlock):
        return [_converted(given[0], deps[0])]
    if not isinstance(block, EngineBlock):
        return _one_by_one(block, given, "adj_value", block.get_outputs(), deps, block.evaluate_adj)
    rules = block.rules
    outs = tuple([k for k in rules.differentiable if given[k] is not None])
    ins = tuple([i for i in rules.active if deps[i] in touched])
    results: list[Any] = [None] * len(deps)
    if ins and outs:
        local = rules.at(ins, outs)
        x, c = local.split(block.primals(), block.constants)
        yb = _rows([given[k] for k in outs], [rules.outputs[k] for k in outs], rules.engine)
        for i, xb in zip(ins, local.batched_vjp((*x, *yb), c), strict=True):
            results[i] = xb
    return results


def _rows(values: Sequence[Any], avals: Sequence[Aval], engine: Engine) -> list[Any]:
    return [_entered(value, aval, engine) for value, aval in zip(values, avals, strict=True)]


def _entered(value: Any, aval: Aval, engine: Engine) -> Any:
    size = owner_of(bare(value)).aval(bare(value)).shape[0]  # type: ignore[union-attr]
    return entered(value, Aval((size, *aval.shape), aval.dtype), engine)


def _converted(value: Any, bv: Any) -> Any:
    """The rows of a conversion, in the engine and shape of the variable on its other side."""
    if isinstance(bv.output, ndarray):
        return _reshaped(_entered(value, bv.output.aval, bv.output._engine), bv.output.aval, bv.output._engine)
    source = owner_of(value)
    return np.asarray(source.to_numpy(value)).reshape(-1)  # type: ignore[union-attr]


def _reshaped(value: Any, aval: Aval, engine: Engine) -> Any:
    shape = engine.aval(value).shape
    return value if shape[1:] == aval.shape else engine.enter(engine.to_numpy(value).reshape(shape[0], *aval.shape))


def _one_by_one(
    block: Block, given: Sequence[Any], kind: str, sources: Sequence[Any], targets: Sequence[Any], evaluate: Any
) -> list[Any]:
    """A Block of another package takes one direction at a time."""
    size = next(len(_numpy(value)) for value in given if value is not None)
    rows: list[list[Any]] = [[] for _ in targets]
    for k in range(size):
        for bv in (*sources, *targets):
            setattr(bv, kind, None)
        for bv, value in zip(sources, given, strict=True):
            if value is not None:
                setattr(bv, kind, _one(bv, _numpy(value)[k]))
        evaluate()
        for row, bv in zip(rows, targets, strict=True):
            row.append(getattr(bv, kind))
    for bv in (*sources, *targets):
        setattr(bv, kind, None)
    return [None if all(v is None for v in row) else _stacked(row, bv) for row, bv in zip(rows, targets, strict=True)]


def _one(bv: Any, value: np.ndarray) -> Any:
    if isinstance(bv.output, AdjFloat):
        return AdjFloat(value)
    return bv.output._like(np.asarray(value)) if isinstance(bv.output, ndarray) else bv.output._ad_init_object(value)


def _stacked(row: Sequence[Any], bv: Any) -> np.ndarray:
    zero = np.zeros(aval_of(bv).shape)
    return np.stack([zero if v is None else np.asarray(_numpy(v)) for v in row])


def _numpy(value: Any) -> np.ndarray:
    value = bare(value)
    engine = owner_of(value)
    return np.asarray(as_float(value)) if engine is None else engine.to_numpy(value)
