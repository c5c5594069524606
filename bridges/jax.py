"""JAX: every map is traced once and runs as one XLA program."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyadjoint_utils.engine import Arrays, Aval, Engine, Map
from pyadjoint_utils.overloading import overload

_WIDE = {np.dtype(np.float64), np.dtype(np.complex128)}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "astype": lambda x, dtype: x.astype(dtype),
    "reshape": lambda x, shape: jnp.reshape(x, shape),
}


def _scoped(f: Callable[..., Any]) -> Callable[..., Any]:
    """Run under 64-bit types without touching the user's setting."""

    @functools.wraps(f)
    def call(*args: Any) -> Any:
        with jax.enable_x64(True):
            return f(*args)

    return call


class JaxEngine(Engine):
    """JAX arrays and transformations."""

    name = "jax"
    array_types = (type(jnp.zeros(())),)

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        if isinstance(source, np.ndarray):
            array = source if dtype is None else source.astype(dtype, copy=False)
            with jax.enable_x64(array.dtype.itemsize > 4 or jax.config.read("jax_enable_x64")):
                return jnp.asarray(array)
        with jax.enable_x64(True):
            array = jax.dlpack.from_dlpack(source)
            return array if dtype is None else array.astype(dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array)

    def aval(self, array: Any) -> Aval:
        return Aval(array.shape, array.dtype)

    def cast(self, array: Any, dtype: np.dtype) -> Any:
        with jax.enable_x64(True):
            return array.astype(dtype)

    def add(self, a: Any, b: Any) -> Any:
        with jax.enable_x64(a.dtype in _WIDE):
            return _add(a, b)

    def scale(self, array: Any, factor: complex) -> Any:
        with jax.enable_x64(array.dtype in _WIDE):
            return _scale(array, factor)

    def zeros(self, aval: Aval) -> Any:
        with jax.enable_x64(aval.dtype in _WIDE):
            return jnp.zeros(aval.shape, aval.dtype)

    def is_tracer(self, leaf: Any) -> bool:
        return isinstance(leaf, jax.core.Tracer)

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        return jax.tree_util.tree_flatten(tree)

    def unflatten(self, structure: Any, leaves: Sequence[Any]) -> Any:
        return jax.tree_util.tree_unflatten(structure, leaves)

    def vjp_of(self, f: Map, n: int) -> Map:
        def vjp(x: Arrays, c: Arrays) -> Arrays:
            _, pull_back = jax.vjp(lambda *x: f(x, c), *x[:n])
            # JAX's cotangents pair without conjugation; the tape's pair under Re<a, b>.
            return tuple([jnp.conj(xb) for xb in pull_back(tuple([jnp.conj(yb) for yb in x[n:]]))])

        return vjp

    def jvp_of(self, f: Map, n: int) -> Map:
        def jvp(x: Arrays, c: Arrays) -> Arrays:
            y, dy = jax.jvp(lambda *x: f(x, c), tuple(x[:n]), tuple(x[n:]))
            return (*y, *dy)

        return jvp

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        # A new function object: jit keeps one cache per object, and maps can share one.
        jitted = jax.jit(lambda x, c: f(x, c))
        return _scoped(jitted) if any(aval.dtype in _WIDE for aval in avals) else jitted

    def checkpoint(self, f: Map) -> Map:
        return jax.checkpoint(f)

    def function(self, name: str) -> Callable[..., Any] | None:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        module: Any = jnp
        for part in name.split("."):
            module = getattr(module, part, None)
        return module


_add, _scale = jax.jit(operator.add), jax.jit(operator.mul)
engine = JaxEngine()
overload_jax = functools.partial(overload, engine=engine)
