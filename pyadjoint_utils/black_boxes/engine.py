"""The engine of black boxes, NumPy code that nothing looks into.

To an engine of automatic differentiation such a function is a single primitive. Deriving a map therefore takes one run of
it on *places* instead of arrays: the function records where they stand among its arguments and is not called at all.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyadjoint_utils.black_boxes.linearization import Point
from pyadjoint_utils.engine import Arrays, Aval, Map, NumPyArrays
from pyadjoint_utils.errors import NotDifferentiableError


class _Place:
    """Stands in a call for an array that a derivative is taken of."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Output:
    """Stands for an output of a function that was run on places."""

    __slots__ = ("at", "inputs", "k")

    def __init__(self, at: Any, inputs: Sequence[Any], k: int) -> None:
        self.at, self.inputs, self.k = at, inputs, k


class BlackBoxEngine(NumPyArrays):
    """Derives maps of black boxes; their arrays are NumPy's."""

    name = "black box"
    holds = "numpy"

    def number(self, value: complex, dtype: np.dtype) -> Any:
        return value

    def is_tracer(self, leaf: Any) -> bool:
        return isinstance(leaf, (_Place, _Output))

    def vjp_of(self, f: Map, n: int) -> Map:
        return _Adjoint(f, n)

    def jvp_of(self, f: Map, n: int) -> Map:
        return _Tangent(f, n)

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        loop = super().batch_of(f, batched)
        if not isinstance(f, _Adjoint) or any(batched[: f.n]) or not all(batched[f.n :]):
            return loop
        return lambda x, c: loop(x, c) if any(map(self.is_tracer, x)) else f.of_rows(x, c, loop)

    def function(self, name: str) -> Callable[..., Any] | None:
        return _FUNCTIONS.get(name)


_FUNCTIONS: dict[str, Callable[..., Any]] = {"getitem": lambda x, k: np.asarray(x[k]), "stack": np.stack}
ENGINE = BlackBoxEngine()


def called(box: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a black box with arrays, or with places instead of some of them."""
    leaves, structure = ENGINE.flatten(box.bound(args, kwargs))
    point = Point(box, structure, _values(tuple(leaves)))
    traced = any(isinstance(leaf, _Place) for leaf in leaves)
    outputs: Any = [_Output(point, leaves, k) for k in range(len(point.outputs))] if traced else point.value()
    return ENGINE.unflatten(point.signature.structure, outputs)


# Maps ------------------------------------------------------------------------------------------------------------------


def _trace(f: Map, x: Arrays, c: Arrays) -> tuple[Any, list[int], list[int]]:
    """Run a map on places: what it calls and where, and which of its inputs and outputs are the map's."""
    places = [_Place(value) for value in x]
    outputs = f(tuple(places), c)
    where = {id(item): i for i, item in enumerate(outputs[0].inputs)}
    return outputs[0].at, [where[id(place)] for place in places], [y.k for y in outputs]


def _values(x: Arrays) -> Arrays:
    return tuple([item.value if isinstance(item, _Place) else item for item in x])


def _fitted(values: Sequence[Any], dtypes: Sequence[np.dtype]) -> Arrays:
    """Derivatives in the dtypes of what they belong to: real numbers have real ones."""
    pairs = zip(values, dtypes, strict=True)
    return tuple([np.asarray(value if dtype.kind == "c" else np.real(value), dtype) for value, dtype in pairs])


def _picked(values: Sequence[Any], outs: Sequence[int]) -> list[Any]:
    return [values[k] for k in outs]


class _Adjoint:
    """The map ``((*x, *yb), c) -> xb``."""

    def __init__(self, f: Map, n: int) -> None:
        self.f, self.n = f, n

    def __call__(self, x: Arrays, c: Arrays) -> Arrays:
        values = _values(x)
        at, ins, outs = _trace(self.f, values[: self.n], c)
        seeds = values[self.n :]
        if all(item is value for item, value in zip(x, values, strict=True)):
            return _fitted(at.adjoint(ins, outs, seeds), [x.dtype for x in values[: self.n]])
        derived = _AdjointAt(_first_order(at), ins, outs, seeds)
        return tuple([_Output(derived, x, k) for k in range(self.n)])

    def of_rows(self, x: Arrays, c: Arrays, loop: Map) -> Arrays:
        """The same for seeds along a leading axis: probed once for all of them."""
        at, ins, outs = _trace(self.f, x[: self.n], c)
        if not isinstance(at, Point):
            return loop(x, c)
        return _fitted(at.adjoints(ins, outs, x[self.n :]), [x.dtype for x in x[: self.n]])


class _Tangent:
    """The map ``((*x, *dx), c) -> (*y, *dy)``."""

    def __init__(self, f: Map, n: int) -> None:
        self.f, self.n = f, n

    def __call__(self, x: Arrays, c: Arrays) -> Any:
        values = _values(x)
        at, ins, outs = _trace(self.f, values[: self.n], c)
        directions = values[self.n :]
        if all(item is value for item, value in zip(x, values, strict=True)):
            tangents = at.tangent(ins, directions)
            dy = _fitted([tangents[k] for k in outs], [at.outputs[k].dtype for k in outs])
            return _ValuesAndTangents(lambda: _picked(at.value(), outs), dy)
        derived = _TangentAt(_first_order(at), ins, outs, directions)
        return tuple([_Output(derived, x, k) for k in range(2 * len(outs))])


class _ValuesAndTangents(Sequence):
    """The tuple ``(*y, *dy)`` that computes ``y``, an expensive call, only if somebody looks at it."""

    def __init__(self, values: Callable[[], Sequence[Any]], tangents: Arrays) -> None:
        self._compute, self._tangents = values, tangents

    def __len__(self) -> int:
        return 2 * len(self._tangents)

    @functools.cached_property
    def _values(self) -> Sequence[Any]:
        return self._compute()

    def __getitem__(self, index: Any) -> Any:
        m = len(self._tangents)
        if isinstance(index, slice):
            return tuple([self[k] for k in range(*index.indices(2 * m))])
        k = range(2 * m)[index]
        return self._values[k] if k < m else self._tangents[k - m]


def _first_order(at: Any) -> Point:
    if isinstance(at, Point):
        return at
    raise NotDifferentiableError(
        f"{at.point.name} is a black box: it has first and second derivatives, and a third one was asked for (the "
        "gradient of a function of its Hessian, or the Hessian of a function of its gradient). Write the function for "
        "an engine that differentiates (overload_jax, overload_autograd, ...) to go further."
    )


class _Derived:
    """A derivative of a black box as a function of its point and seeds; what is derived from it is of second order."""

    def __init__(self, point: Point, ins: list[int], outs: list[int], seeds: Arrays) -> None:
        self.point, self.ins, self.outs, self.seeds = point, ins, outs, seeds
        self.n = len(ins)
        self.x = [point.leaves[i] for i in ins]

    def _split(self, where: list[int], given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Directions of point and seeds, zeros where there are none."""
        found = dict(zip(where, given, strict=True))
        full = [found.get(k, np.zeros_like(v)) for k, v in enumerate((*self.x, *self.seeds))]
        return full[: self.n], full[self.n :]


class _AdjointAt(_Derived):
    """``(x, yb) -> J(x)^H yb``."""

    @property
    def outputs(self) -> list[Aval]:
        return [Aval(x.shape, x.dtype) for x in self.x]

    def value(self) -> Sequence[Any]:
        return _fitted(self.point.adjoint(self.ins, self.outs, self.seeds), [x.dtype for x in self.x])

    def tangent(self, where: list[int], given: Sequence[Any]) -> list[Any]:
        dx, dyb = self._split(where, given)
        return self.point.second(self.ins, self.outs, dx, self.seeds, dyb)

    def adjoint(self, where: list[int], outs: list[int], given: Sequence[Any]) -> list[Any]:
        # With w in the place of xb: Re<w, J^H yb> = Re<J w, yb>, whose gradient in x is the symmetric Hessian times w.
        found = dict(zip(outs, given, strict=True))
        w = [found.get(k, np.zeros_like(x)) for k, x in enumerate(self.x)]
        zero = [np.zeros_like(yb) for yb in self.seeds]
        results: dict[int, Any] = {}
        if any(i < self.n for i in where):
            results |= dict(enumerate(self.point.second(self.ins, self.outs, w, self.seeds, zero)))
        if any(i >= self.n for i in where):
            tangents = self.point.tangent(self.ins, w)
            results |= {self.n + j: tangents[k] for j, k in enumerate(self.outs)}
        return [results[i] for i in where]


class _TangentAt(_Derived):
    """``(x, dx) -> (y, J(x) dx)``."""

    @property
    def outputs(self) -> list[Aval]:
        return 2 * _picked(self.point.outputs, self.outs)

    def value(self) -> Sequence[Any]:
        dy = _picked(self.point.tangent(self.ins, self.seeds), self.outs)
        dtypes = [aval.dtype for aval in self.outputs[len(self.outs) :]]
        return [*_picked(self.point.value(), self.outs), *_fitted(dy, dtypes)]

    def tangent(self, where: list[int], given: Sequence[Any]) -> list[Any]:
        dx, ddx = self._split(where, given)
        first = self.point.tangent(self.ins, dx)
        second = self.point.tangent_along(self.ins, self.seeds, dx, ddx)
        return [*_picked(first, self.outs), *_picked(second, self.outs)]

    def adjoint(self, where: list[int], outs: list[int], given: Sequence[Any]) -> list[Any]:
        m = len(self.outs)
        found = dict(zip(outs, given, strict=True))
        zero = [np.zeros(*aval) for aval in _picked(self.point.outputs, self.outs)]
        yb, w = ([found.get(k + start, zero[k]) for k in range(m)] for start in (0, m))
        along_seeds = self.point.adjoint(self.ins, self.outs, w)
        results = dict(enumerate(along_seeds, self.n))
        if any(i < self.n for i in where):
            # d/de J(x + e dx)^H w, and the adjoint of y itself.
            results |= dict(enumerate(self.point.second(self.ins, self.outs, self.seeds, w, yb)))
        return [results[i] for i in where]
