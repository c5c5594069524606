"""Sparse Jacobians and Hessians: what detection, colouring and the products cost, and what colours save."""

import importlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
from scipy import sparse

from benchmarks.timing import Timing, timed
from pyadjoint_utils import (
    Control,
    MissingEngineError,
    ReducedFunction,
    ReducedFunctional,
    array,
    get_engine,
    overload,
)
from pyadjoint_utils.jacobians import colouring

LENGTH = 100_000
SIZE, BANDS = 500, (3, 30, 100, 200, 300, 400, 499)
RNG = np.random.default_rng(0)


def stencil(engine: str) -> Callable[[Any], Any]:
    """A tridiagonal map of an engine."""
    of = get_engine(engine).function
    join, sin = of("concatenate"), of("sin")
    return overload(lambda x: join([x[:1], x[:-2] - 2.0 * sin(x[1:-1]) + x[2:], x[-1:]]), engine)


def arithmetic(x: Any) -> Any:
    """The same with values on the tape."""
    return np.concatenate([x[:1], x[:-2] - 2.0 * np.sin(x[1:-1]) + x[2:], x[-1:]])


def first(run: Callable[[], Any]) -> float:
    """Seconds of the first call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def tridiagonal() -> None:
    """Print the cost of a tridiagonal map of many numbers."""
    print(
        f"\ntridiagonal, {LENGTH} x {LENGTH}: first call in seconds; after it, milliseconds (minimum and median of 15)\n"
    )
    print(f"{'engine':<12}{'matrix':<40}{'first':>8}   {'after':>17}")
    pattern = sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(LENGTH, LENGTH), dtype=float)
    for engine in ("jax", "torch", "tensorflow", "autograd", "numpy"):
        x = array(RNG.standard_normal(LENGTH))
        try:
            f = arithmetic if engine == "numpy" else stencil(engine)
            y = f(x)
        except MissingEngineError as error:
            print(f"{engine:<12}skipped: {error}")
            continue
        rf, energy = ReducedFunction(y, Control(x)), ReducedFunctional((y * y).sum(), Control(x))
        for name, run in (
            ("one tangent", lambda rf=rf, x=x: rf.jac_action(x)),
            ("Jacobian, given", lambda rf=rf: rf.jac_matrix(sparsity=pattern)),
            ("Jacobian, detected", lambda rf=rf: rf.jac_matrix(sparsity="detect")),
            ("Hessian, detected", lambda energy=energy: energy.hess_matrix(sparsity="detect")),
        ):
            seconds = first(run)
            print(f"{engine:<12}{name:<40}{seconds:>8.2f}   {_milliseconds(timed(run)):>17}")
    _native()


def _native() -> None:
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        return
    f = stencil("jax").function
    seeds = np.zeros((3, LENGTH))
    seeds[np.arange(LENGTH) % 3, np.arange(LENGTH)] = 1.0
    with jax.enable_x64(True):
        x, seeds = jax.numpy.asarray(RNG.standard_normal(LENGTH)), jax.numpy.asarray(seeds)
        run = jax.jit(jax.vmap(lambda v: jax.jvp(f, (x,), (v,))[1]))
        native = timed(lambda: run(seeds).block_until_ready())
        print(f"{'jax':<12}{'three tangents of JAX, uncoloured':<40}{'':>8}   {_milliseconds(native):>17}")


def crossover() -> None:
    """Print what colours save, and where they are not looked for."""
    print(
        f"\nbanded, {SIZE} x {SIZE}, JAX, as many products as the band is wide: first call in seconds; after it, "
        "milliseconds,\nminimum and median of 15; * is what is chosen\n"
    )
    print(f"{'products':<9}{'coloured':>28}   {'one by one':>28}   {'dense array':>17}")
    try:
        sin, matmul = get_engine("jax").function("sin"), get_engine("jax").function("matmul")
    except MissingEngineError:
        return
    for width in BANDS:
        band = np.triu(np.tril(RNG.standard_normal((SIZE, SIZE)), width - 1))
        line = f"{width:<9}"
        for worth in (1.0, 0.0):
            x = array(RNG.standard_normal(SIZE))
            rf = ReducedFunction(overload(lambda band, x: matmul(band, sin(x)), "jax")(band, x), Control(x))
            with mock.patch.object(colouring, "WORTH", worth):
                seconds = first(lambda rf=rf: rf.jac_matrix(sparsity="detect"))
            after = _milliseconds(timed(lambda rf=rf: rf.jac_matrix(sparsity="detect")))
            chosen = (width <= colouring.WORTH * SIZE) == (worth == 1.0)
            line += f"{seconds:>8.2f} {after:>18}{'*' if chosen else ' ':<4}"
        print(line, f"{_milliseconds(timed(rf.jac_matrix)):>17}")


def _milliseconds(timing: Timing) -> str:
    return f"{timing.minimum / 1e3:8.2f} {timing.median / 1e3:8.2f}"


def main() -> None:
    """Print both tables."""
    tridiagonal()
    crossover()


if __name__ == "__main__":
    main()
