"""Cost of a Block above a raw loop over the same prepared calls of the engine."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import Timing, timed
from pyadjoint_utils import (
    Control,
    MissingEngineError,
    ReducedFunction,
    Tape,
    array,
    get_engine,
    overload,
    set_working_tape,
)

LENGTH = 10
CHAINS = {"jax": 500, "torch": 200, "tensorflow": 200, "autograd": 200}


def sine(engine: str) -> Callable[[Any], Any]:
    """A small function of an engine: ``1.01 sin(x)``."""
    function = get_engine(engine).function("sin")
    if function is None:
        raise MissingEngineError(f"The engine {engine!r} has no function 'sin'.")
    return overload(lambda x: function(x) * 1.01, engine)


def measure(engine: str, blocks: int) -> list[tuple[str, Timing, Timing]]:
    """Return (sweep, raw loop, tape) in microseconds per Block."""
    f, x = sine(engine), array(np.ones(LENGTH))

    def chain() -> Any:
        set_working_tape(Tape())
        y = x
        for _ in range(blocks):
            y = f(y)
        return y

    recording = timed(chain, blocks)
    y = chain()
    rf = ReducedFunction(y, Control(x))
    block = rf.tape.get_blocks()[1]
    local = block.rules.at((0,), (0,))
    (v,) = block.primals()
    calls = {
        "recompute": (lambda: block.rules.value((), (v,)), lambda: rf(x)),
        "tangent": (lambda: local.jvp((v, v), ()), lambda: rf.jac_action(x)),
        "adjoint": (lambda: local.vjp((v, v), ()), lambda: rf.adj_jac_action(x)),
        "tangent + second adjoint": (
            lambda: (local.jvp((v, v), ()), local.hvp((v, v, v, v), ())),
            lambda: rf.hess_action(x, x),
        ),
    }
    raw = {name: timed(_repeat(call, blocks), blocks) for name, (call, _) in calls.items()}
    rows = [("record", raw["recompute"], recording)]
    return rows + [(name, raw[name], timed(run, blocks)) for name, (_, run) in calls.items()]


def _repeat(call: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def main() -> None:
    """Print the table of all installed engines."""
    print("microseconds per Block, vectors of length 10: minimum and median of 15 runs\n")
    print(f"{'engine':<12}{'sweep':<28}{'raw loop':>17}   {'tape':>17}   {'above':>7}")
    for engine, blocks in CHAINS.items():
        try:
            rows = measure(engine, blocks)
        except MissingEngineError as error:
            print(f"{engine:<12}skipped: {error}")
            continue
        for name, raw, tape in rows:
            print(f"{engine:<12}{name:<28}{raw}   {tape}   {tape.minimum - raw.minimum:7.1f}")


if __name__ == "__main__":
    main()
