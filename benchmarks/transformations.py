"""Cost of ``grad(f)(x)``, which runs and records the program, above a reduced functional that was recorded before."""

from typing import Any

import numpy as np

from benchmarks.blocks import sine
from benchmarks.timing import Timing, timed
from pyadjoint_utils import (
    Control,
    MissingEngineError,
    ReducedFunctional,
    array,
    get_engine,
    grad,
    hessian,
    linearize,
    overload,
    push_tape,
    stop_annotating,
    value_and_grad,
)

LENGTH = 10
SIZES = (1, 10, 100)  # Blocks in a program


def program(engine: str, blocks: int) -> Any:
    """A chain of calls of one small function, summed up."""
    f, e = sine(engine), get_engine(engine)
    function = e.function("sum")
    total = overload(lambda x: function(x), engine)

    def chain(x: Any) -> Any:
        for _ in range(blocks - 1):
            x = f(x)
        return total(x)

    return chain


def measure(engine: str, blocks: int) -> list[tuple[str, Timing]]:
    """Return microseconds per call: of a recorded functional first, then of transformations."""
    f, data = program(engine, blocks), np.ones(LENGTH)
    with push_tape():
        x = array(data)
        functional = ReducedFunctional(f(x), Control(x))
    _, tangent = linearize(f, data)
    gradient, both, second = grad(f), value_and_grad(f), hessian(f)
    h = array(data)

    def evaluated() -> None:
        functional(x)
        functional.derivative()

    with stop_annotating():
        rows = [
            ("J(x), J.derivative()", timed(evaluated)),
            ("f(x)", timed(lambda: f(x))),
            ("value_and_grad(f)(x)", timed(lambda: both(data))),
            ("grad(f)(x)", timed(lambda: gradient(data))),
            ("J.tlm(h)", timed(lambda: functional.tlm(h))),
            ("f_jvp(h) of linearize", timed(lambda: tangent(data))),
        ]
        if blocks <= 10:
            rows.append(("J.hess_matrix()", timed(functional.hess_matrix, repeats=5)))
            rows.append(("hessian(f)(x)", timed(lambda: second(data), repeats=5)))
    return rows


def main() -> None:
    """Print the table of all installed engines."""
    print("\nmicroseconds per call, vectors of length 10: minimum and median of 15 runs\n")
    print(f"{'engine':<12}{'Blocks':>6}  {'call':<24}{'':>17}   {'above':>9}")
    for engine in ("jax", "torch", "tensorflow", "autograd"):
        for blocks in SIZES:
            try:
                rows = measure(engine, blocks)
            except MissingEngineError as error:
                print(f"{engine:<12}skipped: {error}")
                break
            base = rows[0][1].minimum
            for name, timing in rows:
                print(f"{engine:<12}{blocks:>6}  {name:<24}{timing}   {timing.minimum - base:9.1f}")


if __name__ == "__main__":
    main()
