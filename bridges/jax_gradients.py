"""The tangent of a number whose gradient is known, as a primitive of JAX: a product of the gradient with directions.

Its transpose by the cotangent 1, as in ``jax.grad``, is the gradient itself, so that nothing is computed for it.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

product_p = Primitive("tape_product")


def product(gradient: Sequence[Any], directions: Sequence[Any], dtype: Any) -> Any:
    """Return ``Re<g, dx>``, summed over the arguments.

    Args:
        gradient: an array per argument.
        directions: the same.
        dtype: of the result, a real one.
    """
    return product_p.bind(*gradient, *directions, dtype=dtype)


def _value(*x: Any, dtype: Any) -> Any:
    m = len(x) // 2
    terms = [jnp.sum(jnp.real(_conj(g) * dx)) for g, dx in zip(x[:m], x[m:], strict=True)]
    return functools.reduce(operator.add, terms).astype(dtype)


def _others(x: Sequence[Any]) -> Sequence[Any]:
    """What each of the arguments is multiplied with."""
    m = len(x) // 2
    return (*x[m:], *x[:m])


def _conj(value: Any) -> Any:
    return jnp.conj(value) if value.dtype.kind == "c" else value


def _jvp(x: Sequence[Any], tangents: Sequence[Any], *, dtype: Any) -> Any:
    pairs = [(t, other) for t, other in zip(tangents, _others(x), strict=True) if type(t) is not ad.Zero]
    moved, fixed = zip(*pairs, strict=True)
    return product_p.bind(*x, dtype=dtype), product(moved, fixed, dtype)


def _transpose(cotangent: Any, *x: Any, dtype: Any) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [ad.Zero(a.aval) if ad.is_undefined_primal(a) else None for a in x]
    one = not isinstance(cotangent, jax.core.Tracer) and np.asarray(cotangent) == 1
    return [
        (_conj(other) if one else (cotangent * _conj(other)).astype(other.dtype)) if ad.is_undefined_primal(a) else None
        for a, other in zip(x, _others(x), strict=True)
    ]


def _batch(x: Sequence[Any], dims: Sequence[Any], *, dtype: Any) -> tuple[Any, int]:
    return jax.vmap(functools.partial(_value, dtype=dtype), in_axes=tuple(dims))(*x), 0


product_p.def_impl(jax.jit(_value, static_argnames="dtype"))
product_p.def_abstract_eval(lambda *x, dtype: jax.core.ShapedArray((), dtype))
mlir.register_lowering(product_p, mlir.lower_fun(_value, multiple_results=False))
ad.primitive_jvps[product_p] = _jvp
ad.primitive_transposes[product_p] = _transpose
batching.primitive_batchers[product_p] = _batch
