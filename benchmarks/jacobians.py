"""Jacobian and Hessian matrices beside the engines' own calls."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Timing, timed
from pyadjoint_utils import Control, MissingEngineError, ReducedFunction, array, get_engine, overload

POINTS = 5000
SIZE = 100
ENGINES = ("jax", "torch", "tensorflow", "autograd")
RNG = np.random.default_rng(0)


def stress(engine: str) -> Callable[[Any], Any]:
    """A nonlinear map (n, 3, 3) -> (n, 3, 3) of each point by itself."""
    of = get_engine(engine).function
    matmul, swapped, sin = of("matmul"), of("swapaxes"), of("sin")
    return lambda f: matmul(f, matmul(swapped(f, 1, 2), f)) * 0.5 + sin(f)


def layer(engine: str) -> Callable[[Any], Any]:
    """A full map (SIZE,) -> (SIZE,)."""
    of = get_engine(engine).function
    sin, matmul = of("sin"), of("matmul")
    weights = get_engine(get_engine(engine).holds).enter(RNG.standard_normal((SIZE, SIZE)) / SIZE**0.5)
    return lambda x: matmul(weights, sin(matmul(weights, x)))


def measure(engine: str) -> list[tuple[str, Timing | None, Timing]]:
    """Return (matrix, the engine's own call, the tape) in microseconds."""
    f, g = stress(engine), layer(engine)
    points, x = [
        array(get_engine(get_engine(engine).holds).enter(RNG.standard_normal(shape)))
        for shape in ((POINTS, 3, 3), (SIZE,))
    ]
    y = overload(g, engine)(x)
    laws = ReducedFunction(overload(f, engine, pointwise=True)(points), Control(points))
    full, energy = ReducedFunction(y, Control(x)), ReducedFunction((y * y).sum(), Control(x))
    native = NATIVE.get(engine, lambda f, g: (None, None, None))(f, g)
    rows = []
    for name, call, value, run in (
        (f"Jacobian, {POINTS} points of 3x3 -> 3x3", native[0], points, laws.jac_matrix),
        (f"Jacobian, {SIZE} x {SIZE}", native[1], x, full.jac_matrix),
        (f"Hessian, {SIZE} x {SIZE}", native[2], x, energy.hess_matrix),
    ):
        rows.append((name, None if call is None else timed(lambda c=call, v=value: c(v.value)), timed(run)))
    return rows


def _jax(f: Callable[[Any], Any], g: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], ...]:
    jax = importlib.import_module("jax")
    calls = (
        jax.vmap(jax.jacfwd(lambda x: f(x[None])[0])),
        jax.jacfwd(g),
        jax.hessian(lambda x: (g(x) ** 2).sum()),
    )
    compiled = [jax.jit(call) for call in calls]

    def scoped(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(x: Any) -> Any:
            with jax.enable_x64(True):
                return call(x).block_until_ready()

        return run

    return tuple([scoped(call) for call in compiled])


def _torch(f: Callable[[Any], Any], g: Callable[[Any], Any]) -> tuple[Callable[[Any], Any], ...]:
    func = importlib.import_module("torch").func
    return (
        func.vmap(func.jacfwd(lambda x: f(x[None])[0])),
        func.jacfwd(g),
        func.hessian(lambda x: (g(x) ** 2).sum()),
    )


NATIVE = {"jax": _jax, "torch": _torch}


def main() -> None:
    """Print the table of all installed engines."""
    print("\nmilliseconds per matrix, after the first: minimum and median of 15 runs\n")
    print(f"{'engine':<12}{'matrix':<40}{'engine itself':>17}   {'tape':>17}")
    for engine in ENGINES:
        try:
            rows = measure(engine)
        except MissingEngineError as error:
            print(f"{engine:<12}skipped: {error}")
            continue
        for name, native, tape in rows:
            print(f"{engine:<12}{name:<40}{_milliseconds(native):>17}   {_milliseconds(tape):>17}")


def _milliseconds(timing: Timing | None) -> str:
    return "-" if timing is None else f"{timing.minimum / 1e3:8.2f} {timing.median / 1e3:8.2f}"


if __name__ == "__main__":
    main()
