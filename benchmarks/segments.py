"""Programs that change between JAX and PyTorch, beside the same written by hand with both."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.tables import Row, Table
from benchmarks.timing import Timing, in_turns
from pyadjoint_utils import (
    Control,
    MissingEngineError,
    ReducedFunctional,
    Tape,
    array,
    get_engine,
    overload,
    set_working_tape,
)

RNG = np.random.default_rng(0)


def _network(jnp: Any) -> tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]:
    """Five layers: on the tape, by hand, and the parameters."""
    batch = jnp.asarray(RNG.standard_normal((256, 100)))
    layer = overload(lambda y, w: jnp.tanh(y @ w), "jax")

    def taped(*weights: Any) -> Any:
        y: Any = batch
        for w in weights:
            y = layer(y, w)
        return y

    def by_hand(*weights: Any) -> Any:
        y = batch
        for w in weights:
            y = jnp.tanh(y @ w)
        return y

    return taped, by_hand, list(0.1 * RNG.standard_normal((5, 100, 100)))


def _diffusion(jnp: Any) -> tuple[Callable[..., Any], Callable[..., Any], list[np.ndarray]]:
    """200 nonlinear steps: on the tape, by hand, and the start."""
    scan = importlib.import_module("jax").lax.scan

    def step(u: Any) -> Any:
        around = jnp.roll(u, 1, 0) + jnp.roll(u, -1, 0) + jnp.roll(u, 1, 1) + jnp.roll(u, -1, 1)
        return u + 0.1 * (around - 4 * u) * jnp.sin(u)

    one = overload(step, "jax")

    def taped(u: Any) -> Any:
        for _ in range(200):
            u = one(u)
        return u

    return taped, lambda u: scan(lambda u, _: (step(u), None), u, None, 200)[0], [RNG.standard_normal((64, 64))]


def measure(make: Callable[[Any], Any]) -> list[Timing]:
    """Return value and gradient by hand, Block by Block, compiled."""
    for name in ("jax", "torch"):
        get_engine(name)  # says what to install
    jax, torch = importlib.import_module("jax"), importlib.import_module("torch")
    jnp = jax.numpy
    soft = torch.nn.functional.softplus
    with jax.enable_x64(True):
        taped, f, points = make(jnp)
        points = [jnp.asarray(p) for p in points]
        forward, back = jax.jit(lambda *x: jax.vjp(f, *x)), jax.jit(lambda pull_back, yb: pull_back(yb))
        last = jax.jit(jax.value_and_grad(lambda y: jnp.sum(y * y)))

        def by_hand() -> Any:
            y, pull_back = forward(*points)
            t = torch.from_dlpack(y).requires_grad_()
            z = soft(t)
            value, zb = last(jnp.from_dlpack(z.detach()))
            (tb,) = torch.autograd.grad(z, t, torch.from_dlpack(zb))
            return value, back(pull_back, jnp.from_dlpack(tb))

        middle, end = overload(soft, "torch"), overload(lambda y: jnp.sum(y * y), "jax")
        with set_working_tape(Tape()):
            x = [array(p) for p in points]
            slow = ReducedFunctional(end(middle(taped(*x))), [Control(v) for v in x])
        fast = slow.compile()
        return in_turns(
            by_hand,
            lambda: _bare(slow.value_and_derivative(x)),
            lambda: _bare(fast.value_and_derivative(x)),
            repeats=60,
            wait=jax.block_until_ready,
        )


def _bare(pair: Any) -> list[Any]:
    value, gradient = pair
    return [value.value, *[g.value for g in gradient]]


def _rows(name: str, make: Callable[[Any], Any]) -> Iterable[Row]:
    timings = measure(make)
    yield name, *[t.cell(1e3) for t in timings], timings[2].over(timings[0])


def _on_gpu() -> Iterable[Row]:
    """The same where JAX and PyTorch have a GPU, with JAX forbidden to move anything to the host."""
    for name in ("jax", "torch"):
        get_engine(name)
    jax = importlib.import_module("jax")
    if jax.default_backend() == "cpu" or not importlib.import_module("torch").cuda.is_available():
        raise MissingEngineError("no GPU that JAX and PyTorch both see")
    with jax.transfer_guard_device_to_host("disallow"):
        for name, make in PROGRAMS.items():
            yield from _rows(f"{name}, nothing moved to the host", make)


PROGRAMS = {"network, then PyTorch, then JAX": _network, "200 steps, then PyTorch, then JAX": _diffusion}
TABLE = Table(
    "segments",
    "value and gradient, milliseconds: minimum, median in brackets",
    ("program", "by hand", "Block by Block", "compiled", "compiled / by hand"),
    [(name, lambda name=name, make=make: _rows(name, make)) for name, make in PROGRAMS.items()] + [("GPU", _on_gpu)],
)
