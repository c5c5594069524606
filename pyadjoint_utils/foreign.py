"""Blocks of other packages, which take one direction at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pyadjoint import AdjFloat, Block

from pyadjoint_utils.plan import aval_of, second_adjoint_of
from pyadjoint_utils.registry import owner_of
from pyadjoint_utils.tapes import afterwards
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import as_float, bare


def count(value: Any) -> int:
    """The length of the leading axis, that of the directions."""
    return owner_of(bare(value)).aval(bare(value)).shape[0]  # type: ignore[union-attr]


def one_by_one(
    block: Block, given: Sequence[Any], kind: str, sources: Sequence[Any], targets: Sequence[Any]
) -> list[Any]:
    """The tangents or adjoints of a Block, as ``kind`` says; both are linear."""
    rows: list[list[Any]] = [[] for _ in targets]
    for k in range(next(count(value) for value in given if value is not None)):
        with _clean(block, kind):
            _set(sources, given, kind, k)
            (block.evaluate_tlm if kind == "tlm_value" else block.evaluate_adj)(markings=True)
            for row, bv in zip(rows, targets, strict=True):
                row.append(getattr(bv, kind))
    return _stacked(rows, targets)


def one_by_one_twice(
    block: Block, dx: Sequence[Any], yb: Sequence[Any], dyb: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """The adjoint of a Block, and its derivatives along all directions ``dx`` and ``dyb``."""
    deps, outputs = block.get_dependencies(), block.get_outputs()
    kinds = ("tlm_value", "adj_value", "hessian_value")
    adjoint = [None if value is None else _numpy(value)[None] for value in yb]
    directions = [value for value in (*dx, *dyb) if value is not None]
    if not directions:
        found = one_by_one(block, adjoint, "adj_value", outputs, deps)
        return [None if value is None else value[0] for value in found], [None] * len(deps)
    rows: list[list[Any]] = [[] for _ in deps]
    first: list[Any] = [None] * len(deps)
    for k in range(count(directions[0])):
        with _clean(block, *kinds):
            _set(deps, dx, "tlm_value", k)
            _set(outputs, adjoint, "adj_value", 0)
            _set(outputs, dyb, "hessian_value", k)
            second_adjoint_of(block)
            first = [bv.adj_value for bv in deps]
            for row, bv in zip(rows, deps, strict=True):
                row.append(bv.hessian_value)
    return first, _stacked(rows, deps)


@contextmanager
def _clean(block: Block, *kinds: str) -> Iterator[None]:
    """Begin without these values of a Block's variables, and leave none, also after an exception."""
    places = [(bv, kind) for bv in (*block.get_dependencies(), *block.get_outputs()) for kind in kinds]

    def clear() -> None:
        for bv, kind in places:
            setattr(bv, kind, None)

    clear()
    with afterwards(clear):
        yield


def _set(variables: Sequence[Any], given: Sequence[Any], kind: str, k: int) -> None:
    for bv, value in zip(variables, given, strict=True):
        if value is not None:
            setattr(bv, kind, _one(bv, _numpy(value)[k]))


def _one(bv: Any, value: np.ndarray) -> Any:
    if isinstance(bv.output, AdjFloat):
        return AdjFloat(value)
    return (
        bare(bv.output._like(np.asarray(value))) if isinstance(bv.output, ndarray) else bv.output._ad_init_object(value)
    )


def _stacked(rows: Sequence[Sequence[Any]], variables: Sequence[Any]) -> list[Any]:
    """The rows of each variable as one array; None where nothing arrived."""
    results: list[Any] = []
    for row, bv in zip(rows, variables, strict=True):
        zero = np.zeros(aval_of(bv).shape)
        arrived = any(value is not None for value in row)
        results.append(np.stack([zero if v is None else _numpy(v) for v in row]) if arrived else None)
    return results


def _numpy(value: Any) -> np.ndarray:
    value = bare(value)
    engine = owner_of(value)
    return np.asarray(as_float(value)) if engine is None else engine.to_numpy(value)
