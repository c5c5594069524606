"""Loops over data that steps read, loops that keep less in memory, and loops in TensorFlow, beside the same by hand."""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.compiled import Case, table_rows, wide
from benchmarks.tables import Row, Table
from benchmarks.timing import in_turns
from pyadjoint_utils import Control, ReducedFunctional, Tape, array, get_engine, overload, set_working_tape

STEPS, SIZE = 1000, 10
STEPS_IN_TENSORFLOW = 300  # which takes long to trace a Python loop
ORDER = np.random.default_rng(0).permutation(STEPS)
Step = Callable[[Any, Any], Any]


def _taped(step: Callable[..., Any], index: Callable[[int], Any], parts: int = 1) -> Callable[..., Any]:
    """The loop on a tape, a step in so many Blocks."""
    import jax.numpy as jnp

    blocks = [overload(step, "jax"), *[overload(lambda y: jnp.sin(y) * 1.01, "jax")] * (parts - 1)]
    total = overload(lambda y: jnp.sum(y * y), "jax")

    def program(y: Any, forcing: Any) -> Any:
        for k in range(STEPS):
            y = blocks[0](y, forcing[index(k)])
            for block in blocks[1:]:
                y = block(y)
        return total(y)

    return program


def _scanned(step: Step, memory: str = "all", order: Any = None) -> Callable[..., Any]:
    """The same by hand, which keeps the same for its derivative."""
    import jax
    import jax.numpy as jnp

    def turn(y: Any, row: Any) -> Any:
        return step(y, row), None

    def program(y: Any, forcing: Any) -> Any:
        rows = forcing if order is None else forcing[order]
        if memory == "sqrt":
            inner = math.isqrt(STEPS)
            whole = STEPS // inner * inner

            def chunk(y: Any, rows: Any) -> Any:
                return jax.lax.scan(turn, y, rows)

            chunks = rows[:whole].reshape(-1, inner, *rows.shape[1:])
            y, _ = jax.lax.scan(jax.checkpoint(chunk, prevent_cse=False), y, chunks)
            y, _ = jax.lax.scan(turn, y, rows[whole:])
        else:
            y, _ = jax.lax.scan(jax.checkpoint(turn, prevent_cse=False) if memory == "step" else turn, y, rows)
        return jnp.sum(y * y)

    return program


def _step(y: Any, row: Any) -> Any:
    import jax.numpy as jnp

    return jnp.sin(y) * 1.01 + 0.1 * row


def _two(y: Any, row: Any) -> Any:
    import jax.numpy as jnp

    return jnp.sin(y + 0.1 * row) * 1.01


CASES: dict[str, Callable[[], tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]]] = {
    "forcing[k]": lambda: (_taped(_step, int), _scanned(_step), {}),
    "forcing[k], steps of two Blocks": lambda: (
        _taped(lambda y, row: y + 0.1 * row, int, parts=2),
        _scanned(_two),
        {},
    ),
    "forcing[order[k]]": lambda: (_taped(_step, lambda k: int(ORDER[k])), _scanned(_step, order=ORDER), {}),
    'forcing[k], memory="step"': lambda: (_taped(_step, int), _scanned(_step, "step"), {"memory": "step"}),
    'forcing[k], memory="sqrt"': lambda: (_taped(_step, int), _scanned(_step, "sqrt"), {"memory": "sqrt"}),
}


def _in_jax(name: str) -> Iterable[Row]:
    with wide():
        taped, by_hand, options = CASES[name]()
        e, rng = get_engine("jax"), np.random.default_rng(0)
        points = [e.enter(np.linspace(0.1, 1.0, SIZE)), e.enter(rng.standard_normal((STEPS, SIZE)))]
        for label, *cells in table_rows(Case(name, taped, by_hand, *points, **options)):
            yield "jax", f"{STEPS} steps of {label}", *cells


def _in_tensorflow(order: Any = None) -> Iterable[Row]:
    e = get_engine("tensorflow")
    tf: Any = importlib.import_module("tensorflow")
    n, rng = STEPS_IN_TENSORFLOW, np.random.default_rng(0)

    def step(y: Any, row: Any) -> Any:
        return tf.sin(y) * 1.01 + 0.1 * row

    def total(y: Any) -> Any:
        return tf.reduce_sum(y * y)

    def straight(y: Any, forcing: Any) -> Any:
        for k in range(n):
            y = step(y, forcing[k])
        return total(y)

    def repeated(y: Any, forcing: Any) -> Any:
        return total(tf.while_loop(lambda k, y: k < n, lambda k, y: (k + 1, step(y, forcing[k])), (0, y))[1])

    def native(f: Callable[..., Any]) -> Callable[..., Any]:
        def both(*x: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(*x)
            return y, tape.gradient(y, x)

        return tf.function(both, autograph=False)

    points = [e.enter(np.linspace(0.1, 1.0, SIZE)), e.enter(rng.standard_normal((n, SIZE)))]
    taped, sums = overload(step, "tensorflow"), overload(total, "tensorflow")
    with set_working_tape(Tape()):
        x = [array(p) for p in points]
        y, forcing = x
        for k in range(n):
            y = taped(y, forcing[k])
        slow = ReducedFunctional(sums(y), [Control(v) for v in x])
    by_hand = {"tf.while_loop": native(repeated), "a Python loop in tf.function": native(straight)}
    ours = {"": slow.compile(), ', memory="sqrt"': slow.compile(memory="sqrt")}
    runs = [lambda f=f: f(*points) for f in by_hand.values()]
    runs += [lambda f=f: f.value_and_derivative(x) for f in ours.values()]
    timings = in_turns(*runs, repeats=50, seconds=8.0)
    for label, compiled in zip(ours, timings[len(by_hand) :], strict=True):
        for other, hand in zip(by_hand, timings, strict=False):
            what = f"value and gradient, beside {other}"
            name = f"{n} steps of forcing[k]{label}"
            yield "tensorflow", name, what, hand.cell(1e3), compiled.cell(1e3), compiled.over(hand)


TABLE = Table(
    "loops",
    "milliseconds: minimum, median in brackets",
    ("engine", "loop", "what", "by hand", "compiled tape", "ratio"),
    [*[(name, lambda name=name: _in_jax(name)) for name in CASES], ("tensorflow", _in_tensorflow)],
)
