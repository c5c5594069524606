"""The directions that make a matrix of derivatives: every unit direction of a variable, in parts that fit in memory."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils import memory
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import ArgumentTypeError
from pyadjoint_utils.jacobians.batched import Directions
from pyadjoint_utils.plan import Plan, aval_of
from pyadjoint_utils.registry import get_engine, on_host, owner_of
from pyadjoint_utils.values import ndarray
from pyadjoint_utils.variable import bare, entered

# What puts columns and rows together.
_MOVES = ("getitem", "moveaxis", "reshape", "concatenate", "transpose")


class UnitSeeds:
    """The unit directions of a variable.

    Args:
        bv: the variable.
        points: whether its first axis counts points that do not influence each other: then one direction does for all
            points, and a random one more tells whether that is true.
    """

    def __init__(self, bv: Any, points: bool) -> None:
        self.bv, self.aval, self.points = bv, aval_of(bv), points
        self.shape = self.aval.shape[1:] if points else self.aval.shape
        self.size = math.prod(self.shape)
        self.count = max(1, self.size + points)  # of nothing, one direction without entries

    def rows(self, part: slice) -> Any:
        """Return some of the directions, in the engine of the variable."""
        units = np.eye(part.stop - part.start, self.size, k=part.start, dtype=self.aval.dtype)
        if not self.points:
            return in_engine(units.reshape((len(units), *self.shape)), self.bv)
        rows = np.empty((len(units), *self.aval.shape), self.aval.dtype)
        rows[:] = units.reshape((len(units), 1, *self.shape))
        if part.stop == self.count:
            rows[-1] = probe_of(self.aval.shape)
        return in_engine(rows, self.bv)

    def as_columns(self, found: np.ndarray) -> np.ndarray:
        """Put tangents along all directions together: their shape, then that of the variable (of one of its points)."""
        return np.moveaxis(found[: self.size], 0, -1).reshape((*found.shape[1:], *self.shape))

    def as_rows(self, found: np.ndarray) -> np.ndarray:
        """Put cotangents of all directions together: the shape of the variable, then theirs (or of one of their points)."""
        if not self.points:
            return found[: self.size].reshape((*self.shape, *found.shape[1:]))
        block = np.moveaxis(found[: self.size], 0, 1)
        return block.reshape((found.shape[1], *self.shape, *found.shape[2:]))

    def deviation(self, found: np.ndarray) -> float:
        """How far, at any point, the random direction is from what the unit directions promise, relative to their terms."""
        count = self.aval.shape[0]
        weights = probe_of(self.aval.shape).reshape(count, self.size).T
        terms = found[:-1] * weights.reshape((self.size, count, *[1] * (found.ndim - 2)))
        with np.errstate(invalid="ignore", divide="ignore"):
            apart, size = per_point(found[-1] - terms.sum(0)), per_point(np.abs(terms).sum(0))
            ratio = np.where(apart == 0.0, 0.0, apart / size)
        return float(np.max(np.where(np.isnan(ratio), np.inf, ratio), initial=0.0))


def per_point(field: np.ndarray) -> np.ndarray:
    """The largest modulus at every point."""
    return np.max(np.abs(field), axis=tuple(range(1, field.ndim)), initial=0.0)


def probe_of(shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers for every entry of every point."""
    return np.random.default_rng(0).standard_normal(shape)


def in_parts(count: int, size: int, sweep: Callable[[slice], list[np.ndarray]]) -> list[np.ndarray]:
    """Run a sweep over all directions, as many at once as memory allows.

    Args:
        count: the number of directions.
        size: bytes that one direction takes.
        sweep: takes a slice of the directions, returns arrays whose leading axis is that of the directions.
    """
    step = max(1, min(count, memory.SWEEP // size))
    parts = [sweep(slice(start, min(start + step, count))) for start in range(0, count, step)]
    return [np.concatenate(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True)]


def along(sweep: Any, plan: Plan, given: dict[Any, np.ndarray], ends: Sequence[Any], size: int) -> list[np.ndarray]:
    """Run a sweep along given directions, in parts that fit in memory.

    Args:
        sweep: :func:`tangents` or one that is called like it.
        plan: the way from controls to outputs.
        given: an array of shape ``(k, *shape)`` for each variable that it begins with.
        ends: the variables whose values are returned.
        size: bytes that one direction takes.
    """

    def run(part: slice) -> list[np.ndarray]:
        values = sweep(plan, {bv: in_engine(d[part], bv) for bv, d in given.items()})
        return collected(values, ends, part.stop - part.start, as_numpy)

    count = len(next(iter(given.values())))
    return in_parts(count, size, run) if count else [np.zeros((0, *aval_of(bv).shape)) for bv in ends]


def bytes_of(variables: Iterable[Any]) -> int:
    """What one direction takes on all of these variables."""
    avals = [aval_of(bv) for bv in variables]
    return max(1, sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals))


def collected(values: Directions, variables: Sequence[Any], count: int, read: Callable[[Any], Any]) -> list[Any]:
    """What a sweep gave for some variables, read as arrays; zeros where nothing arrived."""
    return [read(values[bv]) if bv in values else np.zeros((count, *aval_of(bv).shape)) for bv in variables]


def in_engine(rows: np.ndarray, bv: Any) -> Any:
    """Directions of a variable, in its engine."""
    aval = aval_of(bv)
    if rows.dtype.kind == "c" and aval.dtype.kind != "c":
        if np.any(rows.imag):
            raise ArgumentTypeError(f"Directions of a real value ({aval}) must be real; got {rows.dtype}{rows.shape}.")
        rows = rows.real
    if not isinstance(bv.output, ndarray):
        return rows
    return _beside(entered(rows.astype(aval.dtype, copy=False), Aval(rows.shape, aval.dtype), bv.output._engine), bv)


def as_numpy(value: Any) -> np.ndarray:
    """An array of any engine as a NumPy array."""
    value = bare(value)
    engine = owner_of(value)
    return np.asarray(value) if engine is None else engine.to_numpy(value)


def where_it_is(value: Any) -> Any:
    """An array as NumPy's, or in the memory of an accelerator as a value that stays there."""
    value = bare(value)
    engine = owner_of(value)
    if engine is None or on_host(value) or any(engine.function(name) is None for name in _MOVES):
        return as_numpy(value)
    return ndarray(value, engine)


def held(block: Any, bv: Any) -> ndarray:
    """A matrix in the engine and dtype of a variable, on its device."""
    engine = bv.output._engine if isinstance(bv.output, ndarray) else get_engine("numpy")
    dtype = aval_of(bv).dtype
    if not isinstance(block, ndarray):
        block = np.asarray(block, dtype, order="C")
    return ndarray(_beside(entered(block, Aval(block.shape, dtype), engine), bv), engine)


def _beside(array: Any, bv: Any) -> Any:
    """An array of a variable's engine, on its device."""
    there = bare(bv.checkpoint)
    engine = owner_of(array)
    return array if engine is None or owner_of(there) is not engine else engine.beside(array, there)
