"""JAX: every map is traced once and runs as one XLA program."""

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridges.jax_callbacks import movable, this_thread
from bridges.jax_inside import as_jax
from bridges.jax_programs import build, loop, seconds, split_vjp_of, work
from pyadjoint_utils.cardinal_sine import sinc_of
from pyadjoint_utils.engine import Arrays, Aval, Engine, Map, Work
from pyadjoint_utils.errors import ArgumentValueError
from pyadjoint_utils.overloading import overload
from pyadjoint_utils.registry import FEW

# The dtypes that exist in JAX only under 64-bit types.
_WIDE = {np.dtype(t) for t in (np.float64, np.complex128, np.int64, np.uint64)}
_NARROW = {np.dtype(np.int64): np.dtype(np.int32), np.dtype(np.uint64): np.dtype(np.uint32)}


def _hypot(a: Any, b: Any) -> Any:
    """JAX's own chooses the larger argument, so that second derivatives are zero where both are equal."""
    scale = jax.lax.stop_gradient(jnp.maximum(jnp.abs(a), jnp.abs(b)))
    scale = jnp.where((scale == 0) | jnp.isinf(scale), 1, scale)
    return scale * jnp.sqrt((a / scale) ** 2 + (b / scale) ** 2)


def _i0(x: Any) -> Any:
    """JAX's own has a derivative that is the constant zero at 0."""
    near = jnp.abs(x) < 8
    squared, series = jnp.where(near, x, 0.0) ** 2, 1.0
    for n in range(50, 0, -2):  # the next term is below a rounding of the sum
        series = 1.0 + squared / n**2 * series
    return jnp.where(near, series, jnp.i0(jnp.where(near, 8.0, x)))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "astype": lambda x, dtype: x.astype(dtype),
    "reshape": lambda x, shape: jnp.reshape(x, shape),
    "hypot": _hypot,
    "i0": _i0,
    "sinc": sinc_of(jnp.sin, jnp.where),
}


def _is_wide(avals: Sequence[Any]) -> bool:
    return any(a.dtype in _WIDE for a in avals) or jax.config.read("jax_enable_x64")


def _narrowed(array: np.ndarray) -> np.ndarray:
    """Integers are JAX's 32-bit ones, unless the user chose 64 bits: they must not make a float32 program wide."""
    dtype = _NARROW.get(array.dtype)
    if dtype is None or jax.config.read("jax_enable_x64"):
        return array
    if array.size and (array.min() < np.iinfo(dtype).min or array.max() > np.iinfo(dtype).max):
        raise ArgumentValueError(
            f"An integer array ({array.dtype}{list(array.shape)}) does not fit JAX's {dtype}. Enable 64-bit types with "
            'jax.config.update("jax_enable_x64", True), or pass it as float.'
        )
    return array.astype(dtype)


def _on_cpu(array: Any) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


class JaxEngine(Engine):
    """JAX arrays and transformations."""

    name = "jax"
    traces = True
    array_types = (type(jnp.zeros(())),)

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        if isinstance(source, np.ndarray):
            array = _narrowed(source if dtype is None else source.astype(dtype, copy=False))
            return self.enter_all([array])[0]
        with jax.enable_x64(True):
            array = jax.dlpack.from_dlpack(source)
            if this_thread.inside:
                array = jnp.asarray(movable(array))
            return array if dtype is None else array.astype(dtype)

    def enter_all(self, sources: Sequence[np.ndarray]) -> list[Any]:
        arrays = [_native(_narrowed(source)) for source in sources]
        with jax.enable_x64(_is_wide(arrays)):
            if jax.config.jax_disable_jit:  # programs are Python then, and return what they are given
                return [jnp.array(array) for array in arrays]
            # A program copies, in a third of the time of jnp.asarray. It may read NumPy's memory until it is done.
            copies = _copies(*arrays)
            return [a if isinstance(a, jax.core.Tracer) else a.block_until_ready() for a in copies]

    def argument(self, source: np.ndarray, dtype: np.dtype) -> np.ndarray:
        # Ten times faster than a JAX array; a copy, since programs read NumPy's memory after the call has returned.
        return np.array(source, dtype)

    def export(self, array: Any) -> Any:
        # Others take NumPy's view of few numbers in less time than they ask for JAX's memory.
        return np.asarray(array) if array.size <= FEW and _on_cpu(array) else array

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

    def zeros(self, aval: Aval, like: Any = None) -> Any:
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

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        return jax.vmap(f, in_axes=(tuple([0 if marked else None for marked in batched]), None))

    def dependencies_of(self, f: Map, x: Sequence[Aval], c: Sequence[Any], n: int) -> Any | None:
        from bridges.jax_dependencies import dependencies_of  # with scipy.sparse, which few need

        avals = [value if isinstance(value, Aval) else self.aval(value) for value in (*x, *c)]
        wide = any(aval.dtype in _WIDE for aval in avals) or jax.config.read("jax_enable_x64")
        return dependencies_of(f, x, c, n, wide)

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        # A new function object: jit keeps one cache per object, and maps can share one.
        return self.run(jax.jit(lambda x, c: f(x, c)), avals)

    def run(self, f: Map, avals: Sequence[Aval]) -> Map:
        wide: bool | None = None

        def call(x: Arrays, c: Arrays) -> Arrays:
            nonlocal wide
            if this_thread.inside:
                x, c = tuple([movable(a) for a in x]), tuple([movable(a) for a in c])
            if wide is None:  # decided once: all calls have the same dtypes
                wide = any(a.dtype in _WIDE for a in (*x, *c))
            if not wide or jax.enable_x64.value:
                return f(x, c)
            with jax.enable_x64(True):
                return f(x, c)

        return call

    def scope(self, functions: Iterable[Sequence[Aval]]) -> AbstractContextManager[Any]:
        wide = all(any(a.dtype in _WIDE for a in inputs) for inputs in functions)
        return jax.enable_x64(True) if wide else nullcontext()

    def checkpoint(self, f: Map) -> Map:
        return jax.checkpoint(f)

    merges = True
    loops = True

    def value_and_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> Map:
        def value_and_vjp(x: Arrays, c: Arrays) -> Arrays:
            def chosen(*x: Any) -> tuple[Arrays, Arrays]:
                y = f(x, c)
                return tuple([y[k] for k in outs]), y

            _, pull_back, y = jax.vjp(chosen, *x[:n], has_aux=True)
            return (*y, *[jnp.conj(xb) for xb in pull_back(tuple([jnp.conj(yb) for yb in x[n:]]))])

        return value_and_vjp

    def split_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map]:
        return split_vjp_of(f, n, outs)

    def inlined(self, f: Callable[[Arrays], Arrays], avals: Sequence[Aval]) -> Callable[[Arrays], Arrays]:
        # A function of 32-bit types keeps them also inside of a program that runs under 64-bit types.
        wide = _is_wide(avals)

        def call(arrays: Arrays) -> Arrays:
            with jax.enable_x64(wide):
                return f(arrays)

        return call

    def stop(self, array: Any) -> Any:
        return jax.lax.stop_gradient(array)

    def loop(
        self,
        body: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
        carry: Arrays,
        constants: Arrays,
        rows: Arrays,
        length: int,
        *,
        remake: bool = False,
    ) -> tuple[Arrays, Arrays]:
        return loop(body, carry, constants, rows, length, remake=remake)

    def picked(self, array: Any, places: Arrays) -> Any:
        return array.at[places].get(mode="promise_in_bounds", wrap_negative_indices=False)

    def build(self, f: Map, x: Arrays, c: Arrays, avals: Sequence[Aval], work: Work) -> Map:
        with jax.enable_x64(_is_wide(avals)):
            return build(f, x, c, work)

    def outputs_of(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> tuple[Aval, ...]:
        with jax.enable_x64(_is_wide(inputs)):
            shapes = tuple([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs])
            return tuple([Aval(y.shape, np.dtype(y.dtype)) for y in jax.eval_shape(f, shapes)])

    def work(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> Work:
        with jax.enable_x64(_is_wide(inputs)):
            return work(f, inputs)

    def seconds(self, work: Work, order: int) -> float:
        return seconds(work, order)

    def function(self, name: str) -> Callable[..., Any] | None:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        module: Any = jnp
        for part in name.split("."):
            module = getattr(module, part, None)
        return module


_add, _scale = jax.jit(operator.add), jax.jit(operator.mul)
_copies = jax.jit(lambda *arrays: arrays)
engine = JaxEngine()


def overload_jax(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Overload a function of JAX arrays for values on the tape; it is traced once per signature and runs as XLA programs.

    Args:
        function: takes and returns JAX arrays in nested containers; None to use as a decorator with options.
        **options: ``argnums, static_argnums, static_argnames, checkpoint, jit, pointwise, out_pointwise, name``, as for
            :func:`pyadjoint_utils.overload`.

    Returns:
        A function of arrays of any engine, taped or not; called with JAX tracers it is transparent.

    Example:
        >>> import jax.numpy as jnp
        >>> from pyadjoint_utils import array, overload_jax
        >>> f = overload_jax(lambda x, y: jnp.sum(x * y))
        >>> float(f(array([1.0, 2.0]), y=array([3.0, 4.0])))
        11.0
    """
    return overload(function, engine, **options)


__all__ = ["JaxEngine", "as_jax", "engine", "overload_jax"]
