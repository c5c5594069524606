"""Cost of a Block above a raw loop over the same calls of the engine, and beside Pyadjoint with a thin Block of its own."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.plain import Box, Calls, Sweeps
from benchmarks.plain import chain as plain_chain
from benchmarks.tables import Row, Table
from benchmarks.timing import Timing, in_turns
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
# Blocks and turns.
CHAINS = {"jax": (500, 200), "torch": (200, 40), "tensorflow": (100, 25), "autograd": (200, 40)}
SWEEPS = ("record", "recompute", "tangent", "adjoint", "tangent + second adjoint")


def function(engine: str) -> Callable[[Any], Any]:
    """A small function of an engine: ``1.01 sin(x)``."""
    sin = get_engine(engine).function("sin")
    if sin is None:
        raise MissingEngineError(f"The engine {engine!r} has no function 'sin'.")
    return lambda x: sin(x) * 1.01


def sine(engine: str) -> Callable[[Any], Any]:
    """The same, overloaded."""
    return overload(function(engine), engine)


def calls_of(engine: str, rf: ReducedFunction) -> Calls:
    """The engine's own calls: for JAX functions jitted by hand, for others those that the tape has prepared."""
    if engine == "jax":
        return _jitted(function("jax"))
    rules = rf.tape.get_blocks()[1].rules
    local = rules.at((0,), (0,))
    return Calls(
        lambda x: rules.value((), (x,))[0],
        lambda x, dx: local.jvp((x, dx), ())[0],
        lambda x, yb: local.vjp((x, yb), ())[0],
        lambda *arrays: local.hvp(arrays, ()),
    )


def _jitted(f: Callable[[Any], Any]) -> Calls:
    jax = importlib.import_module("jax")

    def vjp(x: Any, yb: Any) -> Any:
        return jax.vjp(f, x)[1](yb)[0]

    return Calls(
        jax.jit(f),
        jax.jit(lambda x, dx: jax.jvp(f, (x,), (dx,))[1]),
        jax.jit(vjp),
        jax.jit(lambda x, yb, dx, dyb: jax.jvp(vjp, (x, yb), (dx, dyb))),
    )


class Loops:
    """The sweeps as loops over bare calls.

    Args:
        calls: the calls.
        start: the array at which the chain starts; its shape is everybody's, and it is every seed.
        blocks: how many calls.
    """

    def __init__(self, calls: Calls, start: Any, blocks: int) -> None:
        self.calls, self.start, self.blocks = calls, start, blocks
        self.points = [start]
        for _ in range(blocks - 1):
            self.points.append(calls.value(self.points[-1]))

    def values(self) -> Any:
        """Evaluate."""
        value, y = self.calls.value, self.start
        for _ in range(self.blocks):
            y = value(y)
        return y

    def tangents(self) -> Any:
        """Push a tangent forward."""
        jvp, dy = self.calls.jvp, self.start
        for x in self.points:
            dy = jvp(x, dy)
        return dy

    def adjoints(self) -> Any:
        """Pull a cotangent back."""
        vjp, yb = self.calls.vjp, self.start
        for x in reversed(self.points):
            yb = vjp(x, yb)
        return yb

    def second_adjoints(self) -> Any:
        """Push a tangent forward and pull both adjoints back."""
        jvp, hvp, dy, tangents = self.calls.jvp, self.calls.hvp, self.start, []
        for x in self.points:
            tangents.append(dy)
            dy = jvp(x, dy)
        yb = dyb = self.start
        for x in reversed(self.points):
            yb, dyb = hvp(x, yb, tangents.pop(), dyb)
        return dyb


def measure(engine: str) -> dict[str, list[Timing]]:
    """Return for each sweep the microseconds per Block: the raw loop, the tape, and plain Pyadjoint."""
    f, x = sine(engine), array(get_engine(get_engine(engine).holds).enter(np.ones(LENGTH)))
    blocks, repeats = CHAINS[engine]

    def chain() -> Any:
        set_working_tape(Tape())
        y = x
        for _ in range(blocks):
            y = f(y)
        return y

    rf = ReducedFunction(chain(), Control(x))

    def run() -> dict[str, list[Timing]]:
        calls = calls_of(engine, rf)
        loops, plain = Loops(calls, x.value, blocks), Sweeps(calls, x.value, blocks)
        pairs = {
            "record": (loops.values, chain, lambda: _recorded(calls, x.value, blocks)),
            "recompute": (loops.values, lambda: rf(x), plain.recompute),
            "tangent": (loops.tangents, lambda: rf.jac_action(x), plain.tangent),
            "adjoint": (loops.adjoints, lambda: rf.adj_jac_action(x), plain.adjoint),
            "tangent + second adjoint": (loops.second_adjoints, lambda: rf.hess_action(x, x), plain.hessian),
        }
        return {name: in_turns(*three, items=blocks, repeats=repeats) for name, three in pairs.items()}

    if engine != "jax":
        return run()
    # The user's own setting would be narrow: the raw loop needs 64-bit types, and is not to pay for them at each call.
    with importlib.import_module("jax").enable_x64(True):
        return run()


def _recorded(calls: Calls, value: Any, blocks: int) -> None:
    import pyadjoint

    with pyadjoint.set_working_tape(pyadjoint.Tape()):
        plain_chain(calls, Box(value), blocks)


def _rows(engine: str) -> Iterable[Row]:
    for name, (raw, tape, plain) in measure(engine).items():
        yield engine, name, raw.cell(), tape.cell(), plain.cell(), tape.above(raw), tape.over(raw)


TABLE = Table(
    "blocks",
    f"microseconds per Block, vectors of length {LENGTH}: minimum, median in brackets",
    ("engine", "sweep", "raw loop", "tape", "plain Pyadjoint", "tape above raw", "ratio"),
    [(engine, lambda engine=engine: _rows(engine)) for engine in CHAINS],
)
