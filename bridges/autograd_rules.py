"""Rules that autograd lacks or has wrong, and its functions by NumPy's names."""

import operator
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.core import primitive_vjps, vspace
from autograd.numpy import numpy_vjps, numpy_wrapper
from autograd.numpy.numpy_vjps import unbroadcast_f
from autograd.tracer import isbox, notrace_primitives, trace_primitives_map

from bridges import autograd_compositions as compositions
from bridges.autograd_tracing import CONSTANT, TRANSPOSED, VJPS, Cotangent, Tangent, backward, trace
from pyadjoint_utils.cardinal_sine import sinc_of
from pyadjoint_utils.engine import Arrays

# Kinds of rules --------------------------------------------------------------------------------------------------------


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

        values, roots = tuple([args[i] for i in argnums]), [Cotangent.new_root() for _ in argnums]
        _, (node,) = trace(f, values, roots)

        def pull_back(g: Any) -> list[Any]:
            found = backward(roots, [] if node is None else [(node, g)])
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


def _refused(why: str) -> Callable[..., Any]:
    def maker(*call: Any) -> Any:
        raise NotImplementedError(why)

    return maker


def _zero(ans: Any, *args: Any, **kwargs: Any) -> Any:
    return lambda g: vspace(args[0]).zeros()


def _same(ans: Any, *args: Any, **kwargs: Any) -> Any:
    return lambda g: g


# Rules of one function -------------------------------------------------------------------------------------------------


def _sign_vjp(ans: Any, x: Any) -> Any:
    if not anp.iscomplexobj(x):
        return _zero(ans, x)
    return lambda g: -1j * anp.conj(ans) * anp.real(1j * g * ans) / anp.abs(x)


def _dot_vjp(argnum: int) -> Callable[..., Any]:
    tensordot_vjp = (numpy_vjps.tensordot_vjp_0, numpy_vjps.tensordot_vjp_1)[argnum]

    def vjp(ans: Any, a: Any, b: Any) -> Any:
        if not anp.ndim(a) or not anp.ndim(b):
            return unbroadcast_f((a, b)[argnum], lambda g: g * (b, a)[argnum])
        return tensordot_vjp(ans, a, b, ([anp.ndim(a) - 1], [max(anp.ndim(b) - 2, 0)]))

    return vjp


def _clip_maker(argnums: Any, ans: Any, args: Any, kwargs: Any) -> Any:
    # autograd's own rule knows numbers as bounds, and no derivative of them.
    native = argnums == (0,) and len(args) == 3 and not kwargs and not any(anp.ndim(bound) for bound in args[1:])
    return (primitive_vjps[anp.clip] if native else _composed(compositions.clip))(argnums, ans, args, kwargs)


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


def _known_norm(x: Any, *args: Any, norm: Any = None, **kwargs: Any) -> bool:
    return (args[2] if len(args) > 2 else norm) in (None, "ortho")


# The table, with what is wrong in autograd -----------------------------------------------------------------------------

_linalg = anp.linalg
_norm = _linalg._primitive_norm  # norm() and where() wrap their primitives
_transpose = _composed(lambda x: anp.swapaxes(x, -1, -2))

# There is no rule.
VJPS |= {
    anp.positive: _rules(_same),
    anp.copy: _rules(_same),
    anp.flip: _rules(lambda ans, x, axis=None: lambda g: anp.flip(g, axis)),
    anp.cbrt: _rules(lambda ans, x: lambda g: g / (3.0 * ans**2)),
    anp.float_power: _composed(lambda x, y: anp.power(x, y)),
    anp.vdot: _composed(lambda a, b: anp.sum(anp.conj(anp.ravel(a)) * anp.ravel(b))),
    anp.cumprod: _composed(compositions.cumprod),
    anp.matrix_transpose: _transpose,
    _linalg.matrix_transpose: _transpose,
    anp.ptp: _composed(lambda x, *args, **kwargs: anp.max(x, *args, **kwargs) - anp.min(x, *args, **kwargs)),
    _linalg.eigvalsh: _composed(lambda a, UPLO="L": _linalg.eigh(a, UPLO)[0]),
}
for _moving in ("take", "take_along_axis", "delete"):
    VJPS[getattr(anp, _moving)] = _moved(getattr(np, _moving))

VJPS |= {
    # It forgets that a branch may have been broadcast.
    trace_primitives_map[np.where]: _rules(
        _zero,
        lambda ans, condition, x, y: unbroadcast_f(x, lambda g: anp.where(condition, g, 0.0)),
        lambda ans, condition, x, y: unbroadcast_f(y, lambda g: anp.where(condition, 0.0, g)),
    ),
    # It knows one axis alone.
    anp.roll: _rules(lambda ans, x, shift, axis=None: lambda g: anp.roll(g, np.negative(shift), axis)),
    # It warns of the imaginary part that it drops, and has the keywords of NumPy 1.
    numpy_wrapper._astype: _rules(_same),
    # It is taken for constant, which it is not for complex numbers.
    anp.sign: _rules(_sign_vjp),
    # It is taken for constant, also in the value.
    anp.full_like: _rules(_zero, lambda ans, x, value, **kwargs: unbroadcast_f(value, lambda g: g)),
    # It warns of the imaginary part that it drops where a real array meets a complex one.
    anp.dot: _rules(_dot_vjp(0), _dot_vjp(1)),
    # It knows vectors alone.
    anp.outer: _composed(lambda a, b: anp.reshape(a, (-1, 1)) * anp.reshape(b, (1, -1))),
    # It divides by the factors, and so by zero.
    anp.prod: _composed(compositions.prod),
    # It divides by zero.
    anp.sinc: _composed(sinc_of(anp.sin, anp.where)),
    # It knows numbers as bounds, and no derivative of them.
    anp.clip: _clip_maker,
    # It knows num= alone.
    anp.linspace: _composed(compositions.linspace),
    # It refuses new axes, and a shape that is no tuple.
    anp.broadcast_to: _composed(lambda x, shape: x * np.ones(shape, x.dtype)),
    # It knows offset= alone.
    anp.trace: _composed(lambda x, *args, **kwargs: anp.sum(anp.diagonal(x, *args, **kwargs), axis=-1)),
    # Of a matrix that is not square its derivative has another shape.
    anp.diag: _either(lambda x, k=0: anp.ndim(x) == 1, primitive_vjps[anp.diag], _moved(np.diag)),
    # It knows constants alone, and mode= has to be given.
    anp.pad: _composed(compositions.pad),
    # It knows vectors alone.
    anp.sort: _composed(compositions.sort),
    # They refuse odd lengths and are wrong for norm= other than "ortho".
    anp.fft.rfft: _composed(compositions.rfft),
    anp.fft.irfft: _composed(compositions.irfft),
    # It transposes where a complex matrix has to be conjugated too.
    _linalg.pinv: _either(
        lambda x, *args, **kwargs: not anp.iscomplexobj(x),
        primitive_vjps[_linalg.pinv],
        _refused("its rule is for real matrices"),
    ),
    # It spreads the derivative over both triangles, of which one is read, and forgets a conjugation.
    _linalg.cholesky: _rules(_cholesky_vjp),
    # It leaves out the sign of a complex determinant.
    _linalg.slogdet: _rules(_slogdet_vjp),
    # Its own derivative loses a term where the eigenvectors' cotangent vanishes.
    _linalg.eigh: _eigh_maker,
    # It is wrong for negative axes, and refuses keepdims= and the order 1.
    _norm: _either(
        lambda x, ord=None, axis=None, keepdims=False: ord == "nuc" and axis is None and not keepdims,
        primitive_vjps[_norm],
        _composed(compositions.norm),
    ),
}
for _moving in (
    "diagonal",  # it knows the last two axes of square matrices alone
    "repeat",  # it is wrong for negative axes, and knows one number of repeats alone
    "tile",  # it is wrong where axes are left out
    "rot90",  # it does not know axes=
    "rollaxis",  # it does not know negative axes
):
    VJPS[getattr(anp, _moving)] = _moved(getattr(np, _moving))
for _transform in (anp.fft.rfft2, anp.fft.irfft2, anp.fft.rfftn, anp.fft.irfftn):
    # They are wrong for norm= other than "ortho".
    VJPS[_transform] = _either(_known_norm, primitive_vjps[_transform], _refused("norm= other than 'ortho'"))
# Their JVPs are missing, wrong for negative axes, or not worth a rule beside the VJP above.
TRANSPOSED |= {
    *(anp.max, anp.min, anp.amax, anp.amin, numpy_wrapper._primitive_var, numpy_wrapper._primitive_std, _norm),
    *(anp.prod, anp.sinc, anp.clip, anp.linspace, anp.pad, anp.sort),
}
# What has a rule here is not constant.
notrace_primitives[Cotangent] = notrace_primitives[Tangent] = CONSTANT - VJPS.keys()


# Functions -------------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[..., Any]] = {"getitem": operator.getitem, "astype": numpy_wrapper._astype}


def function_named(name: str) -> Callable[..., Any] | None:
    """Return autograd's function of a NumPy name, or None; without a rule it is none."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    found: Any = anp
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) and not isinstance(found, type) and _has_rule(found) else None


def _has_rule(function: Any) -> bool:
    # What is no primitive is composed of primitives.
    known = function in VJPS or function in primitive_vjps or function in CONSTANT
    return known or not hasattr(function, "_is_autograd_primitive")
