"""autograd: differentiates NumPy functions eagerly; its arrays are NumPy's.

autograd's rules are used as they are found, on two kinds of nodes of our own: one result has the shape and dtype of what
it is the derivative of, or it is an error; forward mode transposes the VJP of a function that has no JVP; and the few
rules that are silently wrong are replaced.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.builtins import DictBox, SequenceBox, container_take
from autograd.core import JVPNode, VJPNode, add_outgrads, primitive_jvps, primitive_vjps, sparse_object_types, vspace
from autograd.extend import defjvp_argnums, defvjp_argnums, primitive
from autograd.numpy import numpy_vjps
from autograd.numpy import numpy_wrapper as _wrapper
from autograd.tracer import Box, getval, isbox, new_box, notrace_primitives, trace_primitives_map, trace_stack
from autograd.util import toposort
from numpy.lib.array_utils import normalize_axis_index
from pyadjoint.overloaded_type import OverloadedType

from pyadjoint_utils.engine import Arrays, Aval, Map, NumPyArrays
from pyadjoint_utils.errors import ArgumentTypeError, ArgumentValueError, NotDifferentiableError
from pyadjoint_utils.overloading import overload

_FLOATING = "fc"


# Tracing ---------------------------------------------------------------------------------------------------------------

_levels = itertools.count()


def _new_level() -> int:
    """A level of tracing that lies above all others of this thread.

    autograd's own counter is shared between threads and not restored after an exception; a level that another thread
    took in between would mix up two derivatives. Ours only grows.
    """
    level = next(_levels)
    while level <= trace_stack.top:
        level = next(_levels)
    trace_stack.top = level
    return level


def _trace(f: Callable[..., Arrays], values: Arrays, roots: Sequence[Any]) -> tuple[Arrays, list[Any]]:
    """Run a function on boxed values; return its outputs and, for each, the node that made it or None."""
    level = _new_level()
    outputs = f(tuple([new_box(v, level, root) for v, root in zip(values, roots, strict=True)]))
    nodes = [y._node if isbox(y) and y._trace == level else None for y in outputs]
    for y, node in zip(outputs, nodes, strict=True):
        if node is None and isinstance(y, np.ndarray) and y.dtype.kind == "O":
            raise NotDifferentiableError(
                "A plain NumPy function met an autograd value and made an array of objects of it, which drops the "
                "derivative. Use the functions of autograd.numpy inside overload_autograd."
            )
    return tuple([y if node is None else y._value for y, node in zip(outputs, nodes, strict=True)]), nodes


class _Cotangent(VJPNode):
    """Node of reverse mode: every cotangent has the shape and dtype of the value that it belongs to."""

    __slots__ = ()
    parents: Any
    vjp: Any

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, argnums: Any, parents: Any) -> None:
        self.parents = parents
        self.vjp = _pull_back_of(fun, argnums, value, args, kwargs)


class _Tangent(JVPNode):
    """Node of forward mode; a function without a JVP takes the transpose of its VJP."""

    __slots__ = ()
    g: Any

    def __init__(self, value: Any, fun: Any, args: Any, kwargs: Any, argnums: Any, parents: Any) -> None:
        self.g = _push_forward(fun, argnums, [parent.g for parent in parents], value, args, kwargs)


class _End:
    """Stands for several outputs, where autograd's ``toposort`` takes one."""

    def __init__(self, parents: list[Any]) -> None:
        self.parents = parents


def _backward(roots: Sequence[Any], ends: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Pull cotangents of several outputs back to several inputs; None where nothing arrives."""
    gradients: dict[Any, Any] = {}
    for node, g in ends:
        gradients[node] = _added(gradients.get(node), g)
    order = toposort(_End([node for node, _ in ends]))
    next(order)
    for node in order:
        if node.parents:
            for parent, g in zip(node.parents, node.vjp(gradients.pop(node)[0]), strict=True):
                gradients[parent] = _added(gradients.get(parent), g)
    return [gradients[root][0] if root in gradients else None for root in roots]


def _added(total: Any, g: Any) -> Any:
    """Return a sum of cotangents in autograd's form, with whether it may be changed in place."""
    if total is None and type(g) not in sparse_object_types:
        return g, False
    return add_outgrads(total, g)


# One primitive ---------------------------------------------------------------------------------------------------------


def _meta(value: Any) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and dtype of what a box holds, None for what is no array."""
    while type(value) in Box.types:
        value = value._value
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape, value.dtype
    return ((), np.asarray(value).dtype) if isinstance(value, (float, complex)) else None


def _cast(g: Any, dtype: np.dtype) -> Any:
    """Project a derivative onto a dtype: a real value has a real one, and float32 stays float32."""
    meta = _meta(g)
    if meta is None or meta[1] == dtype or dtype.kind not in _FLOATING:
        return g
    if meta[1].kind == "c" and dtype.kind == "f":
        g = anp.real(g)
    return _wrapper._astype(g, dtype)


def _fitted(g: Any, meta: tuple[tuple[int, ...], np.dtype] | None, name: str) -> Any:
    if meta is None or type(g) in sparse_object_types:
        return g
    found = _meta(g)
    if found == meta:
        return g
    if found is not None and found[0] != meta[0]:
        raise NotDifferentiableError(
            f"autograd's rule for {name} gives a derivative of shape {found[0]} for a value of shape {meta[0]} with these "
            "arguments. Write the computation with other functions, or define a primitive with a rule of your own."
        )
    return _cast(g, meta[1])


def _name(fun: Any) -> str:
    return getattr(fun, "__name__", str(fun))


def _no_rule(fun: Any, args: Any, kwargs: Any, why: object) -> NotDifferentiableError:
    given = ", ".join([_described(a) for a in args] + [f"{key}={_described(value)}" for key, value in kwargs.items()])
    return NotDifferentiableError(
        f"autograd has no derivative of {_name(fun)}({given}): {why}. Write it with functions that have one, or "
        "give it a rule with autograd.extend.primitive and defvjp."
    )


def _described(value: Any) -> str:
    meta = _meta(value)
    return str(Aval(*meta)) if meta is not None else repr(value)[:40]


# Keyword arguments that change the derivative, though autograd's rules swallow them.
_UNSEEN = {"where", "initial", "correction", "mean", "out"}
_DEFAULTS = (None, np._NoValue)
_RULE_ERRORS = (NotImplementedError, AssertionError, KeyError, TypeError, NameError, IndexError)


def _apply(fun: Any, args: Any, kwargs: Any, rule: Callable[..., Any], *given: Any) -> Any:
    """Call a rule of autograd's; one that does not know these arguments fails in many ways."""
    for key in _UNSEEN.intersection(kwargs):
        if not any(kwargs[key] is default for default in _DEFAULTS):
            raise _no_rule(fun, args, kwargs, f"its rule does not know {key}=")
        kwargs = {other: value for other, value in kwargs.items() if other != key}
    try:
        return rule(*given, args, kwargs)
    except NotDifferentiableError:
        raise
    except _RULE_ERRORS as error:
        raise _no_rule(fun, args, kwargs, f"{type(error).__name__}: {error}") from error


def _pull_back_of(fun: Any, argnums: Any, value: Any, args: Any, kwargs: Any) -> Callable[[Any], list[Any]]:
    """Return the VJP of one call: from the value's cotangent to those of the boxed arguments."""
    meta = _meta(value)
    if (meta is not None and meta[1].kind not in _FLOATING) or (fun in _CONSTANT and fun not in _VJPS):
        # Whole numbers and truth values are constant almost everywhere.
        return lambda g: [vspace(args[i]).zeros() for i in argnums]
    maker = _VJPS.get(fun) or primitive_vjps.get(fun)
    if maker is None:
        raise _no_rule(fun, args, kwargs, "there is no rule for it")
    rule = _apply(fun, args, kwargs, maker, argnums, value)
    metas = [_meta(args[i]) for i in argnums]

    def pull_back(g: Any) -> list[Any]:
        try:
            return [_fitted(x, m, _name(fun)) for x, m in zip(rule(g), metas, strict=True)]
        except np.linalg.LinAlgError:
            raise
        except (NotImplementedError, ValueError) as error:
            raise _no_rule(fun, args, kwargs, error) from error

    return pull_back


def _push_forward(fun: Any, argnums: Any, gs: list[Any], value: Any, args: Any, kwargs: Any) -> Any:
    """Return the tangent of one call."""
    meta = _meta(value)
    rule = None if fun in _TRANSPOSED else primitive_jvps.get(fun)
    if rule is None or (meta is not None and meta[1].kind not in _FLOATING):
        return _transposed(_pull_back_of(fun, argnums, value, args, kwargs), value, gs)
    g = _apply(fun, args, kwargs, rule, argnums, gs, value)
    found = _meta(g)
    if meta is not None and found is not None and found[0] != meta[0]:
        g = anp.add(g, np.zeros(meta[0], meta[1]))
    return _fitted(g, meta, _name(fun))


def _transposed(pull_back: Callable[[Any], list[Any]], value: Any, gs: list[Any]) -> Any:
    """The transpose of a VJP is the JVP, and a linear map can be transposed at any point."""
    # Not at zero, where autograd's rule of eigh takes a short cut.
    point, root = vspace(value).ones(), _Cotangent.new_root()
    _, nodes = _trace(lambda box: tuple(pull_back(box[0])), (point,), [root])
    ends = [(node, g) for node, g in zip(nodes, gs, strict=True) if node is not None]
    (tangent,) = _backward([root], ends)
    return vspace(value).zeros() if tangent is None else tangent


# Rules that autograd lacks, or has wrong ------------------------------------------------------------------------------


def _rules(*vjps: Callable[..., Any]) -> Callable[..., Any]:
    """One VJP per argument, in the form of autograd's ``defvjp``."""

    def maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], list[Any]]:
        pulls = [vjps[i](ans, *args, **kwargs) for i in argnums]
        return lambda g: [pull(g) for pull in pulls]

    return maker


def _composed(composition: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a function that equals a composition of functions with right rules."""

    def maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], list[Any]]:
        def f(boxes: Arrays) -> Arrays:
            filled = list(args)
            for i, box in zip(argnums, boxes, strict=True):
                filled[i] = box
            return (composition(*filled, **kwargs),)

        values, roots = tuple([args[i] for i in argnums]), [_Cotangent.new_root() for _ in argnums]
        _, (node,) = _trace(f, values, roots)

        def pull_back(g: Any) -> list[Any]:
            found = _backward(roots, [] if node is None else [(node, g)])
            return [vspace(v).zeros() if x is None else x for x, v in zip(found, values, strict=True)]

        return pull_back

    return maker


def _moved(function: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a function that only moves, repeats or leaves out the entries of its first argument."""

    def composition(x: Any, *args: Any, **kwargs: Any) -> Any:
        places = function(np.arange(anp.size(x)).reshape(anp.shape(x)), *args, **kwargs)
        return anp.ravel(x)[places]

    return _composed(composition)


def _either(choose: Callable[..., bool], rule: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for the calls that ``choose(*args, **kwargs)`` accepts and another one for the rest."""

    def maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
        return (rule if choose(*args, **kwargs) else other)(argnums, ans, args, kwargs)

    return maker


def _zero(ans: Any, *args: Any, **kwargs: Any) -> Any:
    return lambda g: vspace(args[0]).zeros()


def _where_vjp(branch: int) -> Callable[..., Any]:
    def vjp(ans: Any, condition: Any, *branches: Any) -> Any:
        def chosen(g: Any) -> Any:
            return anp.where(condition, *((g, 0.0) if branch == 0 else (0.0, g)))

        # autograd's own rule forgets that a branch may have been broadcast.
        return _unbroadcast(branches[branch], chosen)

    return vjp


def _unbroadcast(target: Any, pull: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return numpy_vjps.unbroadcast_f(target, pull)


def _sign_vjp(ans: Any, x: Any) -> Any:
    if not anp.iscomplexobj(x):
        return lambda g: vspace(x).zeros()
    return lambda g: -1j * anp.conj(ans) * anp.real(1j * g * ans) / anp.abs(x)


def _dot_vjp(argnum: int) -> Callable[..., Any]:
    tensordot_vjp = (numpy_vjps.tensordot_vjp_0, numpy_vjps.tensordot_vjp_1)[argnum]

    def vjp(ans: Any, a: Any, b: Any) -> Any:
        if not anp.ndim(a) or not anp.ndim(b):
            return _unbroadcast((a, b)[argnum], lambda g: g * (b, a)[argnum])
        return tensordot_vjp(ans, a, b, ([anp.ndim(a) - 1], [max(anp.ndim(b) - 2, 0)]))

    return vjp


def _slogdet_vjp(ans: Any, x: Any) -> Any:
    def vjp(g: Any) -> Any:
        size = g[1] + 0.0
        if anp.iscomplexobj(x):  # the sign turns with the matrix, which autograd's own rule leaves out
            size = size - 1j * anp.real(1j * ans[0] * g[0])
        return anp.reshape(size, (*anp.shape(size), 1, 1)) * anp.swapaxes(anp.linalg.inv(x), -1, -2)

    return vjp


def _eigh_maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    native = primitive_vjps[anp.linalg.eigh](argnums, ans, args, kwargs)

    def vjp(g: Any) -> Any:
        if not isbox(g):
            return native(g)
        # The native rule looks whether the eigenvectors' cotangent vanishes; its derivative must not depend on that.
        one, nothing = np.ones(anp.shape(ans[1])), np.zeros(anp.shape(ans[0]))
        return [a - b for a, b in zip(native((g[0], g[1] + one)), native((nothing, one)), strict=True)]

    return vjp


def _product(x: Any, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
    """``prod`` in pairs, so that zeros among the factors do no harm."""
    ndim = anp.ndim(x)
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple([normalize_axis_index(a, ndim) for a in axes])
    rest = [a for a in range(ndim) if a not in axes]
    shape = anp.shape(x)
    count = int(np.prod([shape[a] for a in axes], dtype=int))
    x = anp.reshape(anp.transpose(x, (*axes, *rest)), (count, *[shape[a] for a in rest]))
    while count > 1:
        half = count // 2
        x = anp.concatenate((x[:half] * x[half : 2 * half], x[2 * half :]))
        count -= half
    return anp.reshape(x, tuple([1 if a in axes else n for a, n in enumerate(shape) if keepdims or a not in axes]))


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    if axis is None and ord is not None and anp.ndim(x) == 2:
        axis = (0, 1)
    if isinstance(axis, tuple) and len(axis) == 2 and ord not in (None, "fro"):
        raise NotImplementedError(f"the norm of matrices with ord={ord!r} and these axes")
    size = anp.abs(x)
    if ord in (1, np.inf, -np.inf) and not isinstance(axis, tuple):
        return {1: anp.sum, np.inf: anp.max, -np.inf: anp.min}[ord](size, axis=axis, keepdims=keepdims)
    if ord in (None, 2, "fro"):
        return anp.sqrt(anp.sum(anp.real(x * anp.conj(x)), axis=axis, keepdims=keepdims))
    if not ord > 1:
        raise NotImplementedError(f"the norm with ord={ord!r}")
    return anp.sum(size**ord, axis=axis, keepdims=keepdims) ** (1.0 / ord)


def _clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    for bound in (a_min, min):
        x = x if bound is None else anp.maximum(x, bound)
    for bound in (a_max, max):
        x = x if bound is None else anp.minimum(x, bound)
    return x


def _clip_maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    # autograd's own rule knows numbers as bounds, and no derivative of them.
    native = argnums == (0,) and len(args) == 3 and not kwargs and not any(anp.ndim(bound) for bound in args[1:])
    return (primitive_vjps[anp.clip] if native else _composed(_clip))(argnums, ans, args, kwargs)


def _cumprod(x: Any, axis: Any = None, dtype: Any = None) -> Any:
    """``cumprod`` by doubling, so that zeros among the factors do no harm."""
    x = anp.ravel(x) if axis is None else anp.moveaxis(x, axis, 0)
    step = 1
    while step < len(x):
        x = anp.concatenate((x[:step], x[step:] * x[:-step]))
        step *= 2
    return x if axis is None else anp.moveaxis(x, 0, axis)


def _linspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, *, dtype: Any = None, axis: int = 0) -> Any:
    ndim = max(anp.ndim(start), anp.ndim(stop))
    t = np.linspace(0.0, 1.0, num, endpoint).reshape((num,) + (1,) * ndim)
    return anp.moveaxis(start * (1.0 - t) + stop * t, 0, axis)


def _pad(x: Any, width: Any, mode: str = "constant", **kwargs: Any) -> Any:
    if mode not in ("constant", "edge", "reflect", "symmetric", "wrap") or kwargs.get("reflect_type", "even") != "even":
        raise NotImplementedError(f"pad with mode={mode!r}")
    size = anp.size(x)
    padding: dict[str, Any] = {"mode": mode} | ({"constant_values": size} if mode == "constant" else {})
    places = np.pad(np.arange(size).reshape(anp.shape(x)), width, **padding)
    return anp.concatenate((anp.ravel(x), np.zeros(1)))[places]


def _rfft(x: Any, n: int | None = None, axis: int = -1, norm: Any = None) -> Any:
    size = anp.shape(x)[axis] if n is None else n
    return _cut(anp.fft.fft(x, n, axis, norm), slice(size // 2 + 1), axis)


def _irfft(x: Any, n: int | None = None, axis: int = -1, norm: Any = None) -> Any:
    size = 2 * (anp.shape(x)[axis] - 1) if n is None else n
    half = size // 2 + 1
    missing = [(0, 0)] * anp.ndim(x)
    missing[axis] = (0, max(half - anp.shape(x)[axis], 0))
    x = anp.pad(_cut(x, slice(half), axis), missing, "constant")
    tail = anp.conj(_cut(x, slice((size + 1) // 2 - 1, 0, -1), axis))
    return anp.real(anp.fft.ifft(anp.concatenate((x, tail), axis), None, axis, norm))


def _cut(x: Any, part: slice, axis: int) -> Any:
    index = [slice(None)] * anp.ndim(x)
    index[axis] = part
    return x[tuple(index)]


def _known_norm(x: Any, *args: Any, norm: Any = None, **kwargs: Any) -> bool:
    return (args[2] if len(args) > 2 else norm) in (None, "ortho")


def _refused(why: str) -> Callable[..., Any]:
    def maker(*call: Any) -> Any:
        raise NotImplementedError(why)

    return maker


def _cholesky_vjp(ans: Any, x: Any, upper: bool = False) -> Any:
    if upper:
        raise NotImplementedError("cholesky with upper=True")
    lower = np.tril(np.ones(anp.shape(x)[-2:])) - 0.5 * np.eye(anp.shape(x)[-1])
    transposed, conjugate = anp.swapaxes(ans, -1, -2), anp.swapaxes(anp.conj(ans), -1, -2)

    def vjp(g: Any) -> Any:
        inner = anp.linalg.solve(transposed, lower * anp.matmul(transposed, g))
        s = anp.swapaxes(anp.linalg.solve(conjugate, anp.swapaxes(inner, -1, -2)), -1, -2)
        # cholesky reads the lower triangle alone, and of its diagonal the real part.
        return lower * (s + anp.swapaxes(anp.conj(s), -1, -2))

    return vjp


def _sort(x: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    x, axis = (anp.ravel(x), 0) if axis is None else (x, axis)
    return anp.take_along_axis(x, np.argsort(getval(x), axis, "stable"), axis)


_linalg = anp.linalg
_VJPS: dict[Any, Callable[..., Any]] = {
    # autograd.numpy.where is a wrapper around the primitive.
    trace_primitives_map[np.where]: _rules(_zero, _where_vjp(0), _where_vjp(1)),
    _wrapper._astype: _rules(lambda ans, x, dtype, **kwargs: lambda g: g),
    anp.positive: _rules(lambda ans, x: lambda g: g),
    anp.cbrt: _rules(lambda ans, x: lambda g: g / (3.0 * ans**2)),
    anp.float_power: _composed(lambda x, y: anp.power(x, y)),
    anp.sign: _rules(_sign_vjp),
    anp.full_like: _rules(_zero, lambda ans, x, value, **kwargs: _unbroadcast(value, lambda g: g)),
    anp.dot: _rules(_dot_vjp(0), _dot_vjp(1)),
    anp.vdot: _composed(lambda a, b: anp.sum(anp.conj(anp.ravel(a)) * anp.ravel(b))),
    anp.outer: _composed(lambda a, b: anp.reshape(a, (-1, 1)) * anp.reshape(b, (1, -1))),
    anp.prod: _composed(_product),
    anp.cumprod: _composed(_cumprod),
    anp.copy: _rules(lambda ans, x, **kwargs: lambda g: g),
    anp.matrix_transpose: _composed(lambda x: anp.swapaxes(x, -1, -2)),
    _linalg.matrix_transpose: _composed(lambda x: anp.swapaxes(x, -1, -2)),
    anp.clip: _clip_maker,
    anp.linspace: _composed(_linspace),
    anp.broadcast_to: _composed(lambda x, shape: x * np.ones(shape, x.dtype)),
    anp.trace: _composed(lambda x, *args, **kwargs: anp.sum(anp.diagonal(x, *args, **kwargs), axis=-1)),
    anp.diag: _either(lambda x, k=0: anp.ndim(x) == 1, primitive_vjps[anp.diag], _moved(np.diag)),
    anp.pad: _composed(_pad),
    anp.sort: _composed(_sort),
    anp.ptp: _composed(lambda x, *args, **kwargs: anp.max(x, *args, **kwargs) - anp.min(x, *args, **kwargs)),
    anp.fft.rfft: _composed(_rfft),
    anp.fft.irfft: _composed(_irfft),
    _linalg.pinv: _either(
        lambda x, *args, **kwargs: not anp.iscomplexobj(x),
        primitive_vjps[_linalg.pinv],
        _refused("its rule is for real matrices"),
    ),
    _linalg.cholesky: _rules(_cholesky_vjp),
    _linalg.slogdet: _rules(_slogdet_vjp),
    _linalg.eigh: _eigh_maker,
    _linalg.eigvalsh: _composed(lambda a, UPLO="L": _linalg.eigh(a, UPLO)[0]),
    _linalg._primitive_norm: _either(
        lambda x, ord=None, axis=None, keepdims=False: ord == "nuc" and axis is None and not keepdims,
        primitive_vjps[_linalg._primitive_norm],
        _composed(_norm),
    ),
}
for _moving in ("diagonal", "repeat", "tile", "roll", "flip", "rot90", "rollaxis", "take", "take_along_axis", "delete"):
    _VJPS[getattr(anp, _moving)] = _moved(getattr(np, _moving))
for _transform in (anp.fft.rfft2, anp.fft.irfft2, anp.fft.rfftn, anp.fft.irfftn):
    _VJPS[_transform] = _either(_known_norm, primitive_vjps[_transform], _refused("norm= other than 'ortho'"))
# Their JVPs are missing, wrong for negative axes, or not worth a rule beside the VJP above.
_TRANSPOSED = {
    *(anp.max, anp.min, _wrapper._primitive_var, _wrapper._primitive_std, _linalg._primitive_norm),
    *(anp.prod, anp.clip, anp.linspace, anp.pad, anp.sort, anp.diag),
}
# What autograd lists as constant almost everywhere, less what is not.
_CONSTANT = notrace_primitives[VJPNode]
for _node in (_Cotangent, _Tangent):
    notrace_primitives[_node] = _CONSTANT - {anp.sign, anp.full_like}


# The engine ------------------------------------------------------------------------------------------------------------


def _conj(value: Any) -> Any:
    # autograd's cotangents pair without conjugation; the tape's pair under Re<a, b>.
    meta = _meta(value)
    return anp.conj(value) if meta is not None and meta[1].kind == "c" else value


def _settled(value: Any) -> Any:
    """NumPy's scalars become 0-d arrays."""
    return value if isbox(value) or type(value) is np.ndarray else np.asarray(value)


def _sealed(array: Any) -> Any:
    """A view that cannot be written to: ``x += 1`` in a user's function would change what is on the tape."""
    if type(array) is np.ndarray and array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def _unboxed(leaf: Any) -> Any:
    """Open autograd's boxes of containers, so that the arrays in them are the leaves."""
    if not isinstance(leaf, (SequenceBox, DictBox)):
        return leaf
    value = getval(leaf)
    if isinstance(value, dict):
        return {key: _unboxed(container_take(leaf, key)) for key in value}
    items = [_unboxed(container_take(leaf, k)) for k in range(len(value))]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


class AutogradEngine(NumPyArrays):
    """autograd's functions and transformations of NumPy arrays."""

    name = "autograd"
    holds = "numpy"

    def is_tracer(self, leaf: Any) -> bool:
        return isinstance(leaf, Box)

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        leaves, structure = super().flatten(tree)
        if any(isinstance(leaf, (SequenceBox, DictBox)) for leaf in leaves):
            return super().flatten(self.unflatten(structure, [_unboxed(leaf) for leaf in leaves]))
        return leaves, structure

    def vjp_of(self, f: Map, n: int) -> Map:
        def vjp(x: Arrays, c: Arrays) -> Arrays:
            primals, roots = x[:n], [_Cotangent.new_root() for _ in range(n)]
            y, nodes = _trace(lambda boxes: f(boxes, c), primals, roots)
            ends = [
                (node, _fitted(_conj(yb), meta, f"output {k}"))
                for k, (node, yb, value) in enumerate(zip(nodes, x[n:], y, strict=True))
                if node is not None and (meta := _meta(value)) is not None and meta[1].kind in _FLOATING
            ]
            gradients = _backward(roots, ends)
            return tuple(
                [
                    vspace(p).zeros() if g is None else _settled(_conj(g))
                    for g, p in zip(gradients, primals, strict=True)
                ]
            )

        return vjp

    def jvp_of(self, f: Map, n: int) -> Map:
        def jvp(x: Arrays, c: Arrays) -> Arrays:
            roots = [_Tangent.new_root(dx) for dx in x[n:]]
            y, nodes = _trace(lambda boxes: f(boxes, c), x[:n], roots)
            dy = [vspace(v).zeros() if node is None else node.g for v, node in zip(y, nodes, strict=True)]
            return tuple([_settled(v) for v in (*y, *dy)])

        return jvp

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        def run(x: Arrays, c: Arrays) -> Arrays:
            return f(tuple([_sealed(a) for a in x]), tuple([_sealed(a) for a in c]))

        return run

    def checkpoint(self, f: Map) -> Map:
        @primitive
        def run(n: int, *arrays: Any) -> Arrays:
            return tuple([_settled(y) for y in f(arrays[:n], arrays[n:])])

        def between(argnums: Any, args: Any) -> tuple[Map, Arrays]:
            def g(x: Arrays, c: Arrays) -> Arrays:
                filled = list(args)
                for i, value in zip(argnums, x, strict=True):
                    filled[i] = value
                return f(tuple(filled[1 : 1 + filled[0]]), tuple(filled[1 + filled[0] :]))

            return g, tuple([args[i] for i in argnums])

        def vjp(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
            local, x = between(argnums, args)

            def pull_back(yb: Any) -> Any:
                # A rule of autograd's pairs without conjugation, a map of ours with it.
                seeds = [_conj(yb[k]) for k in range(len(ans))]
                return [_conj(xb) for xb in self.vjp_of(local, len(x))((*x, *seeds), ())]

            return pull_back

        def jvp(argnums: Any, dx: Any, ans: Any, args: Any, kwargs: Any) -> Arrays:
            local, x = between(argnums, args)
            return self.jvp_of(local, len(x))((*x, *dx), ())[len(ans) :]

        defvjp_argnums(run, vjp)
        defjvp_argnums(run, jvp)

        def checkpointed(x: Arrays, c: Arrays) -> Arrays:
            y = run(len(x), *x, *c)
            return tuple([y[k] for k in range(len(y))])

        return checkpointed

    def function(self, name: str) -> Callable[..., Any] | None:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        found: Any = anp
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found) or isinstance(found, type):
            return None
        return found if _has_rule(found) else None


def _has_rule(function: Any) -> bool:
    # What is no primitive is composed of primitives.
    known = function in _VJPS or function in primitive_vjps or function in _CONSTANT
    return known or not hasattr(function, "_is_autograd_primitive")


_FUNCTIONS: dict[str, Callable[..., Any]] = {"getitem": operator.getitem, "astype": _wrapper._astype}
engine = AutogradEngine()
overload_autograd = functools.partial(overload, engine=engine)


# Point maps ------------------------------------------------------------------------------------------------------------

Spec = tuple[int, ...]


def point_map(
    source: Spec | tuple[Spec, ...],
    target: Spec | tuple[Spec, ...],
    bare: bool = False,
    pointwise: bool = True,
    dtype: Any = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that overloads an autograd function of fields, with the shapes of its arguments declared.

    Args:
        source: one shape per argument, where -1 is the axis of points and ``()`` a scalar parameter, for example
            ``((-1,), (-1, 2), ())``; or a single shape such as ``(-1, 2)`` for a function of one array.
        target: the shape of the result, or a tuple of shapes for a function that returns a tuple.
        bare: True for a function ``f(u, g, p)`` of separate arguments, False for ``f((u, g, p))`` of one tuple.
        pointwise: the result at a point depends on the arguments at that point and on the scalars alone.
        dtype: NumPy dtype to which Python numbers, NumPy arrays and integer arrays are cast; floating values on the
            tape keep theirs. None casts nothing.

    Returns:
        A decorator; the decorated function is called with its arguments or with one tuple of them, and returns
        :class:`ndarray` values that are on the tape.

    Raises:
        ArgumentTypeError: a shape is no tuple of ints; in a call, an argument is no array or number.
        ArgumentValueError: a shape has several axes of points; in a call, the number of arguments or the shape of an
            argument or result does not fit.

    Example:
        >>> import autograd.numpy as np
        >>> from pyadjoint_utils import array, point_map
        >>> @point_map(((-1,), (-1, 2), ()), (-1, 2), bare=True)
        ... def flux(u, g, p):
        ...     return np.reshape(u**p, (-1, 1)) * g
        >>> flux(array([1.0, 2.0]), array([[1.0, 2.0], [3.0, 4.0]]), 2.0).shape
        (2, 2)
    """
    inputs, single = _specs(source, "source")
    outputs, one_output = _specs(target, "target")
    _check_specs(inputs, outputs, pointwise)

    def decorate(f: Callable[..., Any]) -> Callable[..., Any]:
        name = getattr(f, "__name__", type(f).__name__)

        @functools.wraps(f)
        def checked(*args: Any) -> Any:
            points = _check_arguments(name, inputs, args)
            result = f(*args) if bare or single else f(args)
            _check_results(name, outputs, (result,) if one_output else result, points)
            return result

        with_points = [-1 in spec for spec in inputs]
        options: dict[str, Any] = {"name": name}
        if pointwise:
            options |= {"pointwise": with_points, "out_pointwise": [-1 in spec for spec in outputs]}
        mapped = overload_autograd(checked, **options)

        @functools.wraps(f)
        def call(*args: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], (tuple, list)):
                args = tuple(args[0])
            _check_arguments(name, inputs, args)
            return mapped(*(args if dtype is None else [_cast_constant(a, np.dtype(dtype)) for a in args]))

        return call

    return decorate


def _specs(spec: Any, which: str) -> tuple[tuple[Spec, ...], bool]:
    """Return the shapes, and whether there was a single one that is not in a tuple."""
    if isinstance(spec, (tuple, list)):
        if all(isinstance(n, int) for n in spec):
            return (tuple(spec),), True
        if all(isinstance(s, (tuple, list)) and all(isinstance(n, int) for n in s) for s in spec):
            return tuple([tuple(s) for s in spec]), False
    raise ArgumentTypeError(
        f"point_map: {which} is a shape or a tuple of shapes, such as (-1, 2) or ((-1,), (-1, 2), ()); got {spec!r}."
    )


def _check_specs(inputs: Sequence[Spec], outputs: Sequence[Spec], pointwise: bool) -> None:
    has_points = any(-1 in spec for spec in inputs)
    for which, specs in (("source", inputs), ("target", outputs)):
        for k, spec in enumerate(specs):
            where = f"point_map: {which}[{k}] = {spec}"
            if spec.count(-1) > 1 or any(n < -1 for n in spec):
                raise ArgumentValueError(
                    f"{where}: a shape has at most one axis of points, written -1, and sizes >= 0 otherwise."
                )
            if pointwise and -1 in spec[1:]:
                raise ArgumentValueError(
                    f"{where}: the axis of points comes first in a pointwise map. Write ({-1}, ...), or pointwise=False."
                )
    if pointwise and has_points and not all(-1 in spec for spec in outputs):
        raise ArgumentValueError(
            f"point_map: target {tuple(outputs)} has no axis of points, but source has. A map that mixes points is not "
            "pointwise: write pointwise=False."
        )
    if not has_points and any(-1 in spec for spec in outputs):
        raise ArgumentValueError(
            f"point_map: target {tuple(outputs)} has an axis of points (-1), but source {tuple(inputs)} has none."
        )


def _shape(name: str, path: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, (int, float, complex)):
        return ()
    if not hasattr(value, "shape"):
        raise ArgumentTypeError(
            f"{name}: {path} is an array or a number; got {type(value).__name__}. Write array(...) around lists."
        )
    return tuple(value.shape)


def _check_arguments(name: str, specs: Sequence[Spec], args: Sequence[Any]) -> int | None:
    """Raise if the arguments do not have the declared shapes; return the number of points."""
    if len(args) != len(specs):
        raise ArgumentValueError(
            f"{name} takes {len(specs)} argument(s) of shapes {tuple(specs)}, separately or in one tuple; got {len(args)}."
        )
    points: int | None = None
    for k, (spec, value) in enumerate(zip(specs, args, strict=True)):
        path = f"args[{k}]"
        points = _fit(f"{name}: {path}", spec, _shape(name, path, value), getattr(value, "dtype", None), points)
    return points


def _check_results(name: str, specs: Sequence[Spec], results: Any, points: int | None) -> None:
    if not isinstance(results, (tuple, list)) or len(results) != len(specs):
        found = f"{len(results)} value(s)" if isinstance(results, (tuple, list)) else type(results).__name__
        raise ArgumentValueError(
            f"{name} has the target {tuple(specs)}, a tuple of {len(specs)} array(s); it returns {found}."
        )
    for k, (spec, value) in enumerate(zip(specs, results, strict=True)):
        path = f"result[{k}]"
        _fit(f"{name}: {path}", spec, _shape(name, path, value), getattr(value, "dtype", None), points)


def _fit(where: str, spec: Spec, shape: tuple[int, ...], dtype: Any, points: int | None) -> int | None:
    """Raise if a shape is not the declared one with this number of points; return the number of points."""
    fits = len(shape) == len(spec) and all(n in (-1, size) for n, size in zip(spec, shape, strict=True))
    found = shape[spec.index(-1)] if fits and -1 in spec else None
    if fits and (found is None or points in (None, found)):
        return points if found is None else found
    given = f"{shape}" if dtype is None else f"{shape} ({dtype})"
    if fits:
        raise ArgumentValueError(
            f"{where} has the shape {given}, so {found} points, but another argument has {points}; all arrays of a "
            "point map have the same number of points."
        )
    expected = str(spec) if points is None else str(tuple([points if n == -1 else n for n in spec]))
    raise ArgumentValueError(
        f"{where} has the shape {given}, but {spec} is declared (-1 is the axis of points); reshape it to {expected}."
    )


def _cast_constant(value: Any, dtype: np.dtype) -> Any:
    if isinstance(value, (int, float, complex)) and not hasattr(value, "block_variable"):
        return np.asarray(value, dtype)
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value, dtype)
    kind = np.dtype(value.dtype).kind if isinstance(value, OverloadedType) and hasattr(value, "dtype") else ""
    return value.astype(dtype) if kind in ("b", "i", "u") else value
