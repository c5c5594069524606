"""Random programs over all engines, compiled and Block by Block, away from the recorded point."""

import functools
import os

import engines
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyadjoint_utils import (
    AdjFloat,
    Control,
    ReducedFunction,
    ReducedFunctional,
    Tape,
    array,
    ndarray,
    push_tape,
    to_adjfloat,
    to_numpy,
)

ENGINES = tuple(name for name in engines.NAMES if engines.installed(name))
EAGER = tuple(name for name in ("torch", "autograd") if name in ENGINES)  # they merge where they are asked to
SIZE = 3
WEIGHTS, TABLE = (
    np.random.default_rng(k).uniform(-0.5, 0.5, shape) for k, shape in enumerate([(SIZE, SIZE), (37, SIZE)])
)


@functools.cache
def functions(name):
    """Functions of an engine with one or two results, overloaded once."""
    e = engines.namespace(name)
    return {
        "wave": e.overload(lambda x, y: e.sin(x) * y + x),
        "both": e.overload(lambda x, y: (x * y, e.tanh(x - y))),
        "scaled": e.overload(lambda x, c: e.tanh(x * c) + c),
        "norm": e.overload(lambda x: e.sum(x * x)),
        "outer": e.overload(lambda x, t: e.reshape(t, (-1, 1)) * e.reshape(x, (1, -1))),
        "first": e.overload(lambda x, y: e.sin(x) + y, argnums=0),
    }


@st.composite
def programs(draw):
    """A list of instructions; operands are positions among the values so far, counted from the end."""
    count = draw(st.integers(3, 9))
    names = ["wave", "both", "scaled", "norm", "first", "float", "number", "numpy", "arithmetic", "loop", "forced"]
    return [
        (draw(st.sampled_from(names)), draw(st.sampled_from(ENGINES)), draw(st.integers(0, 5)), draw(st.integers(0, 5)))
        for _ in range(count)
    ]


def run(program, x, y, a):
    """Record a program; return its outputs."""
    arrays, numbers = [x, y], [a]
    for name, engine, i, j in program:
        f = functions(engine)
        u, v, c = arrays[-1 - i % len(arrays)], arrays[-1 - j % len(arrays)], numbers[-1 - j % len(numbers)]
        if name in ("wave", "first"):
            arrays.append(f[name](u, v))
        elif name == "both":
            arrays += f[name](u, v)
        elif name == "scaled":
            arrays.append(f[name](u, (c, 0.7, np.full(SIZE, 0.3 + 0.1 * i))[j % 3]))
        elif name == "norm":
            numbers.append(to_adjfloat(f[name](u)) * 0.3)
        elif name == "float":
            numbers.append((c * 0.5 + numbers[0]) * c)
        elif name == "number":
            arrays.append(u * c)
        elif name == "numpy":
            arrays.append(np.sin(to_numpy(u)) * 0.5 + v)
        elif name == "arithmetic":
            w = to_numpy(u)
            arrays.append((w @ WEIGHTS)[::-1] * v / (2.0 + np.cos(w)) - w.sum() * c + w[i % SIZE] ** 2)
        elif name == "forced":
            # Two rows of what is indexed, by turns as an array of NumPy and of the engine.
            table = f["outer"](u, np.linspace(0.1, 0.5, 37)) if i % 2 else to_numpy(u).reshape(1, SIZE) * TABLE
            for k in range(18):
                v = f["wave"](v, table[k] - table[2 * k + 1 if j % 2 else k + 1]) * 0.5
            arrays.append(v)
        else:
            for k in range(18):
                u = f["scaled"](f["wave"](u, v), 0.1 * k if i % 2 else 0.4) * 0.5
            arrays.append(u)
    return [arrays[-1], arrays[-2], numbers[-1] * 1.0]


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * (1 + np.abs(b).max()))


@settings(
    max_examples=int(os.environ.get("RANDOM_PROGRAMS", "6")), deadline=None, suppress_health_check=list(HealthCheck)
)
@given(programs(), st.integers(0, 3), st.sampled_from(["all", "step", "sqrt"]), st.sampled_from([(), EAGER]))
def test_random_programs(program, seed, memory, merged):
    compare(program, seed, memory=memory, engines=merged)


@pytest.mark.slow
@pytest.mark.skipif("torch" not in ENGINES, reason="PyTorch is not installed")
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.integers(0, 3))
def test_random_programs_with_compiled_torch(program, seed):
    compare(program, seed, engines={"torch": "eager", "autograd": None}, budget=1e6)


def compare(program, seed, **options):
    """Everything that a compiled program gives, with what it gives Block by Block."""
    rng = np.random.default_rng(seed)

    def some():
        return [rng.uniform(-1, 1, SIZE), rng.uniform(-1, 1, SIZE), AdjFloat(rng.uniform(-1, 1))]

    with push_tape(Tape()) as tape:
        x, y, a = some()
        controls = [array(engines.namespace("jax").own(x)), array(y), a]
        outputs = run(program, *controls)
        total = to_adjfloat(functions(ENGINES[seed % len(ENGINES)])["norm"](outputs[0])) * 0.5 + outputs[2]
        controls = [Control(c) for c in controls]
        slow, scalar = ReducedFunction(outputs, controls, tape), ReducedFunctional(total, controls, tape=tape)
    fast = slow.compile(**options)
    for _ in range(2):
        m, h = some(), some()
        values = slow(m)
        close(fast(m), values)
        v = [rng.uniform(-1, 1, np.shape(value)) for value in values]
        v = [w if isinstance(value, ndarray) else float(w) for w, value in zip(v, values, strict=True)]
        close(fast.adj_jac_action(v), slow.adj_jac_action(v))
        close(fast.jac_action(h), slow.jac_action(h))
        close(fast.hess_action(h, v), slow.hess_action(h, v))
    assert fast.describe()
    compare_gradients(scalar.compile(**options), scalar, [some() for _ in range(4)], some())


def compare_gradients(fast, slow, points, direction):
    """What one call computes, and what others compute of what it has kept."""
    for m in points[:2]:
        value, gradient = fast.value_and_derivative(m)
        close([value], [slow(m)])
        close(gradient, slow.derivative())
    for m in points[2:]:
        close([fast(m)], [slow(m)])
    for seed in (1.0, -0.7):
        close(fast.derivative(seed), slow.derivative(seed))
    fast(points[0])
    slow(points[0])
    close(fast.hessian(direction), slow.hessian(direction))
    close(fast.derivative(0.3), slow.derivative(0.3))


pytestmark = pytest.mark.skipif("jax" not in ENGINES, reason="JAX is not installed")
