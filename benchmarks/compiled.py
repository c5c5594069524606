"""Compiled tapes beside the same computation written by hand in JAX, in one run."""

import importlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.tables import Row, Table
from benchmarks.timing import Timing, in_turns
from pyadjoint_utils import (
    Control,
    ReducedFunctional,
    Tape,
    array,
    get_engine,
    overload,
    set_working_tape,
)


class Case:
    """A program on a tape, and the same function written by hand.

    Args:
        name: what it is.
        record: the program; takes values of the tape and returns a scalar.
        native: the function of JAX arrays.
        points: the controls' values.
        second_order: whether the native Hessian action can be had in reasonable time.
        **options: of :meth:`ReducedFunctional.compile`.
    """

    def __init__(
        self,
        name: str,
        record: Callable[..., Any],
        native: Callable[..., Any],
        *points: Any,
        second_order: bool = True,
        **options: Any,
    ) -> None:
        self.name, self.record, self.native, self.points = name, record, native, list(points)
        self.second_order, self.options = second_order, options

    def rows(self) -> list[tuple[str, Timing, Timing]]:
        """Return (what, compiled, native)."""
        import jax

        with set_working_tape(Tape()):
            x = [array(p) for p in self.points]
            slow = ReducedFunctional(self.record(*x), [Control(v) for v in x])
        every = tuple(range(len(x)))
        native = {
            "value": jax.jit(self.native),
            "both": jax.jit(jax.value_and_grad(self.native, every)),
            "hessian": jax.jit(lambda p, d: jax.jvp(jax.grad(self.native, every), p, d)[1]),
        }
        points = tuple(self.points)
        only_values = slow.compile(**self.options)
        only_values(x)
        fast = slow.compile(**self.options)
        fast.value_and_derivative(x)
        calls = [
            ("value", lambda: only_values(x)._value, lambda: native["value"](*points)),
            ("value and gradient", lambda: _bare(fast.value_and_derivative(x)), lambda: native["both"](*points)),
            ("value, then gradient", lambda: _bare((fast(x), fast.derivative())), lambda: native["both"](*points)),
        ]
        if self.second_order:
            calls.append(
                (
                    "Hessian action",
                    lambda: _bare((None, fast.hessian(x))),
                    lambda: native["hessian"](points, points),
                )
            )
        wait = jax.block_until_ready
        return [(what, *in_turns(ours, by_hand, wait=wait, repeats=100)) for what, ours, by_hand in calls]

    def beginning(self) -> list[tuple[str, float, float]]:
        """Return (what, seconds of the tape until it is there, the same of native JAX), compiling included."""
        import jax

        results = []
        for what in ("value", "value and gradient"):
            both = what != "value"
            with set_working_tape(Tape()):
                x = [array(p) for p in self.points]
                slow = ReducedFunctional(self.record(*x), [Control(v) for v in x])
            start = time.perf_counter()
            fast = slow.compile(**self.options)
            jax.block_until_ready(_bare(fast.value_and_derivative(x)) if both else fast(x)._value)
            ours = time.perf_counter() - start
            f = jax.value_and_grad(self.native, tuple(range(len(x)))) if both else self.native
            start = time.perf_counter()
            jax.block_until_ready(jax.jit(f)(*self.points))
            results.append((what, ours, time.perf_counter() - start))
        return results


def _bare(pair: Any) -> list[Any]:
    value, gradient = pair
    return [v._value for v in ([] if value is None else [value]) + list(gradient)]


def cases() -> list[Case]:
    """The programs that are compared."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)

    def repeated(step: Callable[..., Any], count: int, f: Callable[..., Any] = jnp.sum) -> Callable[..., Any]:
        taped, total = overload(step, "jax"), overload(lambda y: f(y * y), "jax")

        def program(y: Any, *rest: Any) -> Any:
            for _ in range(count):
                y = taped(y, *rest)
            return total(y)

        return program

    def unrolled(step: Callable[..., Any], count: int) -> Callable[..., Any]:
        def function(y: Any) -> Any:
            for _ in range(count):
                y = step(y)
            return jnp.sum(y * y)

        return function

    def scanned(step: Callable[..., Any], count: int) -> Callable[..., Any]:
        def function(y: Any) -> Any:
            y, _ = jax.lax.scan(lambda y, _: (step(y), None), y, None, length=count)
            return jnp.sum(y * y)

        return function

    def sine(y: Any) -> Any:
        return jnp.sin(y) * 1.01

    def laplacian(u: Any) -> Any:
        return jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1) - 4 * u

    def heat(u: Any) -> Any:
        return u + 0.1 * laplacian(u)

    def layer(y: Any, w: Any, b: Any) -> Any:
        return jnp.tanh(y @ w + b)

    with jax.enable_x64(True):
        small, field = jnp.linspace(0.1, 1.0, 10), jnp.asarray(rng.standard_normal((64, 64)))
        weights = [jnp.asarray(0.1 * rng.standard_normal((100, 100))) for _ in range(5)]
        biases = [jnp.asarray(0.1 * rng.standard_normal(100)) for _ in range(5)]
        batch = jnp.asarray(rng.standard_normal((256, 100)))

    def network(*parameters: Any) -> Any:
        y = batch
        for w, b in zip(parameters[:5], parameters[5:], strict=True):
            y = layer(y, w, b)
        return jnp.mean(y * y)

    taped_layer, loss = overload(layer, "jax"), overload(lambda y: jnp.mean(y * y), "jax")

    def taped_network(*parameters: Any) -> Any:
        y: Any = batch
        for w, b in zip(parameters[:5], parameters[5:], strict=True):
            y = taped_layer(y, w, b)
        return loss(y)

    parts = [overload(f, "jax") for f in (jnp.sin, heat, lambda u, v: u * 0.5 + 0.01 * jnp.tanh(v))]
    total = overload(lambda y: jnp.sum(y * y), "jax")

    def taped_parts(u: Any) -> Any:
        for _ in range(1024):
            u = parts[2](u, parts[1](parts[0](u)))
        return total(u)

    return [
        Case("chain of 1000 tiny operations", repeated(sine, 1000), unrolled(sine, 1000), small, second_order=False),
        Case("network, five 100x100 layers, batch 256", taped_network, network, *weights, *biases),
        Case("heat equation 64x64, 500 steps", repeated(heat, 500), scanned(heat, 500), field),
        Case("loop of 10^4 small steps", repeated(sine, 10000), scanned(sine, 10000), small),
        Case(
            "steps of three Blocks, 64x64, 1024 steps",
            taped_parts,
            scanned(lambda u: u * 0.5 + 0.01 * jnp.tanh(heat(jnp.sin(u))), 1024),
            field,
        ),
    ]


def _rows(name: str) -> Iterable[Row]:
    with wide():
        yield from table_rows(_case(name))


def table_rows(case: Case) -> Iterable[Row]:
    """Measure a case; return rows of a table: what, by hand, compiled, ratio."""
    for what, ours, native in case.rows():
        yield case.name, what, native.cell(1e3), ours.cell(1e3), ours.over(native)


def _first(name: str) -> Iterable[Row]:
    with wide():
        for what, ours, native in _case(name).beginning():
            yield name, what, f"{ours:.2f}", f"{native:.2f}"


def wide() -> Any:
    """Return a scope in which native JAX has 64 bits, or raise where it is not installed."""
    get_engine("jax")  # says what to install
    # So that native JAX keeps its 64 bits; the compiled tapes would without it.
    return importlib.import_module("jax").enable_x64(True)


def _case(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


NAMES = (
    "chain of 1000 tiny operations",
    "network, five 100x100 layers, batch 256",
    "heat equation 64x64, 500 steps",
    "loop of 10^4 small steps",
    "steps of three Blocks, 64x64, 1024 steps",
)
TABLE = Table(
    "compiled",
    "milliseconds: minimum, median in brackets",
    ("program", "what", "native JAX", "compiled tape", "ratio"),
    [(name, lambda name=name: _rows(name)) for name in NAMES],
)
BEGINNING = Table(
    "beginning",
    "seconds of the first call, with all that happens before it: finding loops, tracing and compiling",
    ("program", "what", "compiled tape", "native JAX"),
    [(name, lambda name=name: _first(name)) for name in NAMES[1:]],
)
