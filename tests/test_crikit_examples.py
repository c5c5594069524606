"""The three documented examples of CRIKit, with their calls unchanged; each is also put to a Taylor test."""

import numpy as onp
import pytest

from pyadjoint_utils import Control, ReducedFunction, array, taylor_test, taylor_to_dict, verify


def rates(rf, m, h):
    table = taylor_to_dict(rf, m, h)
    return [table[f"R{order}"]["Rate"][-1] for order in range(3)]


def assert_right(rf, m, h):
    for order, rate in enumerate(rates(rf, m, h)):
        assert rate > order + 0.8
    report = verify(rf, m)
    assert report.passed, str(report)


def test_jax():
    pytest.importorskip("jax")
    from jax import numpy as np
    from jax.tree_util import Partial as partial

    from pyadjoint_utils import overload_jax

    onp.random.seed(1)

    @partial(overload_jax, argnums=(0, 1), checkpoint=True)
    def my_func(x, y):
        return np.exp(np.trace(x @ y))

    inputs = (array(onp.random.randn(3, 3)), array(onp.random.randn(3, 3)))
    controls = [Control(x) for x in inputs]
    output = my_func(*inputs)
    rf = ReducedFunction(output, controls)
    h = [1.0e-1 * array(onp.random.randn(*x.shape)) for x in inputs]
    assert taylor_test(rf, inputs, h) >= 1.9

    x, y = (v.numpy() for v in inputs)
    assert float(output) == pytest.approx(onp.exp(onp.trace(x @ y)))
    by_x, by_y = rf.derivative()
    onp.testing.assert_allclose(by_x.numpy(), float(output) * y.T)
    onp.testing.assert_allclose(by_y.numpy(), float(output) * x.T)
    assert_right(rf, inputs, h)


@pytest.mark.parametrize("partial", ["functools", "decorator"])
def test_jax_other_spellings(partial):
    pytest.importorskip("jax")
    import functools

    from jax import numpy as np

    from pyadjoint_utils.jax_adjoint import overload_jax

    decorate = {
        "functools": functools.partial(overload_jax, argnums=(0, 1), checkpoint=True),
        "decorator": overload_jax(argnums=(0, 1), checkpoint=True),
    }[partial]
    f = decorate(lambda x, y: np.exp(np.trace(x @ y)))
    x = array(onp.eye(2))
    rf = ReducedFunction(f(x, x), Control(x))
    onp.testing.assert_allclose(rf.derivative().numpy(), 2 * onp.exp(2.0) * onp.eye(2))


def test_tensorflow():
    pytest.importorskip("tensorflow")
    import tensorflow.compat.v1 as tf
    from pyadjoint.overloaded_type import create_overloaded_object as coo
    from tensorflow import keras
    from tensorflow.keras import layers

    from pyadjoint_utils.tensorflow_adjoint import run_tensorflow_graph

    # In single precision some weights leave too little room for a rate between curvature and rounding.
    keras.utils.set_random_seed(1)
    g = tf.Graph()
    with g.as_default():
        g_input = tf.placeholder(dtype=tf.float64, shape=(None, 2), name="input_data")

        z = g_input
        for layer_size in [40, 30, 20]:
            z = layers.Dense(layer_size, activation="tanh")(z)

        g_output = layers.Dense(1, activation="linear")(z)

        init = tf.global_variables_initializer()

        sess = tf.Session()
        sess.run(init)

    onp.random.seed(1)
    input = onp.random.rand(15, 2)
    output = sess.run(g_output, {g_input: input})

    with sess.as_default():
        pyadjoint_input = coo(input)
        taped = run_tensorflow_graph(g_output, {g_input: pyadjoint_input})

    onp.testing.assert_allclose(taped.numpy(), output, rtol=1e-6)
    assert taped.shape == (15, 1)
    rf = ReducedFunction(taped, Control(pyadjoint_input))
    moved = 0.5 * input + 0.1
    onp.testing.assert_allclose(rf(moved).numpy(), sess.run(g_output, {g_input: moved}), rtol=1e-6)
    h, v = onp.random.randn(15, 2), onp.random.randn(15, 1).astype(taped.dtype)
    with g.as_default():
        (gradient,) = tf.gradients(g_output, g_input, grad_ys=tf.constant(v, g_output.dtype))
    expected = sess.run(gradient, {g_input: moved})
    onp.testing.assert_allclose(rf.adj_jac_action(v).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert_right(rf, coo(input), coo(h))
    sess.close()
    assert tf.executing_eagerly()


def test_autograd():
    import autograd.numpy as np

    from pyadjoint_utils import point_map

    @point_map(((-1,), (-1, 2), ()), (-1, 2), bare=True)
    def f(u, g, p):
        mu = (np.sum(g * g, axis=1) + 1.0e-12) ** ((p - 2.0) / 2.0)
        return np.reshape(mu, (*mu.shape, 1)) * g

    onp.random.seed(1)
    u, g, p = array(onp.random.randn(5)), array(onp.random.randn(5, 2)), array(3.5)
    output = f(u, g, p)
    mu = (onp.sum(g.numpy() ** 2, axis=1) + 1.0e-12) ** 0.75
    onp.testing.assert_allclose(output.numpy(), mu[:, None] * g.numpy())
    rf = ReducedFunction(output, [Control(u), Control(g), Control(p)])
    assert_right(rf, [u, g, p], [array(onp.random.randn(*x.shape)) for x in (u, g, p)])
    onp.testing.assert_array_equal(f((u, g, p)).numpy(), output.numpy())

    # d output / dp = log(|g|^2) / 2 * output, and u is not used
    v = onp.random.randn(5, 2)
    by_u, _, by_p = rf.adj_jac_action(v)
    onp.testing.assert_array_equal(by_u.numpy(), onp.zeros(5))
    size = onp.log(onp.sum(g.numpy() ** 2, axis=1) + 1.0e-12)[:, None]
    assert float(by_p) == pytest.approx(onp.sum(v * 0.5 * size * output.numpy()))
