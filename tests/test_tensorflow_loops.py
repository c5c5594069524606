"""Loops of TensorFlow programs, and their derivatives, against the same turns one after the other."""

import engines
import numpy as np
import pytest

from pyadjoint_utils import AdjFloat, Control, Engine, ReducedFunction, array, get_engine, overload_tensorflow

e = engines.namespace("tensorflow")
tf = pytest.importorskip("tensorflow")

from bridges import tensorflow_loops  # noqa: E402  (only where TensorFlow is installed)

LENGTH = 7


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Two or three turns at once, so that a few of them are a loop and a rest."""
    monkeypatch.setattr(tensorflow_loops, "_AT_ONCE", 30)


def turn(carry, constants, row):
    """Two states, a counter and a complex number; constants and rows of every kind; two things collected."""
    (y, v, k, z), (p, n), (f, place) = carry, constants, row
    factor = tf.cast(k + n + place, y.dtype) * 0.1
    new = y + 0.1 * v * tf.sin(p * y) + 0.05 * f * factor
    phase = z * tf.complex(tf.cos(y), 0.2 * v)
    return (new, v - 0.1 * y * y, k + 1, phase), (new * v, k * 2, tf.math.real(phase) * f)


def floats(rng, *shape):
    return tf.constant(rng.uniform(0.2, 1.0, shape))


def point(rng):
    """What is differentiated by: two states, a complex one, a constant and a row."""
    complex_ = tf.complex(floats(rng, 3), floats(rng, 3))
    return floats(rng, 3), floats(rng, 3), complex_, floats(rng, 3), floats(rng, LENGTH, 3)


def program(loop):
    def f(x, c):
        y, v, z, p, rows = x
        n, places = c
        carry = (y * 1.0, v, tf.constant(1), z)
        (y, v, _, z), (outputs, _, parts) = loop(turn, carry, (p, n), (rows, places), LENGTH)
        return y, v * y, z, outputs, parts * parts

    return f


def straight(*args):
    return Engine.loop(get_engine("tensorflow"), *args)


def maps(f):
    """Derivatives; ``x`` has five arrays and the value five."""
    engine, n = get_engine("tensorflow"), 5
    return {
        "value": f,
        "vjp": engine.vjp_of(f, n),
        "jvp": engine.jvp_of(f, n),
        "hvp": engine.hvp_of(f, n, n),
        "vjp tangent": engine.vjp_tangent_of(lambda x, c: f(x, c[-2:]), n, n),
    }


@pytest.mark.parametrize("name", ["value", "vjp", "jvp", "hvp", "vjp tangent"])
def test_derivatives_of_every_kind(name):
    rng = np.random.default_rng(3)
    c = (tf.constant(2), tf.constant(np.arange(LENGTH, dtype=np.int32)))
    x, dx = point(rng), point(rng)
    y = program(straight)(x, c)

    def like(arrays):
        z = tf.complex(floats(rng, 3), floats(rng, 3))
        return tuple([z if a.dtype.is_complex else floats(rng, *a.shape) for a in arrays])

    yb, dyb = like(y), like(y)
    if name == "vjp tangent":
        arguments = (*x, *dx), (*yb, *c)
    else:
        after = {"value": (), "vjp": yb, "jvp": dx}.get(name, (*yb, *dx, *dyb))
        arguments = (*x, *after), c
    engine = get_engine("tensorflow")
    found, expected = (
        engine.compile(maps(program(loop))[name], ())(*arguments) for loop in (tensorflow_loops.loop, straight)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def operations(f, *arrays):
    specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
    traced = tf.function(f, autograph=False).get_concrete_function(*specs)
    return [op.type for op in traced.graph.get_operations()]


def test_what_becomes_a_loop():
    def run(length):
        def step(carry, constants, row):
            return (tf.sin(carry[0]) * constants[0],), ()

        def f(y, p):
            return tensorflow_loops.loop(step, (y,), (p,), (), length)[0]

        return operations(f, e.own(np.ones(3)), e.own(np.ones(3)))

    assert "StatelessWhile" not in run(20)
    assert run(1000).count("StatelessWhile") == 1
    assert len(run(1000)) < 80


def test_a_value_alone_keeps_no_states():
    def step(carry, constants, row):
        return (tf.sin(carry[0]),), ()

    def f(y):
        return tensorflow_loops.loop(step, (y,), (), (), 1000)[0][0]

    engine = get_engine("tensorflow")
    y = e.own(np.ones(3))
    assert "TensorListReserve" not in operations(f, y)
    both = engine.value_and_vjp_of(lambda x, c: (f(x[0]),), 1, (0,))
    kept = operations(lambda y: both((y, y), ()), y)
    assert kept.count("TensorListReserve") == 1
    assert kept.count("StatelessWhile") == 2


# On a tape ---------------------------------------------------------------------------------------------------------------


@overload_tensorflow
def leap(y, before, p):
    return 2 * y - before - 0.01 * p * tf.sin(y)


@overload_tensorflow
def cost(y, data):
    return tf.reduce_sum((y - data) ** 2)


def check(outputs, controls, **options):
    """Compare everything with Block by Block, away from the recorded point; return what was compiled."""
    slow = ReducedFunction(outputs, [Control(c) for c in controls])
    fast = slow.compile(**options)
    rng = np.random.default_rng(7)

    def some():
        return [rng.uniform(0.2, 1.0, np.shape(c)) for c in controls]

    for _ in range(2):
        m, h = some(), some()
        values = slow(m)
        v = [rng.uniform(0.2, 1.0, np.shape(y)) for y in values]
        for found, expected in (
            (fast(m), values),
            (fast.adj_jac_action(v), slow.adj_jac_action(v)),
            (fast.jac_action(h), slow.jac_action(h)),
            (fast.hess_action(h, v), slow.hess_action(h, v)),
        ):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-10, atol=1e-10)
    return fast


def test_output_of_every_tenth_step_of_a_leapfrog_scheme():
    x, p = (array(e.own(np.random.default_rng(k).uniform(0.2, 1.0, 3))) for k in range(2))
    before, y, written = x, x * 1.01, []
    for k in range(60):
        before, y = y, leap(y, before, p)
        if k % 10 == 9:
            written.append(cost(y, np.full(3, 0.1 * k)))
    text = check([*written, y], [x, p], turns=5).describe()
    assert "loop of 6 x (loop of 10 x (leap), cost)" in text


def test_a_loop_in_a_loop_that_keeps_few_states():
    x, p = (array(e.own(np.random.default_rng(k).uniform(0.2, 1.0, 3))) for k in range(2))
    y, t = x, AdjFloat(0.3)
    for _ in range(50):
        y = leap(y, x, p)
        t = t * 1.01
    text = check([y, cost(y, np.zeros(3)) * t], [x, p], memory="sqrt").describe()
    assert "Loops keep for the derivative: sqrt" in text.splitlines()


@pytest.mark.parametrize("memory", [None, "step"])
def test_what_loops_really_keep_is_said(memory, caplog):
    caplog.set_level("INFO")
    x, p = (array(e.own(np.random.default_rng(k).uniform(0.2, 1.0, 3))) for k in range(2))
    y = x
    for _ in range(20):
        y = leap(y, x, p)
    text = check([y], [x, p], memory=memory).describe()
    said = f"{memory or 'all'}; in tensorflow: the states between groups of turns; few small turns run one after"
    assert f"Loops keep for the derivative: {said}" in text
    assert f"Loops keep: {said}" in caplog.text
