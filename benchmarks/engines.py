"""Value and gradient of the same programs: native code of each engine, its tape, and the tape compiled."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.tables import Row, Table
from benchmarks.timing import in_turns
from pyadjoint_utils import Control, ReducedFunctional, Tape, array, get_engine, overload, set_working_tape

ENGINES = ("jax", "torch", "tensorflow", "autograd")
RNG = np.random.default_rng(0)


class Program(NamedTuple):
    """A program in terms of any engine.

    Attributes:
        name: what it is.
        parts: given an engine's function for a NumPy name, returns the functions that become Blocks.
        run: takes those and arrays, returns a scalar.
        points: the arrays.
    """

    name: str
    parts: Callable[[Callable[[str], Any]], Sequence[Callable[..., Any]]]
    run: Callable[..., Any]
    points: Sequence[np.ndarray]


def _steps(count: int) -> Callable[..., Any]:
    def run(parts: Sequence[Callable[..., Any]], y: Any) -> Any:
        step, total = parts
        for _ in range(count):
            y = step(y)
        return total(y)

    return run


def _total(of: Callable[[str], Any]) -> Callable[[Any], Any]:
    sums = of("sum")
    return lambda y: sums(y * y)


def _sines(of: Callable[[str], Any]) -> Sequence[Callable[..., Any]]:
    sin = of("sin")
    return (lambda y: sin(y) * 1.01), _total(of)


def _heat(of: Callable[[str], Any]) -> Sequence[Callable[..., Any]]:
    roll = of("roll")

    def step(u: Any) -> Any:
        return u + 0.1 * (roll(u, 1, 0) + roll(u, -1, 0) + roll(u, 1, 1) + roll(u, -1, 1) - 4.0 * u)

    return step, _total(of)


def _network(of: Callable[[str], Any]) -> Sequence[Callable[..., Any]]:
    tanh, matmul = of("tanh"), of("matmul")
    return (lambda y, w, b: tanh(matmul(y, w) + b)), _total(of)


def _layers(parts: Sequence[Callable[..., Any]], y: Any, *parameters: Any) -> Any:
    layer, total = parts
    for w, b in zip(parameters[:5], parameters[5:], strict=True):
        y = layer(y, w, b)
    return total(y)


PROGRAMS = (
    Program("chain of 200 tiny operations", _sines, _steps(200), [np.linspace(0.1, 1.0, 10)]),
    Program(
        "network, five 100x100 layers, batch 256",
        _network,
        _layers,
        [RNG.standard_normal((256, 100)), *(0.1 * RNG.standard_normal((5, 100, 100))), *RNG.standard_normal((5, 100))],
    ),
    Program("heat equation 64x64, 100 steps", _heat, _steps(100), [RNG.standard_normal((64, 64))]),
)


def by_hand(engine: str, program: Program, parts: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Return the program as one would write it in an engine."""
    if engine == "jax" and program.name.startswith("heat"):  # unrolled stencils take XLA minutes to compile
        jax, (step, total) = importlib.import_module("jax"), parts
        return lambda u: total(jax.lax.scan(lambda u, _: (step(u), None), u, None, 100)[0])
    return lambda *x: program.run(parts, *x)


def native(engine: str, f: Callable[..., Any], x: Sequence[Any]) -> Callable[[], Any]:
    """Return value and gradient as one would write them in an engine."""
    module, every = importlib.import_module(engine), tuple(range(len(x)))
    if engine == "jax":
        both = module.jit(module.value_and_grad(f, every))
        return lambda: both(*x)
    if engine == "autograd":
        both = module.value_and_grad(lambda x: f(*x))
        return lambda: both(tuple(x))
    if engine == "torch":
        leaves = [v.clone().requires_grad_() for v in x]

        def gradient() -> Any:
            y = f(*leaves)
            return y.detach(), module.autograd.grad(y, leaves)

        return gradient

    def recorded(*x: Any) -> Any:
        with module.GradientTape() as tape:
            tape.watch(x)
            y = f(*x)
        return y, tape.gradient(y, x)

    graph = module.function(recorded, autograph=False)
    return lambda: graph(*x)


def _rows(engine: str) -> Iterable[Row]:
    e = get_engine(engine)
    for program in PROGRAMS:
        parts = program.parts(e.function)
        taped = [overload(part, engine) for part in parts]
        with set_working_tape(Tape()):
            x = [array(get_engine(e.holds).enter(p)) for p in program.points]
            slow = ReducedFunctional(program.run(taped, *x), [Control(v) for v in x])
        fast = slow.compile(engines=[engine])
        direct = native(engine, by_hand(engine, program, parts), [v.value for v in x])

        def run(slow: Any = slow, fast: Any = fast, direct: Any = direct, x: Any = x) -> Any:
            return in_turns(
                direct,
                lambda: _bare(slow.value_and_derivative(x)),
                lambda: _bare(fast.value_and_derivative(x)),
                seconds=4.0,
                wait=importlib.import_module("jax").block_until_ready if engine == "jax" else None,
            )

        if engine == "jax":  # native code needs 64-bit types here
            with importlib.import_module("jax").enable_x64(True):
                timings = run()
        else:
            timings = run()
        hand, blocks, compiled = timings
        cells = [t.cell(1e3) for t in timings]
        yield engine, program.name, *cells, blocks.over(hand), compiled.over(hand)


def _bare(pair: Any) -> list[Any]:
    value, gradient = pair
    return [value.value, *[g.value for g in gradient]]


TABLE = Table(
    "engines",
    "value and gradient, milliseconds: minimum, median in brackets",
    ("engine", "program", "native", "Block by Block", "compiled", "Block by Block / native", "compiled / native"),
    [(engine, lambda engine=engine: _rows(engine)) for engine in ENGINES],
)
