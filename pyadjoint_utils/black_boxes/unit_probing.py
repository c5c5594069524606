"""Adjoints of code that can only be asked in one direction at a time: tangents along every unit direction."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.black_boxes.differences import largest, precision, random_like, wide_dtype
from pyadjoint_utils.errors import ArgumentValueError
from pyadjoint_utils.jacobians.separation import separate

Tangent = Callable[[np.ndarray], list[np.ndarray]]


def pulled(point: Any, i: int, outs: Sequence[int], yb: Sequence[Any], *, nested: bool) -> np.ndarray:
    """Return cotangents of a leaf.

    Args:
        point: the :class:`~pyadjoint_utils.black_boxes.linearization.Point`.
        i: the leaf's position.
        outs: the outputs that have seeds.
        yb: their seeds, stacked along a leading axis.
        nested: whether these are differences in or of other differences.

    Returns:
        One cotangent for each seed, stacked along a leading axis; in double precision.

    Raises:
        ArgumentValueError: leaf and outputs are declared pointwise and are not.
    """
    x, fields = point.leaves[i], point.signature.fields

    def tangent(direction: np.ndarray) -> list[np.ndarray]:
        dy = point.tangent([i], [direction], nested=nested)
        return [dy[k] for k in outs]

    if i in fields.ins and fields.outs.issuperset(outs) and len(x):
        return _of_points(point, i, tangent, yb, nested=nested)
    result = np.zeros((len(yb[0]), x.size), wide_dtype(x.dtype))
    for k, unit in _units(x.size, x.dtype):
        basis = np.zeros(x.size, x.dtype)
        basis[k] = unit
        for dy, w in zip(tangent(basis.reshape(x.shape)), yb, strict=True):
            result[:, k] += unit * np.real(w.reshape(len(w), -1) @ np.conj(np.ravel(dy)))
    return result.reshape(len(result), *x.shape)


def _of_points(point: Any, i: int, tangent: Tangent, yb: Sequence[Any], *, nested: bool) -> np.ndarray:
    """The same where points do not influence each other: a direction moves all of them."""
    x = point.leaves[i]
    count, width = len(x), x.size // len(x)
    result = np.zeros((len(yb[0]), count, width), wide_dtype(x.dtype))
    seeds = np.concatenate([w.reshape(len(w), count, -1) for w in yb], axis=2)
    probe = random_like([x], sized=False)[0]
    promised, size = np.zeros((2, count, seeds.shape[2]), seeds.dtype)
    for k, unit in _units(width, x.dtype):
        basis = np.zeros((count, width), x.dtype)
        basis[:, k] = unit
        rows = _per_point(tangent(basis.reshape(x.shape)))
        result[:, :, k] += unit * np.real(seeds * np.conj(rows)).sum(2)
        term = rows * np.real(np.conj(unit) * probe.reshape(count, width)[:, k, None])
        promised, size = promised + term, size + np.abs(term)
    eps = max([precision(a.dtype) for a in (x, *yb)])
    found = _per_point(tangent(probe))
    # What differences cannot tell from rounding, beside what rounding makes of the terms.
    noise = 0.0 if point.exact else 1e2 * eps ** (2 / 3 if nested else 4 / 5) * largest([size])
    apart = np.abs(found - promised) > eps ** (2 / 3) * size + noise
    if np.any(apart) and not separate(lambda ds: np.stack([_per_point(tangent(d)) for d in ds]), x.shape, eps):
        raise ArgumentValueError(
            f"{point.name}: leaf {i} of the arguments is declared pointwise, but the result at one point changes with "
            "it at other points. Declare it with pointwise=False, or compute what all points share in a function of its "
            "own and pass it as a parameter."
        )
    return result.reshape(len(result), *x.shape)


def _per_point(fields: Sequence[np.ndarray]) -> np.ndarray:
    """All numbers at each point, of one or several fields."""
    return np.concatenate([field.reshape(len(field), -1) for field in fields], axis=1)


def _units(count: int, dtype: np.dtype) -> Iterator[tuple[int, complex]]:
    """Every number, with 1 and, for complex ones, with i."""
    for k in range(count):
        yield k, 1.0
        if dtype.kind == "c":
            yield k, 1.0j
