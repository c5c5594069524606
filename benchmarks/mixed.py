"""Tapes of JAX Blocks with NumPy arithmetic between them, and called with several shapes: value and gradient."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.compiled import wide
from benchmarks.tables import Row, Table
from benchmarks.timing import in_turns
from pyadjoint_utils import Control, ReducedFunctional, Tape, array, get_engine, overload, set_working_tape

STEPS, SIZE = 200, 100
SHAPES = (100, 140)


def _sine() -> Callable[[Any], Any]:
    jnp = importlib.import_module("jax.numpy")
    return lambda y: jnp.sin(y) * 1.01


def _tape(points: Any, run: Callable[..., Any]) -> tuple[ReducedFunctional, list[Any]]:
    with set_working_tape(Tape()):
        x = [array(p) for p in points]
        return ReducedFunctional(run(*x), [Control(v) for v in x]), x


def _bare(pair: Any) -> list[Any]:
    value, gradient = pair
    return [value.value, *[g.value for g in (gradient if isinstance(gradient, list) else [gradient])]]


def _arithmetic() -> Iterable[Row]:
    get_engine("jax")
    jax = importlib.import_module("jax")
    sine, rng = _sine(), np.random.default_rng(0)
    taped = overload(sine, "jax")
    points = [np.linspace(0.1, 1.0, SIZE), rng.standard_normal(SIZE), rng.standard_normal((STEPS, SIZE))]

    def run(y: Any, scale: Any, forcing: Any) -> Any:
        for k in range(STEPS):
            y = taped(y) * 0.9 + 0.1 * scale * forcing[k]
        return (y * y).sum()

    def by_hand(y: Any, scale: Any, forcing: Any) -> Any:
        y, _ = jax.lax.scan(lambda y, row: (sine(y) * 0.9 + 0.1 * scale * row, None), y, forcing)
        return (y * y).sum()

    slow, x = _tape(points, run)
    fast = slow.compile()
    native = jax.jit(jax.value_and_grad(by_hand, (0, 1, 2)))
    with wide():
        timings = in_turns(
            # NumPy's arrays for everybody, in and out.
            lambda: [np.asarray(v) for v in jax.tree_util.tree_leaves(native(*points))],
            lambda: _bare(slow.value_and_derivative(x)),
            lambda: [np.asarray(v) for v in _bare(fast.value_and_derivative(x))],
            wait=jax.block_until_ready,
            repeats=100,
        )
    hand, blocks, compiled = timings
    cells = [t.cell(1e3) for t in timings]
    yield f"{STEPS} steps of sin(y) * 0.9 + 0.1 * s * f[k]", *cells, blocks.over(hand), compiled.over(hand)


MIXED = Table(
    "mixed",
    "NumPy's arithmetic between Blocks of JAX: value and gradient, milliseconds: minimum, median in brackets",
    ("program", "jax.jit by hand", "Block by Block", "compiled", "Block by Block / by hand", "compiled / by hand"),
    [("arithmetic", _arithmetic)],
)


def _shapes() -> Iterable[Row]:
    with wide():
        jax = importlib.import_module("jax")
        sine, jnp = _sine(), importlib.import_module("jax.numpy")
        taped, total = overload(sine, "jax"), overload(lambda y: jnp.sum(y * y), "jax")

        def by_hand(y: Any) -> Any:
            y, _ = jax.lax.scan(lambda y, _: (sine(y), None), y, None, length=STEPS)
            return jnp.sum(y * y)

        def run(y: Any) -> Any:
            for _ in range(STEPS):
                y = taped(y)
            return total(y)

        x = [array(jnp.linspace(0.1, 1.0, n)) for n in SHAPES]
        slow, _ = _tape([x[0].value], run)
        each = [_tape([v.value], run)[0].compile() for v in x]
        fast, native = slow.compile(respecialize=True), jax.jit(jax.value_and_grad(by_hand))
        names = ("one shape each time", "two shapes by turns")
        ways = [
            (lambda k: native(x[k].value)),
            (lambda k: _bare(each[k].value_and_derivative(x[k]))),
            (lambda k: _bare(fast.value_and_derivative(x[k]))),
        ]
        for name, shapes in zip(names, ((0, 0), (0, 1)), strict=True):
            runs = [lambda way=way: [way(k) for k in shapes] for way in ways]  # noqa: B023  (called before the next ones)
            timings = in_turns(*runs, items=len(shapes), repeats=200, wait=jax.block_until_ready)
            hand, separate, respecialized = timings
            cells = [t.cell() for t in timings]
            yield name, *cells, respecialized.over(hand), respecialized.above(separate)


SHAPES_TABLE = Table(
    "shapes",
    f"value and gradient of a loop of {STEPS} steps for shapes that were seen before, microseconds a call",
    (
        "calls",
        "jax.jit",
        "a tape for each shape",
        "respecialize=True",
        "respecialize / jax.jit",
        "above a tape for each",
    ),
    [("shapes", _shapes)],
)
