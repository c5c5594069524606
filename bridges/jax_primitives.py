"""Two primitives of JAX that call functions from outside: the function itself, and its derivative as a linear map.

Their rules hold at any order, since the derivative of a host function is a host function again: the derivative of a call
is a linear map; the transpose of a linear map is one; and the derivative of a linear map, which depends on the point, is
the linear map of the derived function. Only the transpose tells the two primitives apart.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from bridges.jax_callbacks import emit
from bridges.jax_gradients import product
from pyadjoint_utils.compiling.composition import with_gradient
from pyadjoint_utils.errors import NotDifferentiableError, UnsupportedError
from pyadjoint_utils.inside.host_function import HostFunction
from pyadjoint_utils.registry import get_engine

# JAX's own form of rules for reverse mode is not public. In versions that nobody has tried, JAX derives it from the JVPs.
_linearizations: dict[Any, Any] = {}
if jax.__version_info__[:2] == (0, 10):
    from jax._src.interpreters import ad as _private

    _linearizations = _private.primitive_linearizations

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

    def derivative(self, moving: Sequence[bool]) -> "Derivative | None":
        """How tangents of its results come from those of some arguments; None without one."""
        n, host = self.points, self.host()
        ins = tuple([i for i in host.active if moving[i]])
        outs = tuple(range(len(host.outputs)))
        if not ins:
            return None
        if ins[0] < n:
            return Derivative(LinearMap(host, ins, outs), ins, outs, host.dual)
        return Derivative(self, tuple(range(n, len(host.inputs))), outs)

    def batched(self, marks: Sequence[bool], size: int) -> "LinearMap":
        """The map over a leading axis of the arguments that are marked, and of all results."""
        points, seeds = tuple(marks[: self.points]), tuple(marks[self.points :])
        results = (True,) * len(self.ins if self.adjoint else self.outs)
        axis = Axis(size, points, results, seeds) if self.adjoint else Axis(size, points, seeds, results)
        return self._replace(axes=(*self.axes, axis))


class Derivative(NamedTuple):
    """How tangents of a call's results come from those of its arguments.

    Attributes:
        linear: the map; its point is made of the first arguments of the call.
        ins: the arguments whose tangents are its directions.
        outs: the results that have a tangent.
        dual: makes the function that gives results and tangents in one call, or None where that costs more.
    """

    linear: LinearMap
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    dual: Callable[[tuple[int, ...]], HostFunction | None] = lambda ins: None

    def apply(self, points: Sequence[Any], tangents: Sequence[Any], narrow: bool) -> list[Any]:
        """Return the tangents ``outs``."""
        directions = [ad.instantiate_zeros(tangents[i]) for i in self.ins]
        return _bind(self.linear, [*points[: self.linear.points], *directions], narrow)


def _pick(items: Sequence[Any], where: Sequence[int]) -> tuple[Any, ...]:
    return tuple([items[k] for k in where])


# What both have in common ----------------------------------------------------------------------------------------------


Target = HostFunction | LinearMap

call_p, linear_p = Primitive("tape_call"), Primitive("tape_linear")


def call(function: HostFunction, x: Sequence[Any], narrow: bool) -> list[Any]:
    """Call a function from outside, on values of any transformation.

    Args:
        function: the function.
        x: its arguments.
        narrow: whether JAX has no 64-bit types now.
    """
    return _bind(function, x, narrow)


def _bind(target: Target, x: Sequence[Any], narrow: bool) -> list[Any]:
    primitive = linear_p if isinstance(target, LinearMap) else call_p
    return primitive.bind(*x, target=target, narrow=narrow)


def _host(target: Target) -> HostFunction:
    return target.host() if isinstance(target, LinearMap) else target


def _derivative(target: Target, moving: Sequence[bool]) -> Derivative | None:
    if isinstance(target, LinearMap):
        return target.derivative(moving)
    ins, outs = tuple([i for i in target.active if moving[i]]), target.differentiable
    return Derivative(LinearMap(target, ins, outs), ins, outs, target.dual) if ins and outs else None


def narrowed(dtype: np.dtype) -> np.dtype:
    """Return the dtype that JAX has in the place of another one while its 64-bit types are off."""
    return np.dtype(_NARROW.get(dtype.name, dtype))


def _avals(target: Target, narrow: bool) -> list[Any]:
    return [jax.core.ShapedArray(y.shape, narrowed(y.dtype) if narrow else y.dtype) for y in _host(target).outputs]


def _eager(target: Target, arrays: Sequence[Any], narrow: bool) -> list[Any]:
    # An ordinary call: an eager callback would be compiled and take milliseconds.
    engine = get_engine("jax")
    results = _host(target)(arrays, engine)
    return [engine.cast(y, narrowed(y.dtype)) for y in results] if narrow else list(results)


def _lower(ctx: Any, *x: Any, target: Target, narrow: bool) -> Any:
    host = _host(target)
    return emit(ctx, x, host, host.name)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, target: Target, narrow: bool) -> Any:
    derivative = _derivative(target, [type(t) is not ad.Zero for t in tangents])
    if derivative is None:
        y = _bind(target, primals, narrow)
        return y, _spread(y, (), ())
    directions = _pick(tangents, derivative.ins)
    if not any(isinstance(v, jax.core.Tracer) for v in (*primals, *directions)):  # nobody will transpose this
        dual = derivative.dual(derivative.ins)
        if dual is not None:
            both, n = _bind(dual, [*primals, *directions], narrow), len(_host(target).outputs)
            return both[:n], _spread(both[:n], derivative.outs, both[n:])
    y = _bind(target, primals, narrow)
    return y, _spread(y, derivative.outs, derivative.apply(primals, tangents, narrow))


def _linearize(reverse: bool, moving: Sequence[bool], *primals: Any, target: Target, narrow: bool) -> tuple[Any, ...]:
    """The same in the form of JAX's own rules, results and a function of the tangents; it saves JAX a trace of the JVP."""
    if reverse and not isinstance(target, LinearMap) and not any(map(traced, primals)):
        found = _with_gradient(target, moving, primals, narrow)
        if found is not None:
            return found
    y, derivative = _bind(target, primals, narrow), _derivative(target, moving)
    if derivative is None:
        return y, [False] * len(y), (), lambda _, *tangents: _spread(y, (), ())

    def tangents_of(points: Sequence[Any], *tangents: Any) -> list[Any]:
        return _spread(y, derivative.outs, derivative.apply(points, tangents, narrow))

    return y, [k in derivative.outs for k in range(len(y))], primals, tangents_of


def _with_gradient(
    target: HostFunction, moving: Sequence[bool], primals: Sequence[Any], narrow: bool
) -> tuple[Any, ...] | None:
    """The same for a number, whose gradient is all that reverse mode needs; None for others."""
    ins = tuple([i for i in target.active if moving[i]])
    both = with_gradient(target, ins)
    if both is None:
        return None
    try:
        results = _bind(both, primals, narrow)
    except (NotDifferentiableError, UnsupportedError):
        return None  # it may be that nobody will ask for it
    n, (out,) = len(target.outputs), target.differentiable
    y, gradient = results[:n], results[n:]

    def tangents_of(gradient: Sequence[Any], *tangents: Any) -> list[Any]:
        return _spread(y, (out,), [product(gradient, _pick(tangents, ins), y[out].dtype)])

    return y, [k == out for k in range(n)], gradient, tangents_of


def traced(value: Any) -> bool:
    """Whether a value is not known until a compiled program runs."""
    while isinstance(value, jax.core.Tracer):
        value = getattr(value, "primal", getattr(value, "val", None))
    return not isinstance(value, (jax.Array, np.ndarray))


def _spread(y: Sequence[Any], outs: Sequence[int], tangents: Sequence[Any]) -> list[Any]:
    """One tangent per result; JAX's zero for those that have none."""
    given = dict(zip(outs, tangents, strict=True))
    return [given[k] if k in given else ad.Zero(jax.typeof(a).to_tangent_aval()) for k, a in enumerate(y)]


def _batch(x: Sequence[Any], dims: Sequence[Any], *, target: Target, narrow: bool) -> Any:
    x, marks, size = _leading(x, dims)
    y = _bind(target.batched(marks, size), x, narrow)
    return y, [0] * len(y)


def _leading(x: Sequence[Any], dims: Sequence[Any]) -> tuple[list[Any], tuple[bool, ...], int]:
    """Move mapped axes to the front."""
    marks = tuple([d is not None for d in dims])
    moved = [jnp.moveaxis(a, d, 0) if marked and d != 0 else a for a, d, marked in zip(x, dims, marks, strict=True)]
    return moved, marks, next(a.shape[0] for a, marked in zip(moved, marks, strict=True) if marked)


for _p in (call_p, linear_p):
    _p.multiple_results = True
    _p.def_impl(lambda *x, target, narrow: _eager(target, x, narrow))
    _p.def_abstract_eval(lambda *x, target, narrow: _avals(target, narrow))
    mlir.register_lowering(_p, _lower, cacheable=False)
    ad.primitive_jvps[_p] = _jvp
    batching.primitive_batchers[_p] = _batch
    _linearizations[_p] = _linearize


# The transpose of a linear map -----------------------------------------------------------------------------------------


def _transpose(cotangents: Sequence[Any], *x: Any, target: LinearMap, narrow: bool) -> list[Any]:
    n = target.points
    given = tuple([k for k, ct in enumerate(cotangents) if type(ct) is not ad.Zero])
    wanted = tuple([j for j, seed in enumerate(x[n:]) if ad.is_undefined_primal(seed)])
    results: list[Any] = [None] * len(x)
    if not given:
        return [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in x]
    # JAX pairs cotangents without conjugation, the tape under Re<a, b>.
    seeds = [_conj(cotangents[k]) for k in given]
    for j, value in zip(wanted, _bind(target.transposed(wanted, given), [*x[:n], *seeds], narrow), strict=True):
        results[n + j] = _conj(value)
    return results


def _conj(value: Any) -> Any:
    return jnp.conj(value) if jnp.iscomplexobj(value) else value  # a number, too


ad.primitive_transposes[linear_p] = _transpose
