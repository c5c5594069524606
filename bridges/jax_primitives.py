"""Two primitives of JAX that call functions from outside: the function itself, and its derivative as a linear map.

Their rules hold at any order, since the derivative of a host function is a host function again: the JVP of a call is a
linear map; the transpose of a linear map is one; and the JVP of a linear map, which depends on the point, is the linear map
of the derived function.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from bridges.jax_callbacks import emit
from pyadjoint_utils.engine import Aval, get_engine
from pyadjoint_utils.host_function import HostFunction

_NARROW = {"float64": "float32", "complex128": "complex64", "int64": "int32", "uint64": "uint32"}


class Axis(NamedTuple):
    """A leading axis over a linear map.

    Attributes:
        size: its length.
        points: which arguments of the function have it.
        ins: which directions.
        outs: which tangents.
    """

    size: int
    points: tuple[bool, ...]
    ins: tuple[bool, ...]
    outs: tuple[bool, ...]


class LinearMap(NamedTuple):
    """``dx -> J(x) dx``, or its adjoint ``yb -> J(x)^H yb``; both have the arguments ``(*x, *seeds)``.

    Attributes:
        function: the function whose Jacobian it is.
        ins: positions of the arguments that have a direction.
        outs: positions of the results that have a tangent.
        adjoint: which of the two it is.
        axes: leading axes, the innermost first.
    """

    function: HostFunction
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    adjoint: bool = False
    axes: tuple[Axis, ...] = ()

    @property
    def points(self) -> int:
        """How many arguments are the point."""
        return len(self.function.inputs)

    def host(self) -> HostFunction:
        """The map as a function of point and seeds."""
        f, ins, outs = self.function, self.ins, self.outs
        host = f.adjoint(ins, outs) if self.adjoint else f.tangent(ins, outs)
        for size, points, directions, tangents in self.axes:
            given, taken = (tangents, directions) if self.adjoint else (directions, tangents)
            host = host.batched((*points, *given), size, tuple([not axis for axis in taken]))
        return host

    def transposed(self, seeds: Sequence[int], results: Sequence[int]) -> "LinearMap":
        """The adjoint of the map between some of its seeds and some of its results, counted among them."""
        ins, outs = (results, seeds) if self.adjoint else (seeds, results)
        axes = [Axis(a.size, a.points, _pick(a.ins, ins), _pick(a.outs, outs)) for a in self.axes]
        return LinearMap(self.function, _pick(self.ins, ins), _pick(self.outs, outs), not self.adjoint, tuple(axes))

    def batched(self, marks: Sequence[bool], size: int) -> "LinearMap":
        """The map over a leading axis of the arguments that are marked, and of all results."""
        points, seeds = tuple(marks[: self.points]), tuple(marks[self.points :])
        results = (True,) * len(self.ins if self.adjoint else self.outs)
        axis = Axis(size, points, results, seeds) if self.adjoint else Axis(size, points, seeds, results)
        return self._replace(axes=(*self.axes, axis))


def _pick(items: Sequence[Any], where: Sequence[int]) -> tuple[Any, ...]:
    return tuple([items[k] for k in where])


# What both have in common ----------------------------------------------------------------------------------------------


def _avals(outputs: Sequence[Aval], narrow: bool) -> list[Any]:
    return [jax.core.ShapedArray(y.shape, narrowed(y.dtype) if narrow else y.dtype) for y in outputs]


def narrowed(dtype: np.dtype) -> np.dtype:
    """Return the dtype that JAX has in the place of another one while its 64-bit types are off."""
    return np.dtype(_NARROW.get(dtype.name, dtype))


def _eager(host: HostFunction, arrays: Sequence[Any], narrow: bool) -> list[Any]:
    # An ordinary call: an eager callback would be compiled and take milliseconds.
    engine = get_engine("jax")
    results = host(arrays, engine)
    return [engine.cast(y, narrowed(y.dtype)) for y in results] if narrow else list(results)


# A call ----------------------------------------------------------------------------------------------------------------

call_p = Primitive("tape_call")
call_p.multiple_results = True
call_p.def_impl(lambda *x, function, narrow: _eager(function, x, narrow))
call_p.def_abstract_eval(lambda *x, function, narrow: _avals(function.outputs, narrow))
mlir.register_lowering(call_p, lambda ctx, *x, function, narrow: emit(ctx, x, function, function.name), cacheable=False)


def _call_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, function: HostFunction, narrow: bool) -> Any:
    y = call_p.bind(*primals, function=function, narrow=narrow)
    dy: list[Any] = [ad.Zero(jax.typeof(value).to_tangent_aval()) for value in y]
    ins = tuple([i for i in function.active if type(tangents[i]) is not ad.Zero])
    if ins and function.differentiable:
        linear = LinearMap(function, ins, function.differentiable)
        for k, value in zip(linear.outs, _apply(linear, primals, _pick(tangents, ins), narrow), strict=True):
            dy[k] = value
    return y, dy


def _call_batch(x: Sequence[Any], dims: Sequence[Any], *, function: HostFunction, narrow: bool) -> Any:
    x, marks, size = _leading(x, dims)
    y = call_p.bind(*x, function=function.batched(marks, size), narrow=narrow)
    return y, [0] * len(y)


def _leading(x: Sequence[Any], dims: Sequence[Any]) -> tuple[list[Any], tuple[bool, ...], int]:
    """Move mapped axes to the front."""
    marks = tuple([d is not None for d in dims])
    moved = [jnp.moveaxis(a, d, 0) if marked and d != 0 else a for a, d, marked in zip(x, dims, marks, strict=True)]
    return moved, marks, next(a.shape[0] for a, marked in zip(moved, marks, strict=True) if marked)


ad.primitive_jvps[call_p] = _call_jvp
batching.primitive_batchers[call_p] = _call_batch


# A linear map ----------------------------------------------------------------------------------------------------------

linear_p = Primitive("tape_linear")
linear_p.multiple_results = True
linear_p.def_impl(lambda *x, linear, narrow: _eager(linear.host(), x, narrow))
linear_p.def_abstract_eval(lambda *x, linear, narrow: _avals(linear.host().outputs, narrow))
mlir.register_lowering(
    linear_p, lambda ctx, *x, linear, narrow: emit(ctx, x, linear.host(), linear.host().name), cacheable=False
)


def _apply(linear: LinearMap, points: Sequence[Any], seeds: Sequence[Any], narrow: bool) -> list[Any]:
    return linear_p.bind(*points, *seeds, linear=linear, narrow=narrow)


def _linear_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, linear: LinearMap, narrow: bool) -> Any:
    y = linear_p.bind(*primals, linear=linear, narrow=narrow)
    n, host = linear.points, linear.host()
    ins = tuple([i for i in host.active if type(tangents[i]) is not ad.Zero])
    if not ins:
        return y, [ad.Zero(jax.typeof(value).to_tangent_aval()) for value in y]
    if ins[0] < n:
        outer = LinearMap(host, ins, tuple(range(len(y))))
        return y, _apply(outer, primals, _pick(tangents, ins), narrow)
    seeds = [ad.instantiate_zeros(t) for t in tangents[n:]]
    return y, _apply(linear, primals[:n], seeds, narrow)


def _linear_transpose(cotangents: Sequence[Any], *x: Any, linear: LinearMap, narrow: bool) -> list[Any]:
    n = linear.points
    given = tuple([k for k, ct in enumerate(cotangents) if type(ct) is not ad.Zero])
    wanted = tuple([j for j, seed in enumerate(x[n:]) if ad.is_undefined_primal(seed)])
    results: list[Any] = [None] * len(x)
    if not given:
        return [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in x]
    # JAX pairs cotangents without conjugation, the tape under Re<a, b>.
    seeds = [_conj(cotangents[k]) for k in given]
    for j, value in zip(wanted, _apply(linear.transposed(wanted, given), x[:n], seeds, narrow), strict=True):
        results[n + j] = _conj(value)
    return results


def _conj(value: Any) -> Any:
    return jnp.conj(value) if jnp.iscomplexobj(value) else value


def _linear_batch(x: Sequence[Any], dims: Sequence[Any], *, linear: LinearMap, narrow: bool) -> Any:
    x, marks, size = _leading(x, dims)
    y = linear_p.bind(*x, linear=linear.batched(marks, size), narrow=narrow)
    return y, [0] * len(y)


ad.primitive_jvps[linear_p] = _linear_jvp
ad.primitive_transposes[linear_p] = _linear_transpose
batching.primitive_batchers[linear_p] = _linear_batch
